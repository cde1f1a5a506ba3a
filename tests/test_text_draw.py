"""Tokens drawn by blocks of the vocabulary: the inverse of the distribution function, whatever the vocabulary and the batch."""

import pytest
import torch

from studio.text.draw import BLOCK, _first_above, draw, inverse_cdf

LAST = 1 - 2**-24  # the largest number below 1 that torch.rand gives
SIZES = [1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 100]


def test_by_hand():
    logits = torch.tensor([0.5, 0.3, 0.2, 0.0]).log().expand(5, 4)
    uniform = torch.tensor([0.0, 0.4999, 0.5001, 0.8001, LAST])
    assert draw(logits, uniform).tolist() == [0, 0, 1, 2, 2]
    assert draw(logits, uniform, weight=torch.tensor([[0.0, 3.0, 0.0, 1.0]]).expand(5, 4)).tolist() == [1, 1, 1, 3, 3]
    assert draw(logits, uniform, greedy=True).tolist() == [0] * 5


@pytest.mark.parametrize("size", SIZES)
def test_blocks_find_what_one_cumulated_sum_finds(size):
    own = torch.Generator().manual_seed(size)
    weight = torch.randint(8, (50, size), generator=own).float() * (torch.rand(50, size, generator=own) < 0.3)
    weight[:, size // 2] += 1  # whole numbers: sums are exact in any order
    uniform = torch.rand(50, generator=own)
    uniform[:10], uniform[10:20] = 0, LAST
    upto = weight.cumsum(1)
    expected = torch.searchsorted(upto, (uniform * upto[:, -1])[:, None], right=True)[:, 0]
    assert torch.equal(inverse_cdf(weight, uniform), expected)
    edges = upto[:, size // 2] - weight[:, size // 2]  # where the middle index begins
    share = torch.nextafter(edges / upto[:, -1], torch.ones(()))
    assert (inverse_cdf(weight, share) == size // 2).float().mean() > 0.9


@pytest.mark.parametrize("size", SIZES)
def test_where_sums_round_the_index_is_the_next_best_and_never_one_of_no_probability(size):
    own = torch.Generator().manual_seed(size)
    logits = 3 * torch.randn(900, size, generator=own)
    logits[torch.rand(900, size, generator=own) < 0.5] = -torch.inf
    logits[:, ::BLOCK], logits[:, size // 2] = -torch.inf, 0
    p = logits.softmax(-1).double()
    upto = p.cumsum(1)
    ends = upto[:, min(size, BLOCK) - 1]  # of the first block: its sum and its cumulated sum round apart
    uniform = ends.clamp(max=LAST)
    uniform[::3], uniform[1::3] = LAST, 0
    found = draw(logits, uniform.float())[:, None]
    assert p.gather(1, found).min() > 0
    above = upto.gather(1, found)[:, 0]
    assert (above - uniform).min() > -3e-7 and (above - p.gather(1, found)[:, 0] - uniform).max() < 3e-7


def test_a_sum_that_grows_where_nothing_is_added_is_passed_over():
    weight, upto = torch.tensor([[0.0, 1, 0, 0, 2, 0]]), torch.tensor([[0.0, 1, 1 + 2**-23, 1, 3, 3 + 2**-22]])  # as on a GPU
    assert [int(_first_above(weight, upto, torch.tensor([[wanted]]))) for wanted in (-1e-7, 0.0, 1.0, 3.0)] == [1, 1, 4, 4]


def test_shares_are_those_of_the_softmax():
    own = torch.Generator().manual_seed(0)
    logits, draws = 0.5 * torch.randn(2 * BLOCK + 88, generator=own), 60_000
    p = logits.softmax(-1)
    found = inverse_cdf(p.expand(draws, -1), torch.rand(draws, generator=own))
    count = torch.bincount(found, minlength=len(p))
    chi_square = ((count - draws * p) ** 2 / (draws * p)).sum()
    freedom = len(p) - 1
    assert abs(chi_square - freedom) <= 3 * (2 * freedom) ** 0.5


def test_a_draw_does_not_depend_on_the_batch():
    own = torch.Generator().manual_seed(0)
    logits, uniform = torch.randn(40, 70_001, generator=own), torch.rand(40, generator=own)
    together = draw(logits, uniform)
    assert together.unique().numel() > 30
    assert together.tolist() == [int(draw(logits[i : i + 1], uniform[i : i + 1])) for i in range(40)]
