"""Masked-diffusion models without keeping all Monte-Carlo samples in memory: a bound that adds up over them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from studio.core import Clip, GroupRelative, Objective, fit_ratio
from studio.core.surrogate import Clipped


@dataclass(frozen=True)
class Boundary:
    """PPO's clipped objective per Monte-Carlo sample, with a ratio whose mean bounds the row's from the side that matters.

    A > 0: ρ = 1 + D, the tangent;  A < 0: ρ = exp(D), Jensen;  min(ρ·A, clip(ρ, 1 ± clip)·A), at least cap·A where A < 0
    A·exp(mean_k D_k) >= mean_k A·ρ_k, without the clips.  BGPO (arXiv:2510.11683).  D is a difference of log-likelihood bounds.
    """

    low: float = 0.2
    high: float = 0.2
    cap: float | None = 3.0  # dual clip

    def __call__(self, log_ratio: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
        rise = 1 + log_ratio.clamp(max=self.high)  # the lower bound of the clip never acts where A > 0
        return torch.where(advantage > 0, advantage * rise, Clip(self.low, self.high, self.cap)(log_ratio, advantage, mask))

    def clipped(self, log_ratio: Tensor, advantage: Tensor) -> Clipped:
        above, below = Clip(self.low, math.inf, self.cap).clipped(log_ratio, advantage)
        return Clipped(above | (log_ratio > self.high) & (advantage > 0), below)


@dataclass(frozen=True)
class BGPO:
    """Boundary-guided policy optimization (arXiv:2510.11683).  Group z-scores; mean over Monte-Carlo samples of a clipped bound.

    For a policy whose decisions are the M samples of a row's likelihood bound, `fit` = minus the bound per token, at the same
    masks for old and new. Each decision may be replayed alone (train.split_steps), so memory does not grow with M.
    The release weighs rows by their tokens; here every row counts the same, as decisions do not show how long a row is.
    """

    clip: Annotated[float, Field(gt=0)] = 0.2
    cap: Annotated[float, Field(gt=1)] | None = 3.0  # dual clip: largest ratio that counts where A < 0
    eps: Annotated[float, Field(ge=0)] = 1e-6  # added to the group's standard deviation, as in verl

    def objective(self) -> Objective:
        return Objective(GroupRelative(ddof=1, eps=self.eps), ratio=fit_ratio, surrogate=Boundary(self.clip, self.clip, self.cap))
