"""A soft gate in place of the clip: the gradient fades as the ratio leaves one, and never ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from studio.core import GroupRelative, Objective


@dataclass(frozen=True)
class SoftClip:
    """A·(4/τ)·σ(τ·(r - 1)), with τ by the sign of A -> [B, T].  SAPO (arXiv:2511.20347).

    Its gradient with respect to ℓ is A·r·4·σ·(1 - σ): A at r = 1, whatever τ.
    """

    rise: float = 1.0  # τ where A > 0
    fall: float = 1.05  # τ elsewhere

    def __call__(self, log_ratio: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
        tau = torch.full_like(advantage, self.fall).masked_fill(advantage > 0, self.rise)
        return advantage * 4 / tau * torch.sigmoid(tau * log_ratio.expm1())


@dataclass(frozen=True)
class SAPO:
    """SAPO (arXiv:2511.20347).  Maximizes A·(4/τ)·σ(τ·(r - 1)); group z-scores, equal weight per sample, no KL."""

    rise: Annotated[float, Field(gt=0)] = 1.0  # τ_pos, how fast the gradient fades where A > 0; the paper's, and TRL's and verl's
    fall: Annotated[float, Field(gt=0)] = 1.05  # τ_neg, faster where A <= 0, ibid.
    eps: float = 1e-4  # added to the group's standard deviation, as in TRL

    def objective(self) -> Objective:
        return Objective(GroupRelative(ddof=1, eps=self.eps), surrogate=SoftClip(self.rise, self.fall))
