"""Answers at several budgets of thinking: each part of a thought is credited with the scores it can still influence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from studio.core import ByLength, Clip, Objective
from studio.core.advantage import decision_reward
from studio.core.masked import group_stats
from studio.core.segment import has_segment, over_segments, segment_of, segment_sum
from studio.types import Rollout

Prior = Literal["uniform", "linear", "base"]
Baseline = Literal["both", "earlier", "group", "none"]


def budget_prior(prior: Prior, count: int) -> Tensor:
    """How likely each of `count` even budgets is: alike, in proportion to the budget, or all on the last -> [S] float64."""
    weight = {
        "uniform": torch.ones(count, dtype=torch.float64),
        "linear": torch.arange(1, count + 1, dtype=torch.float64),
        "base": torch.nn.functional.one_hot(torch.tensor(count - 1), count).double(),
    }[prior]
    return weight / weight.sum()


def budget_advantage(score: Tensor, prior: Tensor, baseline: Baseline = "both") -> Tensor:
    """Return from a segment on against what the thought had reached before it and against the group.

    ret_s = Σ_{k≥s} π_k J_k,  v2 = mean_g ret_s,  v1 = (Σ_{k<s} 2^k J_k / Σ_{k<s} 2^k)·Σ_{k≥s} π_k, 0 for s = 0,
    A_s = ret_s - (s·v1 + (S-s)·v2)/S.  score J [P, G, S], prior π [S] -> [P, G, S].  BRPO (arXiv:2505.13438).
    """
    later = returns(score, prior)
    return later - mixed_baseline(score, prior, later.mean(dim=1, keepdim=True), baseline)


def returns(score: Tensor, prior: Tensor) -> Tensor:
    """ret_s = Σ_{k≥s} π_k J_k.  score [..., S] -> [..., S]."""
    return (prior * score).flip(-1).cumsum(-1).flip(-1)


def mixed_baseline(score: Tensor, prior: Tensor, group: Tensor, baseline: Baseline = "both") -> Tensor:
    """(s·v1 + (S-s)·v2)/S, v2 = `group` the mean return of the group.  score [..., S] -> [..., S]; ablations take one of them."""
    count = score.shape[-1]
    at = torch.arange(count, dtype=score.dtype, device=score.device)
    double = 2**at
    before = (double * score).cumsum(-1) - double * score
    own = before / (double.cumsum(0) - double).clamp(min=1) * prior.flip(0).cumsum(0).flip(0)
    if baseline == "both":
        return (at * own + (count - at) * group) / count
    return {"earlier": own, "group": group, "none": torch.zeros_like(score)}[baseline].expand_as(score)


@dataclass(frozen=True)
class BudgetRelative:
    """`budget_advantage` of rows whose segments end at budgets, each with the score of the answers that were asked for there.

    J_s = Σ of the rewards [B, T] in segment s; a thought that ended early keeps its last score at later budgets -> [B, T]
    Rewards [B] are one score: S = 1, the centered advantage of Dr. GRPO.  Answers are rows of their own, in segment 0, whose
    group is the cut they were asked for at: they get their score minus the mean of their group.
    """

    prior: Prior = "linear"
    baseline: Baseline = "both"

    def __call__(self, rollout: Rollout) -> Tensor:
        reward = decision_reward(rollout, "BRPO")
        one = rollout.reward is None or rollout.reward.ndim == 1
        segment = torch.zeros_like(rollout.mask, dtype=torch.int64) if one else segment_of(rollout)
        score, there = segment_sum(reward, segment, rollout.mask), has_segment(segment, rollout.mask)
        for s in range(1, score.shape[1]):
            score[:, s] = torch.where(there[:, s], score[:, s], score[:, s - 1])
        prior = budget_prior(self.prior, score.shape[1]).to(score.device)
        later, live = returns(score, prior), rollout.mask.any(dim=1)
        group = torch.stack([group_stats(column, rollout.group, live).mean for column in later.unbind(dim=1)], dim=1)
        return over_segments(later - mixed_baseline(score, prior, group, self.baseline), rollout, segment)


@dataclass(frozen=True)
class BRPO:
    """BRPO of AnytimeReasoner (arXiv:2505.13438).  Budget-relative advantages, no division by deviations; clip; constant length."""

    clip: Annotated[float, Field(gt=0)] = 0.2
    prior: Prior = "linear"  # over budgets: AR-linear, the paper's headline results
    baseline: Baseline = "both"  # of the thought and of the group; the others are the paper's ablations
    length: Annotated[int, Field(ge=1)] | None = None  # the longest a row can get, which divides; None = longest live row

    def objective(self) -> Objective:
        return Objective(
            BudgetRelative(self.prior, self.baseline), surrogate=Clip(self.clip, self.clip), weighting=ByLength(self.length)
        )
