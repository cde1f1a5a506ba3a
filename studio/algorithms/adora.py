"""Groups that teach less count less: advantages are weighed by what the group's lengths or successes say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from studio.core import Clip, GroupRelative, Objective, active, by_decision, kl_low_variance
from studio.core.advantage import row_reward, spread
from studio.core.masked import group_stats
from studio.types import Rollout

Edges = Literal["text", "vision"]


@dataclass(frozen=True)
class LengthUtility:
    """`hit` for groups whose longest correct row is longer than the mean of their short wrong ones, else `miss` -> [B, T].

    Lengths are live decisions; short is below `limit`.  Without a correct row: text misses, vision hits.  Without a short
    wrong row: text hits if some row is correct, vision misses.
    """

    correct: float  # a row is correct where its reward is above this
    limit: int
    edges: Edges
    hit: float
    miss: float

    def __call__(self, rollout: Rollout, advantage: Tensor) -> Tensor:
        reward, present = row_reward(rollout, "LengthUtility")
        length = rollout.mask.sum(dim=1).to(reward.device)
        right = present & (reward.float() > self.correct)
        longest = group_stats(length, rollout.group, right).high  # -inf without a correct row
        wrong = group_stats(length, rollout.group, present & ~right & (length < self.limit))
        none = -math.inf if self.edges == "text" else math.inf
        hit = longest > torch.where(wrong.size > 0, wrong.mean, none)
        if self.edges == "vision":
            hit = hit | torch.isinf(longest)
        return spread(torch.where(hit, self.hit, self.miss), rollout)


@dataclass(frozen=True)
class DifficultyUtility:
    """`hit` for groups of which fewer than `share` succeed, else `miss` -> [B, T].  A *reconstruction*."""

    correct: float  # a row is correct where its reward is above this
    share: float
    hit: float
    miss: float

    def __call__(self, rollout: Rollout, advantage: Tensor) -> Tensor:
        reward, present = row_reward(rollout, "DifficultyUtility")
        success = group_stats((reward.float() > self.correct).double(), rollout.group, present).mean
        return spread(torch.where(success < self.share, self.hit, self.miss), rollout)


@dataclass(frozen=True)
class ADORA:
    """ADORA (arXiv:2602.10019): GRPO whose groups count `hit` or `miss`.  w_g·A, w_g in {1, 0.1}.

    Defaults are the released text version, which attenuates; the paper also amplifies for strong models: `hit` above 1.
    The difficulty criterion is a *reconstruction*, its threshold not found. `edges` differ in groups without any correct or
    any wrong answer, whose advantages are 0 where rewards are 0 or 1.
    """

    criterion: Literal["length", "difficulty"] = "length"
    correct: float = 0.5  # an answer is correct where its reward is above; vision release; the text release's own reward: 1.01
    limit: Annotated[int, Field(gt=0)] = 4054  # length: wrong answers as long as this do not count; script 3900, vision 4094
    edges: Edges = "text"  # length: groups without correct or without wrong answers, as in the text or the vision release
    share: Annotated[float, Field(gt=0)] = 0.5  # difficulty: τ, a group is hard where fewer succeed; not found in the paper
    hit: Annotated[float, Field(ge=0)] = 1.0  # weight where the criterion holds
    miss: Annotated[float, Field(ge=0)] = 0.1  # λ, weight where it does not; 0 leaves such groups out
    clip: float = 0.2  # clip distance on both sides, verl's
    kl: Annotated[float, Field(ge=0)] = 0.001  # strength of the k3 KL, script of the text release
    eps: float = 1e-6  # added to the group's standard deviation, ibid.

    def objective(self) -> Objective:
        length = LengthUtility(self.correct, self.limit, self.edges, self.hit, self.miss)
        difficulty = DifficultyUtility(self.correct, self.share, self.hit, self.miss)
        return Objective(
            GroupRelative(ddof=1, eps=self.eps),
            gate=length if self.criterion == "length" else difficulty,
            surrogate=Clip(self.clip, self.clip),
            weighting=by_decision,
            regularizers=active((self.kl, kl_low_variance)),
        )
