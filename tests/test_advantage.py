"""Advantages by hand: house style, section 12, checks 3 and 11, and the vectors of the method notes."""

import pytest
import torch
from toys import batch

from studio.core.advantage import GAE, BatchWhitened, GroupRelative, LeaveOneOut
from studio.core.masked import group_stats, masked_mean, masked_std, whiten
from studio.errors import RewardError, ShapeError
from studio.types import Evaluation


def rewarded(reward, group=None, steps=1, **others):
    return batch([[1] * steps] * len(reward), torch.tensor(reward), group, **others)


def close(got, expected, atol=1e-6):
    torch.testing.assert_close(got, torch.tensor(expected, dtype=got.dtype), atol=atol, rtol=0)


# r = [1, 0, 0, 1]: mean 1/2, population std 1/2, unbiased std 1/√3
BY_HAND = {
    "population std": (GroupRelative(eps=0.0), [1, -1, -1, 1]),
    "unbiased std": (GroupRelative(ddof=1), [0.865875, -0.865875, -0.865875, 0.865875]),
    "centered": (GroupRelative(scale=None), [0.5, -0.5, -0.5, 0.5]),
    "leave one out": (LeaveOneOut(), [2 / 3, -2 / 3, -2 / 3, 2 / 3]),
}


@pytest.mark.parametrize(("advantage", "expected"), BY_HAND.values(), ids=BY_HAND)
def test_group_advantages_by_hand(advantage, expected):
    got = advantage(rewarded([1.0, 0, 0, 1], steps=2))
    assert got.shape == (4, 2) and got.dtype == torch.float32
    close(got[:, 0], expected)
    torch.testing.assert_close(got[:, 1], got[:, 0])
    close(advantage(rewarded([8.0, 7, 7, 8]))[:, 0], expected)  # a constant added to all
    close(advantage(rewarded([0.1] * 4))[:, 0], [0.0] * 4, atol=0)  # all equal
    close(advantage(rewarded([3.0]))[:, 0], [0.0], atol=0)  # a group of one


def test_one_success_in_four():
    close(GroupRelative(ddof=1, eps=1e-6)(rewarded([1.0, 0, 0, 0]))[:, 0], [1.499997, -0.499999, -0.499999, -0.499999])
    close(LeaveOneOut()(rewarded([1.0, 0, 0, 0]))[:, 0], [1, -1 / 3, -1 / 3, -1 / 3])


def test_global_and_group_scale():
    # image-flow-rl.md, b2: std of all eight is 0.295804
    reward = [1, 0, 0.5, 0.5, 0.2, 0.2, 0.2, 0.6]
    got = GroupRelative("global")(rewarded(reward, [0] * 4 + [1] * 4))[:, 0]
    close(got, [1.6897, -1.6897, 0, 0, -0.3379, -0.3379, -0.3379, 1.0138], atol=5e-5)
    got = GroupRelative("group")(rewarded(reward, [0] * 4 + [1] * 4))[:, 0]
    close(got, [1.4138, -1.4138, 0, 0, -0.5770, -0.5770, -0.5770, 1.7311], atol=5e-5)
    clipped = GroupRelative("global", clip=1.5)(rewarded(reward, [0] * 4 + [1] * 4))[:, 0]
    close(clipped[:3], [1.5, -1.5, 0])


def test_groups_need_not_be_sorted_or_equal():
    got = GroupRelative(scale=None)(rewarded([1.0, 5, 3, 6], [9, 2, 9, 2]))[:, 0]
    close(got, [-1, -0.5, 1, 0.5])


@pytest.mark.parametrize("advantage", [GroupRelative(eps=0.0), GroupRelative("global"), LeaveOneOut()])
def test_missing_rewards_leave_the_statistics(advantage):
    present = torch.tensor([True, True, False, True, True])
    got = advantage(rewarded([1.0, 0, float("nan"), 0, 1], present=present))[:, 0]
    torch.testing.assert_close(got[present], advantage(rewarded([1.0, 0, 0, 1]))[:, 0])
    assert got[2] == 0


def test_a_present_reward_that_is_no_number_is_an_error():
    with pytest.raises(RewardError, match="row 1 is not finite"):
        GroupRelative()(rewarded([1.0, float("nan")]))
    with pytest.raises(ShapeError, match=r"GroupRelative: reward has shape \[2, 3\], expected \[B\] = \[2\]. Sum"):
        GroupRelative()(batch([[1, 1, 1]] * 2, torch.zeros(2, 3)))
    with pytest.raises(ShapeError, match="Score the rollout first"):
        GroupRelative()(batch([[1]]))


def test_kl_inside_the_reward():
    # old - ref is 0.5 per live decision: penalty 0.1·0.5·[2, 1] = [0.1, 0.05]
    old, ref = Evaluation(logp=torch.full((2, 2), -1.0)), Evaluation(logp=torch.full((2, 2), -1.5))
    rollout = batch([[1, 1], [1, 0]], torch.tensor([1.0, 0.0]), old=old, ref=ref)
    close(LeaveOneOut(kl=0.1)(rollout)[:, 0], [0.95, -0.95])
    assert LeaveOneOut(kl=0.1).needs == {"logp", "ref"} and LeaveOneOut().needs == frozenset()


def test_kl_inside_the_reward_of_every_decision():
    # old - ref is 0.5 at each decision: rewards -0.05 and 1 - 0.05, return to go [0.9, 0.95]
    old = Evaluation(logp=torch.full((1, 2), -1.0), value=torch.zeros(1, 2))
    rollout = batch([[1, 1]], torch.tensor([1.0]), old=old, ref=Evaluation(logp=torch.full((1, 2), -1.5)))
    close(GAE(1.0, 1.0, kl=0.1)(rollout)[0], [0.9, 0.95])
    close(BatchWhitened(kl=0.1, eps=0.0)(rollout)[0], [-1.0, 1.0])
    assert GAE(kl=0.1).needs == {"value", "logp", "ref"} and BatchWhitened(kl=0.1).needs == {"logp", "ref"}


def test_gae_by_hand():
    rollout = batch([[1, 1, 1]], torch.tensor([[0.0, 0, 1]]))
    close(GAE(1.0, 1.0)(rollout)[0], [1, 1, 1])
    close(GAE(1.0, 0.0)(rollout)[0], [0, 0, 1])
    # a reward for the row counts at the last live decision
    close(GAE(0.5, 1.0)(batch([[1, 1, 1, 0]], torch.tensor([1.0])))[0], [0.25, 0.5, 1, 0])


def test_gae_with_a_critic_by_hand():
    # γ=0.9, λ=0.5: δ_2 = 2 - 0.5 = 1.5, δ_1 = 0 + 0.9·0.5 - 1 = -0.55 -> A_1 = -0.55 + 0.45·1.5 = 0.125
    value = torch.tensor([[1.0, 0.5]])
    rollout = batch([[1, 1]], torch.tensor([[0.0, 2.0]]), old=Evaluation(value=value))
    close(GAE(0.9, 0.5)(rollout)[0], [0.125, 1.5])
    close(GAE(0.9, 0.5, whiten=True).target(rollout)[0], [1.125, 2.0])


def test_gae_skips_dead_decisions():
    # the middle decision is a tool's answer: value and accumulator pass over it
    value = torch.tensor([[1.0, float("nan"), 0.5]])
    rollout = batch([[1, 0, 1]], torch.tensor([[0.0, float("nan"), 2.0]]), old=Evaluation(value=value))
    close(GAE(0.9, 0.5)(rollout)[0], [0.125, 0, 1.5])


def test_returns_whitened_over_the_batch():
    # returns to go [1, 1 | 0, dead]: mean 2/3, variance 2/9
    rollout = batch([[1, 1], [1, 0]], torch.tensor([1.0, 0.0]))
    close(BatchWhitened(eps=0.0)(rollout).flatten(), [0.707107, 0.707107, -1.414214, 0])
    # γ = 0.5: [0.5, 1 | 0]: mean 0.5, variance 1/6
    close(BatchWhitened(gamma=0.5, eps=0.0)(rollout).flatten(), [0, 1.224745, -1.224745, 0])
    # centered in its group first: [0.5, 0.5 | -0.5]: the same after whitening
    close(BatchWhitened(baseline=True, eps=0.0)(rollout).flatten(), [0.707107, 0.707107, -1.414214, 0])
    close(BatchWhitened()(batch([[1, 1]] * 2, torch.ones(2))).flatten(), [0.0] * 4, atol=0)


def test_baseline_centers_within_groups():
    rollout = batch([[1]] * 4, torch.tensor([1.0, 0, 9, 9]), [0, 0, 1, 1])
    close(BatchWhitened(baseline=True, eps=0.0)(rollout)[:, 0], [1.414214, -1.414214, 0, 0])


def test_masked_statistics():
    x, mask = torch.tensor([1.0, 3.0, float("nan")]), torch.tensor([True, True, False])
    assert masked_mean(x, mask) == 2 and masked_std(x, mask) == 1 and masked_std(x, mask, ddof=1) == 2**0.5
    close(whiten(x, mask, eps=0.0), [-1.0, 1, 0])
    assert masked_mean(x, mask & False) == 0 and masked_std(x, mask & False) == 0
    stats = group_stats(torch.tensor([1.0, 3, 7]), torch.tensor([4, 4, 2]), torch.tensor([True, True, False]))
    assert stats.mean.tolist() == [2, 2, 0] and stats.size.tolist() == [2, 2, 0]
    assert stats.low.tolist()[:2] == [1, 1] and stats.high.tolist()[:2] == [3, 3]
