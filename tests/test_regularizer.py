"""Penalties by hand: text-policy-gradient.md, section 1.4."""

import math

import pytest
import torch
from toys import batch

from studio.core import GroupRelative, Objective
from studio.core.regularizer import Fading, active, entropy, kl_low_variance, kl_plain, kl_squared, ratio_variance
from studio.types import Evaluation

X = torch.tensor([[0.1, -0.1, 1.0]])  # log new - log ref
BY_HAND = {
    "k1": (kl_plain, [0.1, -0.1, 1.0]),
    "k2": (kl_squared, [0.005, 0.005, 0.5]),
    "k3": (kl_low_variance, [0.0048374, 0.0051709, 0.3678794]),
}


@pytest.mark.parametrize(("estimator", "expected"), BY_HAND.values(), ids=BY_HAND)
def test_kl_estimators_by_hand(estimator, expected):
    rollout = batch([[1, 1, 1]], ref=Evaluation(logp=torch.full((1, 3), -2.0)))
    got = estimator(Evaluation(logp=X - 2.0), rollout, torch.zeros(1, 3))
    torch.testing.assert_close(got, torch.tensor([expected]), atol=1e-6, rtol=0)
    assert estimator.needs == {"logp", "ref"}


def test_estimators_average_to_the_kl():
    # new = Bernoulli(0.6), ref = Bernoulli(0.5): KL = 0.6·ln 1.2 + 0.4·ln 0.8 = 0.0201355
    x = torch.tensor([[math.log(1.2), math.log(0.8)]])
    rollout = batch([[1, 1]], ref=Evaluation(logp=torch.zeros(1, 2)))
    for estimator in (kl_plain, kl_low_variance):
        mean = (torch.tensor([[0.6, 0.4]]) * estimator(Evaluation(logp=x), rollout, x)).sum()
        torch.testing.assert_close(mean, torch.tensor(0.0201355), atol=1e-6, rtol=0)


def test_low_variance_estimator_stays_finite():
    rollout = batch([[1]], ref=Evaluation(logp=torch.tensor([[0.0]])))
    logp = torch.tensor([[-1000.0]], requires_grad=True)
    kl_low_variance(Evaluation(logp=logp), rollout, logp).sum().backward()
    assert torch.isfinite(logp.grad).all()


def test_entropy_and_ratio_variance():
    rollout, log_ratio = batch([[1, 1]]), torch.tensor([[0.0, math.log(1.5)]])
    new = Evaluation(entropy=torch.tensor([[0.3, 0.7]]))
    assert entropy(new, rollout, log_ratio) is new.entropy
    torch.testing.assert_close(ratio_variance(Evaluation(), rollout, log_ratio), torch.tensor([[0.0, 0.25]]))


def test_a_coefficient_of_zero_takes_the_term_out():
    assert active((0.0, entropy), (0.1, kl_plain)) == ((0.1, kl_plain),)


def test_a_fading_term_counts_less_with_every_iteration_and_remembers_where_it_is():
    rollout, new = batch([[1, 1]]), Evaluation(entropy=torch.tensor([[0.4, 0.8]]))
    objective = Objective(GroupRelative(), regularizers=((0.5, Fading(entropy, steps=4)),))
    term = objective.regularizers[0][1]
    seen = []
    for _ in range(6):
        seen.append(term(new, rollout, torch.zeros(1, 2))[0, 0].item())
        objective.update(rollout)
    assert seen == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0, 0.0])
    assert objective.needs == {"logp", "entropy"} and objective.span == "decision"
    again = Objective(GroupRelative(), regularizers=((0.5, Fading(entropy, steps=4)),))
    again.load_state_dict({"regularizers.0": {"done": 3}})
    torch.testing.assert_close(again.regularizers[0][1](new, rollout, torch.zeros(1, 2)), torch.tensor([[0.1, 0.2]]))
