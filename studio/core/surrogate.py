"""How credit and movement combine: (log_ratio ℓ, advantage A, mask) -> objective [B, T], to be maximized.

Bounds are decided on ℓ, never on exp(ℓ): clips get as small as 2e-6, a range in which float32 has about 30 ratios.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from studio.errors import ConfigError
from studio.protocols import Surrogate
from studio.types import Evaluation, Rollout


class Clipped(NamedTuple):
    """Which decisions a surrogate holds back, [B, T] bool each."""

    above: Tensor  # the ratio is too large to be raised further
    below: Tensor  # the ratio is too small to be lowered further


@runtime_checkable
class Clipping(Protocol):
    """A surrogate that can say which decisions it clips; `policy_loss` reports the shares."""

    def clipped(self, log_ratio: Tensor, advantage: Tensor) -> Clipped: ...


@runtime_checkable
class Observing(Protocol):
    """A surrogate that looks at more than ratio and advantage, e.g. at how far the step's mean moved."""

    def seen(self, new: Evaluation, rollout: Rollout) -> Surrogate: ...


def plain_ratio(log_ratio: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
    """The unclipped importance-weighted objective.  r·A, r = exp(ℓ) -> [B, T]."""
    return advantage * log_ratio.exp()


@dataclass(frozen=True)
class Clip:
    """The pessimistic clipped objective.

    min(r·A, clip(r, 1 - low, 1 + high)·A), and where A < 0 at least cap·A -> [B, T]
    PPO (arXiv:1707.06347); the cap is dual clip (arXiv:1912.09729).  The gradient is exactly 0 where a bound is active.
    """

    low: float = 0.2  # lower clip distance; 1 or more = none
    high: float = 0.2  # upper clip distance; inf = none
    cap: float | None = None  # largest ratio that counts where A < 0, above 1 + high

    def __post_init__(self) -> None:
        if self.low < 0 or self.high < 0:
            got = f"low={self.low}, high={self.high}"
            raise ConfigError(f"Clip: expected distances >= 0, got {got}. Use 0.2 and 0.2 for ratios from 0.8 to 1.2.")
        if self.cap is not None and self.cap <= 1:
            raise ConfigError(f"Clip: expected cap > 1, got {self.cap}. Use 3, or null for none.")

    def __call__(self, log_ratio: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
        return advantage * self.bounded(log_ratio, advantage).exp()

    def bounded(self, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        """ℓ up to the bound that is active for the sign of A, without gradient beyond it."""
        lower, upper = log_bounds(self.low, self.high)
        cap = math.inf if self.cap is None else math.log(self.cap)
        floor = torch.full_like(advantage, -math.inf).masked_fill(advantage < 0, lower)
        ceiling = torch.full_like(advantage, cap).masked_fill(advantage >= 0, upper)
        return log_ratio.clamp(floor.to(log_ratio.dtype), ceiling.to(log_ratio.dtype))

    def clipped(self, log_ratio: Tensor, advantage: Tensor) -> Clipped:
        lower, upper = log_bounds(self.low, self.high)
        above = (log_ratio > upper) & (advantage > 0)
        if self.cap is not None:
            above = above | (log_ratio > math.log(self.cap)) & (advantage < 0)
        return Clipped(above, below=(log_ratio < lower) & (advantage < 0))


@dataclass(frozen=True)
class KeepGradientClip:
    """The clipped objective whose clipped decisions keep a bounded gradient.

    A·β·sg(bound)·r/sg(r) where a bound is active, so value and gradient with respect to ℓ are A·β·bound -> [B, T]
    GPPO (arXiv:2508.07629); its general form scales the two sides.  Past the cap the gradient is 0, as in Clip.
    """

    low: float = 0.2  # lower clip distance
    high: float = 0.2  # upper clip distance
    cap: float | None = None  # dual clip, as in Clip; None = no decision loses its gradient
    scale_low: float = 1.0  # β₁, of decisions held below
    scale_high: float = 1.0  # β₂, of decisions held above where A > 0

    def __call__(self, log_ratio: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
        clip = Clip(self.low, self.high, self.cap)
        above, below = clip.clipped(log_ratio, advantage)
        free = (log_ratio - log_ratio.detach()).masked_fill(above & (advantage < 0), 0.0)
        scale = torch.ones_like(advantage).masked_fill(below, self.scale_low).masked_fill(above & (advantage > 0), self.scale_high)
        return scale * advantage * (clip.bounded(log_ratio, advantage).detach() + free).exp()

    def clipped(self, log_ratio: Tensor, advantage: Tensor) -> Clipped:
        return Clip(self.low, self.high, self.cap).clipped(log_ratio, advantage)


@dataclass(frozen=True)
class StopClip:
    """REINFORCE with a clipped importance weight: no decision loses its gradient.

    sg(clip(r, floor, bound))·A·ℓ -> [B, T]
    CISPO (arXiv:2506.13585).  The value is not an objective to compare between steps; only its gradient is meant.
    """

    bound: float = 5.0  # largest weight: the bound itself, not a distance from 1
    floor: float = 0.0  # smallest weight

    def __call__(self, log_ratio: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
        weight = log_ratio.detach().exp().clamp(self.floor, self.bound)
        return weight * advantage * log_ratio

    def clipped(self, log_ratio: Tensor, advantage: Tensor) -> Clipped:
        floor = math.log(self.floor) if self.floor > 0 else -math.inf
        return Clipped(above=log_ratio > math.log(self.bound), below=log_ratio < floor)


def log_bounds(low: float, high: float) -> tuple[float, float]:
    """(ln(1 - low), ln(1 + high)), exact for tiny distances; -inf where low is 1 or more."""
    return (math.log1p(-low) if low < 1 else -math.inf), math.log1p(high)
