"""Ratios by hand: house style, section 12, checks 2 and 6."""

import pytest
import torch
from toys import batch

from studio.core.ratio import decision_ratio, fit_ratio, sample_ratio, total_ratio
from studio.core.weighting import by_sample
from studio.errors import ShapeError
from studio.types import Evaluation

LOGP = torch.tensor([[0.1, 0.3, 9.0], [-0.2, 9.0, 9.0]])
MASK = [[1, 1, 0], [1, 0, 0]]

# live entries only; the mean of row 0 is 0.2, its sum 0.4
BY_HAND = {
    "decision": (decision_ratio, [0.1, 0.3, -0.2]),
    "sample": (sample_ratio, [0.2, 0.2, -0.2]),
    "total": (total_ratio, [0.4, 0.4, -0.2]),
}


@pytest.mark.parametrize(("ratio", "expected"), BY_HAND.values(), ids=BY_HAND)
def test_log_ratios_by_hand(ratio, expected):
    rollout = batch(MASK, old=Evaluation(logp=torch.full((2, 3), 1.0)))
    got = ratio(Evaluation(logp=LOGP + 1.0), rollout)
    torch.testing.assert_close(got[rollout.mask], torch.tensor(expected), atol=1e-6, rtol=0)
    assert (ratio(rollout.old, rollout) == 0).all()


def test_fit_ratio_rises_when_the_error_falls():
    rollout = batch([[1, 1]], old=Evaluation(fit=torch.tensor([[0.5, 0.5]])))
    got = fit_ratio(Evaluation(fit=torch.tensor([[0.2, 0.9]])), rollout)
    torch.testing.assert_close(got, torch.tensor([[0.3, -0.4]]))


def test_sample_ratio_has_the_gradient_of_the_mean_under_by_sample():
    rollout = batch(MASK)
    weight, advantage = by_sample(rollout), torch.tensor([[2.0], [-3.0]])
    straight = LOGP.clone().requires_grad_()
    (weight * advantage * sample_ratio(Evaluation(logp=straight), rollout).exp()).sum().backward()
    plain = LOGP.clone().requires_grad_()
    length = rollout.mask.sum(1)
    mean = (plain * rollout.mask).sum(1) / length
    (advantage[:, 0] * mean.exp() / 2).sum().backward()
    torch.testing.assert_close(straight.grad, plain.grad)


def test_total_ratio_counts_each_row_once_under_by_sample():
    rollout = batch(MASK)
    logp = LOGP.clone().requires_grad_()
    (by_sample(rollout) * total_ratio(Evaluation(logp=logp), rollout).exp()).sum().backward()
    row = torch.tensor([0.4, -0.2]).exp() / 2
    torch.testing.assert_close(logp.grad, row[:, None] * rollout.mask)


def test_a_missing_likelihood_is_named():
    with pytest.raises(ShapeError, match=r"ratio: logp is None, expected \[B, T\] = \[1, 2\]"):
        decision_ratio(Evaluation(), batch([[1, 1]]))
