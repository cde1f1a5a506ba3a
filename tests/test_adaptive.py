"""Slots that learn from every optimizer step: what they measure adds up over parts, and none is passed over in silence."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from toys import TOYS, rollout_of

from studio.core import GroupRelative, Objective, assign_credit, policy_loss, total
from studio.core.gate import EveryGate
from studio.core.surrogate import Clip
from studio.errors import ConfigError


class Counting(Clip):
    """Clips, and remembers the batch's mean squared log ratio of every step."""

    def measure(self, log_ratio, advantage, weight):
        return torch.stack([(weight * log_ratio.square()).sum(), weight.sum()])

    def learn(self, measured):
        object.__setattr__(self, "seen", [*getattr(self, "seen", []), (measured[0] / measured[1]).item()])

    def told(self):
        return {"ratio/seen": self.seen[-1]}

    def update(self, rollout):
        """Nothing."""

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        object.__setattr__(self, "seen", state["seen"])


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


class Memory:
    """A gate, advantage or surrogate that remembers the batches that it was shown."""

    def __init__(self):
        self.seen = 0

    def __call__(self, *given):
        return given[0]

    def update(self, rollout):
        self.seen += 1

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


@dataclass
class Around:
    """A regularizer that hands nothing on."""

    term: Any

    def __call__(self, new, rollout, log_ratio):
        return self.term(log_ratio, log_ratio, log_ratio)


class Measuring(Clip):
    measure, learn, told = Counting.measure, Counting.learn, Counting.told


class Updated:
    __call__, update = Memory.__call__, Memory.update


class Saved:
    __call__, state_dict, load_state_dict = Memory.__call__, Memory.state_dict, Memory.load_state_dict


class Learning(Memory):
    measure, learn = Counting.measure, Counting.learn


@pytest.mark.parametrize(
    ("slots", "words"),
    [
        ({"surrogate": Measuring()}, "surrogate: .* in Measuring, got it without update, state_dict, load_state_dict"),
        ({"gate": Updated()}, "gate: .* in Updated, got it without state_dict, load_state_dict"),
        ({"weighting": Saved()}, "weighting: expected update, .* in Saved, got it without update"),
        ({"surrogate": Learning()}, "in Learning, got it without told"),
        (
            {"gate": EveryGate((Memory(),))},
            "gate: .* Memory inside EveryGate, .* ask it for load_state_dict, state_dict, update",
        ),
        ({"regularizers": ((0.1, Around(Counting())),)}, "regularizers.0: .* got Counting inside Around, .* for learn, load"),
        ({"gate": Memory().__call__}, "got Memory inside __call__"),
    ],
)
def test_a_slot_that_would_not_learn_is_refused(slots, words):
    with pytest.raises(ConfigError, match=rf"^Objective\..*{words}"):
        Objective(GroupRelative(), **slots)


def test_a_memory_in_one_slot_may_be_read_in_another():
    memory = Memory()
    objective = Objective(memory, gate=memory.__call__)
    objective.update(None)
    assert memory.seen == 1 and objective.state_dict() == {"advantage": {"seen": 1}}
