"""Weights by hand: house style, section 12, check 4."""

import pytest
import torch
from toys import batch

from studio.core.weighting import ByLength, by_decision, by_sample

BY_HAND = {
    "by sample": (by_sample, [1 / 2, 1 / 6, 1 / 6, 1 / 6]),
    "by decision": (by_decision, [1 / 4, 1 / 4, 1 / 4, 1 / 4]),
    "by a length of 4": (ByLength(4), [1 / 8, 1 / 8, 1 / 8, 1 / 8]),
    "by the longest row": (ByLength(), [1 / 6, 1 / 6, 1 / 6, 1 / 6]),
}


@pytest.mark.parametrize(("weighting", "expected"), BY_HAND.values(), ids=BY_HAND)
def test_rows_of_one_and_three_decisions(weighting, expected):
    for mask in ([[0, 1, 0, 0], [1, 0, 1, 1]], [[0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 1]]):
        rollout = batch(mask)
        weight = weighting(rollout)
        torch.testing.assert_close(weight[rollout.mask], torch.tensor(expected))
        assert (weight[~rollout.mask] == 0).all()


@pytest.mark.parametrize("weighting", [by_sample, by_decision, ByLength()])
def test_nothing_alive_weighs_nothing(weighting):
    assert (weighting(batch([[0, 0], [0, 0]])) == 0).all()
