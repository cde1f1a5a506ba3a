"""The objective, credit and the loss by hand: house style, section 12, checks 2, 5, 7 and 10."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from toys import batch

from studio.algorithms.cispo import CISPO
from studio.algorithms.dapo import DAPO
from studio.algorithms.dr_grpo import DrGRPO
from studio.algorithms.grpo import GRPO
from studio.algorithms.gspo import GSPO
from studio.algorithms.ppo import PPO
from studio.algorithms.reinforce_pp import ReinforcePP
from studio.algorithms.rloo import RLOO
from studio.core import (
    GAE,
    ByLength,
    Clip,
    GroupRelative,
    KeepGradientClip,
    Objective,
    StopClip,
    ValueLoss,
    assign_credit,
    by_decision,
    by_sample,
    check_fit,
    decision_ratio,
    entropy,
    informative_groups,
    kl_low_variance,
    metrics,
    needs,
    plain_ratio,
    policy_loss,
    sample_ratio,
    span,
    total_ratio,
)
from studio.core.declare import needs_of, span_of, widest
from studio.errors import ConfigError, NeedsError, RunError, ShapeError
from studio.shapes import expect
from studio.types import Credit, Evaluation

MASK = [[1, 0, 0], [1, 1, 1], [1, 1, 0], [1, 1, 1]]
REWARD = torch.tensor([1.0, 0.0, 0.0, 1.0])
CENTERED = GroupRelative(scale=None)


@pytest.mark.parametrize("surrogate", [Clip(), plain_ratio, StopClip(), KeepGradientClip()], ids=lambda s: str(s)[:12])
@pytest.mark.parametrize("ratio", [decision_ratio, sample_ratio, total_ratio], ids=lambda r: r.__name__)
def test_gradient_at_ratio_one_is_weight_times_advantage(surrogate, ratio):
    seen = []

    def watched(new, rollout):
        seen.append(ratio(new, rollout))
        seen[-1].retain_grad()
        return seen[-1]

    rollout = batch(MASK, REWARD)
    objective = Objective(GroupRelative(eps=0.0), ratio=watched, surrogate=surrogate)
    credit = assign_credit(objective, rollout)
    loss, _ = policy_loss(objective, Evaluation(logp=torch.zeros(4, 3, requires_grad=True)), rollout, credit)
    loss.backward()
    assert (seen[0] == 0).all()
    torch.testing.assert_close(seen[0].grad, -credit.weight * credit.advantage)


def test_dead_decisions_have_no_gradient_and_no_value():
    objective = Objective(CENTERED, regularizers=((1.0, kl_low_variance),))
    rollout = batch([[1, 0]], torch.zeros(1), ref=Evaluation(logp=torch.zeros(1, 2)))
    credit = Credit(torch.ones(1, 2), torch.ones(1, 2), torch.tensor([[1.0, 0.0]]))
    logp = torch.tensor([[0.0, 1000.0]], requires_grad=True)
    loss, _ = policy_loss(objective, Evaluation(logp=logp), rollout, credit)
    loss.backward()
    assert loss == -1 and logp.grad.tolist() == [[-1.0, 0.0]]


def test_live_log_ratios_are_clamped_before_they_are_exponentiated():
    objective = Objective(CENTERED, surrogate=plain_ratio)
    credit = Credit(torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1))
    loss, stats = policy_loss(objective, Evaluation(logp=torch.tensor([[1000.0]])), batch([[1]]), credit)
    torch.testing.assert_close(loss, torch.tensor(-math.exp(20.0)))
    assert stats["ratio/largest"] == 20


def test_weights_are_asked_for_after_the_gate():
    # the second group agrees: it leaves the denominators; by_decision counts 2 + 2 live decisions
    rollout = batch([[1, 1]] * 4, torch.tensor([1.0, 0, 0.5, 0.5]), [0, 0, 1, 1])
    credit = assign_credit(Objective(CENTERED, gate=informative_groups, weighting=by_decision), rollout)
    torch.testing.assert_close(credit.weight, torch.tensor([[0.25, 0.25], [0.25, 0.25], [0.0, 0.0], [0.0, 0.0]]))


def test_a_gate_multiplies_the_surrogate_only():
    def double(rollout, advantage):
        return torch.full_like(advantage, 2.0)

    rollout = batch([[1, 1]] * 2, torch.tensor([1.0, 0.0]))
    new = Evaluation(logp=torch.zeros(2, 2), entropy=torch.full((2, 2), 0.7))
    losses = []
    for gate in (None, double):
        objective = Objective(CENTERED, gate=gate, regularizers=((-0.1, entropy),))
        credit = replace(assign_credit(objective, rollout), advantage=torch.ones(2, 2))
        assert credit.weight.sum() == 1
        losses.append(policy_loss(objective, new, rollout, credit)[0])
    # -1 - 0.1·0.7 and -2 - 0.1·0.7
    torch.testing.assert_close(torch.stack(losses), torch.tensor([-1.07, -2.07]))


def test_rows_with_a_missing_reward_do_not_train():
    present = torch.tensor([True, False, True])
    rollout = batch([[1, 1]] * 3, torch.tensor([1.0, float("nan"), 0.0]), present=present)
    credit = assign_credit(Objective(GroupRelative(eps=0.0)), rollout)
    torch.testing.assert_close(credit.weight.sum(1), torch.tensor([0.5, 0.0, 0.5]))
    assert credit.advantage[:, 0].tolist() == [1, 0, -1]


def test_credit_is_zero_where_dead():
    def unset(rollout):
        return torch.full(rollout.mask.shape, torch.nan).masked_fill(rollout.mask, 2.0)

    credit = assign_credit(Objective(unset), batch([[1, 0]]))
    assert credit.advantage.tolist() == [[2, 0]] and credit.gate.tolist() == [[1, 0]]


# what each published objective is made of, besides its advantage
PUBLISHED = {
    "cispo": (CISPO(), decision_ratio, StopClip(5.0), by_decision, 0),
    "dapo": (DAPO(), decision_ratio, Clip(0.2, 0.28), by_decision, 0),
    "dr_grpo": (DrGRPO(length=8), decision_ratio, Clip(0.2, 0.2), ByLength(8), 0),
    "grpo": (GRPO(), decision_ratio, Clip(0.2, 0.2), by_sample, 1),
    "gspo": (GSPO(), sample_ratio, Clip(3e-4, 4e-4), by_sample, 0),
    "ppo": (PPO(entropy=0.01), decision_ratio, Clip(0.2, 0.2), by_decision, 1),
    "reinforce++": (ReinforcePP(), decision_ratio, Clip(0.2, 0.2), by_decision, 0),
    "rloo": (RLOO(), total_ratio, Clip(0.2, 0.2), by_sample, 0),
}


@pytest.mark.parametrize(("algorithm", "ratio", "surrogate", "weighting", "terms"), PUBLISHED.values(), ids=PUBLISHED)
def test_published_objectives_are_made_of(algorithm, ratio, surrogate, weighting, terms):
    objective = algorithm.objective()
    assert objective.ratio is ratio and objective.surrogate == surrogate and objective.weighting == weighting
    assert len(objective.regularizers) == terms
    assert (objective.gate is informative_groups) == isinstance(algorithm, DAPO)
    assert (objective.critic is not None) == isinstance(algorithm, PPO)


def test_constant_length_weights_sum_to_less_and_metrics_stay_means():
    objective = Objective(CENTERED, weighting=ByLength(10))
    rollout = batch(MASK, REWARD)
    credit = assign_credit(objective, rollout)
    torch.testing.assert_close(credit.weight.sum(), torch.tensor(9 / 40))
    new = Evaluation(logp=torch.full((4, 3), math.log(1.1)))
    _, stats = policy_loss(objective, new, rollout, credit)
    torch.testing.assert_close(metrics(stats)["ratio/mean"], torch.tensor(1.1))


def test_value_loss_by_hand():
    # R = 2 where old value = 0; v = 1: ½·(1 - 2)² = 0.5; clipped to 0.2: ½·(0.2 - 2)² = 1.62, the worse one counts
    rollout = batch([[1]], torch.tensor([2.0]))
    new = Evaluation(logp=torch.zeros(1, 1), value=torch.tensor([[1.0]]))
    for critic, expected in ((ValueLoss(1.0), 0.5), (ValueLoss(0.1, clip=0.2), 0.162)):
        objective = Objective(GAE(1.0, 1.0), critic=critic)
        credit = replace(assign_credit(objective, rollout), advantage=torch.zeros(1, 1))
        assert credit.target.tolist() == [[2.0]]
        loss, stats = policy_loss(objective, new, rollout, credit)
        torch.testing.assert_close(loss, torch.tensor(expected))
        torch.testing.assert_close(stats["loss/value"], torch.tensor(expected))


def test_a_critic_needs_an_advantage_that_states_targets():
    with pytest.raises(ConfigError, match="got GroupRelative. Use GAE"):
        Objective(GroupRelative(), critic=ValueLoss())


def test_losses_are_reported_apart():
    objective = Objective(CENTERED, regularizers=((0.5, kl_low_variance),))
    rollout = batch([[1]] * 2, torch.tensor([1.0, 0.0]), ref=Evaluation(logp=torch.full((2, 1), -1.0)))
    loss, stats = policy_loss(objective, rollout.old, rollout, assign_credit(objective, rollout))
    # x = 1: k3 = e⁻¹; advantages cancel
    torch.testing.assert_close(stats["loss/kl_low_variance"], torch.tensor(math.exp(-1)))
    torch.testing.assert_close(loss, torch.tensor(0.5 * math.exp(-1)))
    assert stats["loss/surrogate"] == 0 and not any(value.requires_grad for value in stats.values())


def test_two_penalties_of_one_kind_both_count():
    objective = Objective(CENTERED, regularizers=((0.5, kl_low_variance), (0.25, kl_low_variance)))
    rollout = batch([[1]] * 2, torch.tensor([1.0, 0.0]), ref=Evaluation(logp=torch.full((2, 1), -1.0)))
    loss, _ = policy_loss(objective, rollout.old, rollout, assign_credit(objective, rollout))
    torch.testing.assert_close(loss, torch.tensor(0.75 * math.exp(-1)))


def test_the_regulated_ratio_has_no_shift():
    # E = 2, s = 0.5, δ = (0.1, 0.1): E[plain] = -0.01 / (2·0.25) = -0.02, E[regulated] = 0
    noise = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0))
    s, delta = 0.5, torch.tensor([0.1, 0.1])
    logp_old = (-0.5 * noise.square()).mean(1)
    logp_new = (-0.5 * (noise - delta / s).square()).mean(1)
    plain = logp_new - logp_old
    regulated = s * plain + delta.square().mean() / (2 * s)
    assert abs(plain.mean() + 0.02) < 0.004
    assert abs(regulated.mean()) < 0.002
    torch.testing.assert_close(regulated, (noise * delta).mean(1), atol=1e-6, rtol=1e-4)


def test_needs_and_span_are_the_union_and_the_widest():
    @needs("mean", "std")
    @span("batch")
    def odd(new, rollout, log_ratio):
        return log_ratio

    objective = Objective(GAE(kl=0.1), ratio=sample_ratio, regularizers=((0.1, entropy),), critic=ValueLoss())
    assert objective.needs == {"value", "logp", "ref", "entropy"} and objective.span == "row"
    wide = replace(objective, regularizers=((0.1, odd),))
    assert wide.needs == {"value", "logp", "ref", "mean", "std"} and wide.span == "batch"
    assert Objective(span("batch")(lambda rollout: REWARD)).span == "decision"  # credit is assigned before any cut
    assert Objective(GroupRelative()).span == "decision" and widest([]) == "decision"
    assert needs_of(plain_ratio) == frozenset() and span_of(plain_ratio) == "decision"


def test_refusal_says_who_needs_what_and_what_to_do():
    objective = Objective(GAE(), critic=ValueLoss())
    with pytest.raises(NeedsError) as caught:
        check_fit("ppo", objective, {"logp", "ref", "entropy"}, "text")
    assert str(caught.value) == (
        "algorithm 'ppo' needs logp, value; policy 'text' provides entropy, logp, ref. Use it with a policy that provides value."
    )


@dataclass
class Counting:
    """A surrogate with memory, for the state tests."""

    steps: int = 0

    def __call__(self, log_ratio, advantage, mask):
        return advantage * log_ratio

    def update(self, rollout):
        self.steps += 1

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


def test_slots_with_memory_are_updated_and_saved_by_name():
    objective = Objective(CENTERED, surrogate=Counting(), regularizers=((0.1, entropy), (0.1, Counting(5))))
    objective.update(batch([[1]]))
    state = objective.state_dict()
    assert state == {"surrogate": {"steps": 1}, "regularizers.1": {"steps": 6}}
    again = Objective(CENTERED, surrogate=Counting(), regularizers=((0.1, entropy), (0.1, Counting())))
    again.load_state_dict(state)
    assert again.state_dict() == state
    with pytest.raises(RunError, match="expected slots none, got regularizers.1, surrogate"):
        Objective(CENTERED).load_state_dict(state)


def test_shapes_are_checked_in_words():
    x = torch.zeros(2, 3)
    assert expect(x, "B T", name="x", B=2) is x and expect(x, "B *E", name="x") is x
    with pytest.raises(ShapeError, match=r"x has shape \[2, 3\], expected \[B, T\] = \[2, 4\]. Pad it."):
        expect(x, "B T", name="x", hint="Pad it.", B=2, T=4)
    with pytest.raises(ShapeError, match=r"x has shape \[2, 3\], expected \[N, N\]"):
        expect(x, "N N", name="x")
    with pytest.raises(ShapeError, match=r"odd: log_ratio has shape \[4\], expected \[B, T\] = \[4, 3\]"):

        def odd(new, rollout):
            return new.logp.sum(1)

        rollout = batch(MASK, REWARD)
        objective = Objective(CENTERED, ratio=odd)
        policy_loss(objective, rollout.old, rollout, assign_credit(objective, rollout))
