"""Clip bounds that move until raising likelihoods weighs enough against lowering them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from studio.core import Clip, GroupRelative, Objective, by_decision
from studio.core.declare import Span
from studio.core.surrogate import Clipped
from studio.errors import ConfigError
from studio.types import Rollout

Scope = Literal["previous", "micro"]


@dataclass
class BalancedClip:
    """PPO's clip between ratios [low, high] that are searched for a balance -> [B, T].  BAPO (arXiv:2510.18927).

    pos(high) = Σ w·A⁺·min(r, high),  neg(low) = Σ w·A⁻·max(r, low),  q = pos / (neg + eps), inf where neg = 0
    While q < target, low climbs through `lows`; while q is still below, high climbs through `highs`.
    Raising low never raises q: when the target is missed at the start, low ends at its last point. Both sums are measured on
    the whole grid, so that the search needs no second pass.
    """

    lows: Sequence[float]  # bounds below, as ratios, from the start to the last resort
    highs: Sequence[float]  # bounds above
    target: float  # smallest q
    cap: float | None = None  # dual clip: largest ratio that counts where A < 0
    scope: Scope = "previous"  # previous: from the last optimizer step; micro: in every call, from what the call sees
    eps: float = 1e-8
    low: float = field(init=False)  # bounds now
    high: float = field(init=False)
    share: float = 0.0  # pos / (pos + neg) at the bounds that were found last; q = share / (1 - share)

    def __post_init__(self) -> None:
        self.low, self.high = self.lows[0], self.highs[0]

    @property
    def span(self) -> Span:
        return "batch" if self.scope == "micro" else "decision"

    def __call__(self, log_ratio: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
        return self._clip(log_ratio, advantage)(log_ratio, advantage, mask)

    def clipped(self, log_ratio: Tensor, advantage: Tensor) -> Clipped:
        return self._clip(log_ratio, advantage).clipped(log_ratio, advantage)

    def measure(self, log_ratio: Tensor, advantage: Tensor, weight: Tensor) -> Tensor:
        ratio, gain = log_ratio.exp(), weight * advantage
        raised, lowered = gain.clamp(min=0), -gain.clamp(max=0)
        pos = [(raised * ratio.clamp(max=high)).sum() for high in self.highs]
        neg = [(lowered * ratio.clamp(min=low)).sum() for low in self.lows]
        return torch.stack(pos + neg)

    def learn(self, measured: Tensor) -> None:
        if self.scope == "previous":
            self.low, self.high = self.search(measured)

    def search(self, measured: Tensor) -> tuple[float, float]:
        """The first bounds, low before high, that reach the target; the last ones when none does."""
        sums = measured.tolist()
        pos, neg = sums[: len(self.highs)], sums[len(self.highs) :]

        def enough(i: int, j: int) -> bool:
            return neg[i] <= 0 or pos[j] / (neg[i] + self.eps) >= self.target

        i = next((i for i in range(len(neg)) if enough(i, 0)), len(neg) - 1)
        j = next((j for j in range(len(pos)) if enough(i, j)), len(pos) - 1)
        self.share = pos[j] / (pos[j] + neg[i] + self.eps)
        return self.lows[i], self.highs[j]

    def told(self) -> dict[str, float]:
        return {"ratio/low": self.low, "ratio/high": self.high, "ratio/raised": self.share}

    def update(self, rollout: Rollout) -> None:
        """Nothing: it learns from optimizer steps."""

    def state_dict(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high, "share": self.share}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.low, self.high, self.share = state["low"], state["high"], state["share"]

    def _clip(self, log_ratio: Tensor, advantage: Tensor) -> Clip:
        if self.scope == "micro":  # dead decisions have advantage 0 and count for nothing
            with torch.no_grad():
                self.low, self.high = self.search(self.measure(log_ratio, advantage, torch.ones_like(advantage)))
        return Clip(1 - self.low, self.high - 1, self.cap)


def climb(start: float, last: float, step: float, name: str) -> tuple[float, ...]:
    """start, start + step, ... up to `last`, which is always the final point."""
    if not start <= last:
        raise ConfigError(f"BAPO: expected {name}_start <= {name}_max, got {start:g} and {last:g}. Set both, or make them equal.")
    count = math.ceil((last - start) / step - 1e-9)  # 0.2 / 0.05 must count as 4
    return (*(start + k * step for k in range(count)), last)


@dataclass(frozen=True)
class BAPO:
    """BAPO, balanced adaptive clipping (arXiv:2510.18927).  Group z-scores, every token equal, no KL.

    The release searches in every call of the loss, so that its bounds depend on how the batch is cut: `bounds_scope: micro`
    (here each process searches for itself, there all together). `previous` takes what the last optimizer step measured over
    the whole batch: free, and the same for every cut. Bounds are ratios. The target is a ratio of sums: the paper's share of
    0.5 is 1.0, and the 0.5 of the release's example script is a share of 1/3.
    """

    target: Annotated[float, Field(ge=0)] = 1.0  # q at least; config of the release, and the paper's share of 0.5
    low_start: Annotated[float, Field(gt=0, le=1)] = 0.6  # README; example script 0.8
    low_max: Annotated[float, Field(gt=0, le=1)] = 0.9  # README; config 0.8, example script 0.95
    low_step: Annotated[float, Field(gt=0)] = 0.05  # config of the release
    high_start: Annotated[float, Field(ge=1)] = 1.2  # README
    high_max: Annotated[float, Field(ge=1)] = 3.0  # README; config and example script 2.0
    high_step: Annotated[float, Field(gt=0)] = 0.05  # config of the release; example script 0.1
    cap: float | None = 3.0  # dual clip: largest ratio that counts where A < 0; verl's, which the release keeps
    bounds_scope: Scope = "previous"
    eps: float = 1e-6  # added to the group's standard deviation, as in verl

    def objective(self) -> Objective:
        lows = climb(self.low_start, self.low_max, self.low_step, "low")
        highs = climb(self.high_start, self.high_max, self.high_step, "high")
        return Objective(
            GroupRelative(ddof=1, eps=self.eps),
            surrogate=BalancedClip(lows, highs, self.target, self.cap, self.bounds_scope),
            weighting=by_decision,
        )
