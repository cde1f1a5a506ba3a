"""Several rewards become one without their scales deciding, and a missing score stays missing."""

import pytest
import torch

from rewards.combine import combine, standardize
from studio.errors import ConfigError, ShapeError
from studio.types import Scores

ONE_GROUP = torch.zeros(4, dtype=torch.int64)


def scores(**values) -> dict[str, Scores]:
    return {name: Scores(torch.tensor(value, dtype=torch.float32)) for name, value in values.items()}


def test_one_reward_is_normalized_in_its_group():
    # population std of [1, 0, 0, 1] is 1/2: (r - 1/2) / (1/2)
    reward, present = combine(scores(a=[1, 0, 0, 1]), {"a": 1.0}, ONE_GROUP)
    torch.testing.assert_close(reward, torch.tensor([1.0, -1, -1, 1]), atol=1e-5, rtol=0)
    assert present.all()


@pytest.mark.parametrize("how", ["normalize_each", "gdpo"])
def test_scales_1_and_1000_have_equal_influence(how):
    # a prefers rows 0 and 1, b rows 0 and 2, b on a scale of 1000: rows 1 and 2 must tie
    both = scores(a=[1, 1, 0, 0], b=[1000, 0, 1000, 0])
    reward, _ = combine(both, {"a": 1.0, "b": 1.0}, ONE_GROUP, how)
    assert reward[1].item() == pytest.approx(reward[2].item(), abs=1e-5)
    assert reward[0] > reward[1] > reward[3]
    if how == "normalize_each":  # ±1 each
        torch.testing.assert_close(reward, torch.tensor([2.0, 0, 0, -2]), atol=1e-5, rtol=0)


def test_in_a_raw_sum_the_large_scale_decides():
    both = scores(a=[1, 1, 0, 0], b=[1000, 0, 1000, 0])
    reward, _ = combine(both, {"a": 1.0, "b": 0.5}, ONE_GROUP, "sum")
    assert reward.tolist() == [501, 1, 500, 0]


def test_weights_multiply_after_normalization():
    both = scores(a=[1, 1, 0, 0], b=[1000, 0, 1000, 0])
    reward, _ = combine(both, {"a": 3.0, "b": -1.0}, ONE_GROUP)
    torch.testing.assert_close(reward, torch.tensor([2.0, 4, -4, -2]), atol=1e-4, rtol=0)


def test_groups_are_normalized_apart_whatever_their_ids_and_order():
    group = torch.tensor([7, -3, 7, -3])
    reward, _ = combine(scores(a=[0, 100, 2, 300]), {"a": 1.0}, group)
    torch.testing.assert_close(reward, torch.tensor([-1.0, -1, 1, 1]), atol=1e-5, rtol=0)


def test_gdpo_has_mean_0_and_std_1_over_the_batch():
    torch.manual_seed(0)
    both = {"a": Scores(torch.rand(12)), "b": Scores(1000 * torch.rand(12))}
    reward, _ = combine(both, {"a": 1.0, "b": 1.0}, torch.arange(12) // 4, "gdpo")
    assert reward.mean().item() == pytest.approx(0, abs=1e-6)
    assert reward.std(correction=0).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("how", ["normalize_each", "gdpo", "sum"])
def test_a_row_missing_in_one_reward_is_missing_and_leaves_the_statistics(how):
    nan = float("nan")
    a = Scores(torch.tensor([1.0, 0, 1, 50]))
    b = Scores(torch.tensor([10.0, 0, 10, nan]), torch.tensor([True, True, True, False]))
    reward, present = combine({"a": a, "b": b}, {"a": 1.0, "b": 1.0}, ONE_GROUP, how)
    assert present.tolist() == [True, True, True, False]
    without, _ = combine(scores(a=[1, 0, 1], b=[10, 0, 10]), {"a": 1.0, "b": 1.0}, ONE_GROUP[:3], how)
    torch.testing.assert_close(reward[:3], without)
    assert reward[3] == 0


def test_equal_rewards_and_single_rows_give_zero_not_nan():
    reward, _ = combine(scores(a=[0.1, 0.1, 0.1, 5]), {"a": 1.0}, torch.tensor([0, 0, 0, 1]))
    torch.testing.assert_close(reward, torch.zeros(4))


def test_a_large_offset_does_not_change_the_result():
    value = torch.tensor([1.0, 2, 3, 6])
    every = torch.ones(4, dtype=torch.bool)
    shifted = standardize(value + 4096, ONE_GROUP, every)
    torch.testing.assert_close(shifted, standardize(value, ONE_GROUP, every), atol=1e-6, rtol=0)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="rewards \\['a'\\] and weights \\['b'\\]"):
        combine(scores(a=[1, 0, 0, 1]), {"b": 1.0}, ONE_GROUP)
    with pytest.raises(ConfigError, match="got 'mean'"):
        combine(scores(a=[1, 0, 0, 1]), {"a": 1.0}, ONE_GROUP, "mean")
    with pytest.raises(ShapeError, match=r"\[3\], expected \[B\] = \[4\]"):
        combine(scores(a=[1, 0, 0]), {"a": 1.0}, ONE_GROUP)
