"""Slots that learn from every optimizer step: what they measure adds up over parts."""

import torch
from toys import TOYS, rollout_of

from studio.core import GroupRelative, Objective, assign_credit, policy_loss, total
from studio.core.surrogate import Clip


class Counting(Clip):
    """Clips, and remembers the batch's mean squared log ratio of every step."""

    def measure(self, log_ratio, advantage, weight):
        return torch.stack([(weight * log_ratio.square()).sum(), weight.sum()])

    def learn(self, measured):
        object.__setattr__(self, "seen", [*getattr(self, "seen", []), (measured[0] / measured[1]).item()])

    def told(self):
        return {"ratio/seen": self.seen[-1]}


def test_a_slot_learns_the_same_from_a_batch_and_from_its_parts():
    toy = TOYS["tokens"]()
    objective = Objective(GroupRelative(), surrogate=Counting())
    rollout = rollout_of(toy)
    with torch.no_grad():
        toy.logits.add_(torch.randn(toy.logits.shape, generator=torch.Generator().manual_seed(0)))
    credit = assign_credit(objective, rollout)
    _, whole = policy_loss(objective, toy.evaluate(rollout), rollout, credit)
    parts = []
    for rows in (slice(0, 5), slice(5, 16)):
        part = rollout.at(rows)
        parts.append(policy_loss(objective, toy.evaluate(part), part, credit.at(rows))[1])
    expected = (toy.evaluate(rollout).logp - rollout.old.logp).square().mean().item()
    first, second = objective.learn(whole), objective.learn(total(parts))
    assert abs(first["ratio/seen"] - expected) <= 1e-6 and abs(second["ratio/seen"] - expected) <= 1e-6
