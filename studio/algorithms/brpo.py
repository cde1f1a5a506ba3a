"""Answers at several budgets of thinking: each part of a thought is credited with the scores it can still influence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from studio.core import ByLength, Clip, Objective
from studio.core.advantage import decision_reward, row_reward
from studio.core.masked import group_stats
from studio.core.segment import has_segment, over_segments, segment_of, segment_sum
from studio.errors import ShapeError
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
    group is the cut they were asked for at: they get their score minus the mean of their group.  Rewards [B] of prompts
    `budgets` are read so, see `at_cuts`.
    """

    prior: Prior = "linear"
    baseline: Baseline = "both"

    def __call__(self, rollout: Rollout) -> Tensor:
        budgets = rollout.prompts.info[0].get("budgets") if len(rollout.prompts) else None
        if budgets:
            rollout = at_cuts(rollout, budgets)
        reward, count = decision_reward(rollout, "BRPO"), budgets["cuts"] if budgets else None
        one = rollout.reward is None or rollout.reward.ndim == 1
        segment = torch.zeros_like(rollout.mask, dtype=torch.int64) if one else segment_of(rollout)
        score, there = segment_sum(reward, segment, rollout.mask, count), has_segment(segment, rollout.mask, count)
        for s in range(1, score.shape[1]):
            score[:, s] = torch.where(there[:, s], score[:, s], score[:, s - 1])
        prior = budget_prior(self.prior, score.shape[1]).to(score.device)
        later, live = returns(score, prior), rollout.mask.any(dim=1)
        group = torch.stack([group_stats(column, rollout.group, live).mean for column in later.unbind(dim=1)], dim=1)
        return over_segments(later - mixed_baseline(score, prior, group, self.baseline), rollout, segment)


def at_cuts(rollout: Rollout, budgets: Mapping[str, Any]) -> Rollout:
    """Blocks of a thought and its answers, with rewards [B] -> the same with rewards [B, T], segments and groups.

    Decision t of a thought is in segment ⌊t/size⌋, size that of the smallest budget; its score J_s is the mean reward of the
    answers at its end. Those at later cuts of a thought that ended there answer the same question and count with them. A thought
    without a score somewhere is dead. Answers of one cut of one thought become a group. The layout is that of prompts `budgets`.
    """
    rows, steps = rollout.mask.shape
    cuts, size = budgets["cuts"], budgets["thinking"] // budgets["cuts"]
    block = 1 + cuts * budgets["answers"]
    if rows % block:
        raise ShapeError(f"BRPO: expected blocks of {block} rows, a thought with its answers, got {rows} rows. Keep them together.")
    row, at = (torch.arange(n, device=rollout.mask.device) for n in (rows, steps))
    number, inside = row // block, row % block  # of the thought, and 0 for itself
    part = (at // size).clamp(max=cuts - 1).expand(rows, steps)
    last = part.masked_fill(~rollout.mask, -1).amax(1)[number * block]  # segment in which the row's thought ended
    cut = (inside - 1).clamp(min=0) // budgets["answers"]
    place = number * cuts + torch.where(last < 0, cut, torch.minimum(cut, last))
    score, known = _means(rollout, place, inside > 0, rows // block * cuts)
    score, known = (x.view(-1, cuts)[number] for x in (score, known))
    scored = (known | (torch.arange(cuts, device=at.device) > last[:, None])).all(1)
    dense = torch.where(at % size == 0, score.gather(1, part), 0.0)  # at the first decision of each segment
    group = rollout.group.to(at.device)
    return replace(
        rollout,
        reward=torch.where((inside > 0)[:, None], decision_reward(rollout, "BRPO"), dense),
        mask=rollout.mask & ((inside > 0) | scored)[:, None],
        segment=part * (inside == 0)[:, None],
        group=torch.where(inside > 0, group.max() + 1 + place, group),
    )


def _means(rollout: Rollout, place: Tensor, counts: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Mean reward of the rows at each place that count and have one, and whether there are any -> [size], [size]."""
    reward, present = (x.to(place.device) for x in row_reward(rollout, "BRPO"))
    there = (counts & present).double()
    sums, sizes = (there.new_zeros(size).index_add(0, place, x) for x in (there * reward, there))
    return sums / sizes.clamp(min=1), sizes > 0


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
