"""DPPO: every step of a denoising chain has its own ratio, its own clip and its own share of the action's advantage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from studio.core import GAE, Objective, ValueLoss, by_decision
from studio.core.declare import needs
from studio.core.surrogate import Clipped
from studio.shapes import expect
from studio.types import Evaluation, Rollout


@needs("sigma")
@dataclass(frozen=True)
class ChainClip:
    """The clipped objective with a range that grows along the chain, and advantages that fade toward its noise.

    c = base + (clip - base)·(e^{growth·p} - 1)/(e^growth - 1), p = 1 - sigma;  A_k = fade^k·A, k steps before the last
    min(r·A_k, clip(r, 1 - c, 1 + c)·A_k) -> [B, T], sigma 1 at the first of the T steps, 0 at the last.  DPPO (arXiv:2409.00588).
    """

    clip: float = 0.2
    base: float = 0.001
    growth: float = 3.0
    fade: float = 0.99

    def seen(self, new: Evaluation, rollout: Rollout) -> _Placed:
        sigma = expect(new.sigma, "B T", name="ChainClip: sigma", B=len(rollout.mask))
        return _Placed(self.reach(sigma), self.fade ** (sigma * (sigma.shape[1] - 1)))

    def reach(self, sigma: Tensor) -> Tensor:
        """c of steps at these places, [..]."""
        return self.base + (self.clip - self.base) * (self.growth * (1 - sigma)).expm1() / math.expm1(self.growth)

    def __call__(self, log_ratio: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
        raise TypeError("ChainClip looks at the steps' places: call seen(new, rollout) first, as policy_loss does.")


@dataclass(frozen=True)
class _Placed:
    reach: Tensor  # [B, T] c
    share: Tensor  # [B, T] of the advantage

    def __call__(self, log_ratio: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
        lower, upper = self.bounds()
        bounded = torch.where(advantage >= 0, log_ratio.minimum(upper), log_ratio.maximum(lower))
        return self.share * advantage * bounded.exp()

    def clipped(self, log_ratio: Tensor, advantage: Tensor) -> Clipped:
        lower, upper = self.bounds()
        return Clipped((log_ratio > upper) & (advantage > 0), (log_ratio < lower) & (advantage < 0))

    def bounds(self) -> tuple[Tensor, Tensor]:
        return (-self.reach).log1p(), self.reach.log1p()


@dataclass(frozen=True)
class DPPO:
    """DPPO (arXiv:2409.00588).  Use it with policy `dppo`.

    Published for Gym: clip and base both 0.01 to fine-tune, both 0.1 from scratch; as FPO's comparison both 0.2.
    """

    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2  # of the last step
    base: Annotated[float, Field(gt=0, lt=1)] = 0.001  # of the first step
    growth: Annotated[float, Field(gt=0)] = 3.0  # how late the range grows
    fade: Annotated[float, Field(gt=0, le=1)] = 0.99  # γ_dn: discount of the advantage per step before the last
    gamma: float = 0.99  # discount
    lam: float = 0.95  # λ of GAE
    value: float = 0.5  # strength of ½·(v - R)²

    def objective(self) -> Objective:
        return Objective(
            GAE(self.gamma, self.lam, whiten=True),
            surrogate=ChainClip(self.clip, self.base, self.growth, self.fade),
            weighting=by_decision,
            critic=ValueLoss(self.value),
        )
