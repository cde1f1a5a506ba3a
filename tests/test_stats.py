"""Statistics of an update by hand, also where the ratio leaves 1 by a millionth."""

import math

import torch

from studio.core.stats import metrics, ratio_by_step, ratio_sums, total
from studio.core.surrogate import Clip

LOG_RATIO = torch.tensor([[math.log(1.5), math.log(0.5)], [0.0, 0.0]])
ADVANTAGE = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
WEIGHT = torch.full((2, 2), 0.25)


def test_metrics_by_hand():
    # r = 1.5, 0.5, 1, 1: mean 1, variance (0.25 + 0.25) / 4 = 0.125, E r² = 1.125
    done = metrics(ratio_sums(LOG_RATIO, WEIGHT, Clip().clipped(LOG_RATIO, ADVANTAGE)))
    expected = {
        "ratio/mean": 1.0,
        "ratio/shift": 0.0,
        "ratio/std": 0.125**0.5,
        "ratio/ess": 1 / 1.125,
        "ratio/drift": (math.log(1.5) + math.log(2)) / 4,
        "ratio/largest": math.log(2),
        "ratio/above": 0.25,
        "ratio/below": 0.25,
        "ratio/clipped": 0.5,
        "kl/old": (math.log(1.5) ** 2 + math.log(2) ** 2) / 8,
    }
    assert done.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(done[name], torch.tensor(value), atol=1e-6, rtol=0, msg=name)


def test_chunks_add_up_and_weights_need_not_sum_to_one():
    weight = WEIGHT * torch.tensor([[0.5], [0.1]])
    whole = metrics(ratio_sums(LOG_RATIO, weight))
    parts = total(ratio_sums(LOG_RATIO[b : b + 1], weight[b : b + 1]) for b in range(2))
    torch.testing.assert_close(metrics(parts), whole)
    # weights 5 : 1 -> mean of r - 1 is 0 and of its square is 0.25·5/6
    torch.testing.assert_close(whole["ratio/std"], torch.tensor((0.25 * 5 / 6) ** 0.5))


def test_tiny_ratios_keep_their_digits():
    done = metrics(ratio_sums(torch.tensor([[3e-6, 1e-6]]), torch.tensor([[0.5, 0.5]])))
    torch.testing.assert_close(done["ratio/shift"], torch.tensor(2e-6), rtol=1e-3, atol=0)
    torch.testing.assert_close(done["ratio/std"], torch.tensor(1e-6), rtol=1e-2, atol=0)


def test_dead_decisions_do_not_count():
    done = metrics(ratio_sums(torch.tensor([[0.5, 3.0]]), torch.tensor([[1.0, 0.0]])))
    assert done["ratio/largest"] == 0.5 and done["ratio/drift"] == 0.5


def test_ratio_by_step():
    mask = torch.tensor([[True, True], [True, False]])
    got = ratio_by_step(torch.tensor([[math.log(1.5), 0.0], [math.log(0.5), 9.0]]), mask)
    torch.testing.assert_close(got["shift"], torch.tensor([0.0, 0.0]))
    torch.testing.assert_close(got["std"], torch.tensor([0.5, 0.0]))
