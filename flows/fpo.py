"""FPO and FPO++: the ratio is how much better the policy matches its own action than before."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from studio.core import GAE, Clip, Objective, ValueLoss, by_decision, fit_ratio
from studio.core.declare import needs
from studio.core.surrogate import Clipped, log_bounds
from studio.protocols import Ratio
from studio.types import Evaluation, Rollout

Above0 = Annotated[float, Field(gt=0)]


@needs("fit")
@dataclass(frozen=True)
class BoundedFit:
    """Log ratio from matching errors within bounds.  ℓ = clip(fit_old - fit_new, low, high) -> [B, T]

    `through`: beyond the bounds the gradient stays what it is without them.
    """

    low: float = -math.inf
    high: float = math.inf
    through: bool = False

    def __call__(self, new: Evaluation, rollout: Rollout) -> Tensor:
        free = fit_ratio(new, rollout)
        held = free.clamp(self.low, self.high)
        return held.detach() + free - free.detach() if self.through else held


@dataclass(frozen=True)
class AsymmetricClip:
    """Clipped where a decision was good, quadratic where it was bad, so that a ratio can be pulled back.

    A ≥ 0: min(r·A, (1 + clip)·A) · A < 0: r·A - |A|/(2·clip)·(r - 1)², which is stationary at r = 1 - clip -> [B, T]
    FPO++ (arXiv:2602.02481); the quadratic term is SPO's.
    """

    clip: float = 0.05  # ε

    def __call__(self, log_ratio: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
        good = Clip(self.clip, self.clip)(log_ratio, advantage.clamp(min=0), mask)
        bad, shift = advantage.clamp(max=0), log_ratio.expm1()  # 0 for all others: |A| = -A here
        return good + bad * (1 + shift) + bad / (2 * self.clip) * shift.square()

    def clipped(self, log_ratio: Tensor, advantage: Tensor) -> Clipped:
        """Above: the gradient is 0. Below: it points back."""
        lower, upper = log_bounds(self.clip, self.clip)
        return Clipped((log_ratio > upper) & (advantage > 0), (log_ratio < lower) & (advantage < 0))


@dataclass(frozen=True)
class FPO:
    """FPO (arXiv:2507.21053): PPO with the fall of the matching error as log ratio.  Use it with policy `fpo`."""

    clip: Above0 = 0.05  # ε; 0.2 for its grid world, 0.01 for its humanoid
    bound: Above0 | None = None  # largest |log ratio|; 3 where every point has its own
    gamma: float = 0.995  # discount
    lam: float = 0.95  # λ of GAE
    value: float = 0.5  # strength of ½·(v - R)²: 0.5 is 0.25 on the plain square

    def objective(self) -> Objective:
        ratio: Ratio = fit_ratio if self.bound is None else BoundedFit(-self.bound, self.bound)
        return Objective(
            GAE(self.gamma, self.lam, whiten=True),
            ratio=ratio,
            surrogate=Clip(self.clip, self.clip),
            weighting=by_decision,
            critic=ValueLoss(self.value),
        )


@dataclass(frozen=True)
class FPOPlus:
    """FPO++ (arXiv:2602.02481): an asymmetric trust region, for policy `fpo` with a ratio for every point.  *Reconstruction*

    from a port and notes of the paper.
    """

    clip: Above0 = 0.05  # ε; 0.15 to 0.2 in one port
    bound: Above0 = 10.0  # largest log ratio; its gradient stays
    gamma: float = 0.99  # discount
    lam: float = 0.95  # λ of GAE
    value: float = 2.0  # strength of ½·(v - R)²: 2 is 1 on the plain square

    def objective(self) -> Objective:
        return Objective(
            GAE(self.gamma, self.lam, whiten=True),
            ratio=BoundedFit(high=self.bound, through=True),
            surrogate=AsymmetricClip(self.clip),
            weighting=by_decision,
            critic=ValueLoss(self.value),
        )
