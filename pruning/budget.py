"""What is to remain: a share of parameters, of operations or of the measured time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from pruning.allocate import Scope, allocate, removable
from pruning.sites import Group
from studio.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Target:
    """The share of the whole network that remains, of one of three measures. Give exactly one."""

    params: float | None = None  # of all parameters of the denoiser
    flops: float | None = None  # of the operations of one forward
    latency: float | None = None  # of the measured time of one forward, on this machine

    def __post_init__(self) -> None:
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        if len(given) != 1:
            raise ValueError(
                f"target: expected exactly one of params, flops and latency, got {', '.join(given) or 'none'}. Write for example "
                "target: {params: 0.8}."
            )
        value = next(iter(given.values()))
        if not 0 < value <= 1:
            raise ValueError(f"target.{self.measure}: expected the share that remains, in (0, 1], got {value:g}. For example 0.8.")

    @property
    def measure(self) -> str:
        return next(f.name for f in fields(self) if getattr(self, f.name) is not None)

    @property
    def share(self) -> float:
        return getattr(self, self.measure)


@dataclass(frozen=True)
class Budget:
    """Costs of the units, of the whole network, and the share of it that remains."""

    groups: Sequence[Group]
    costs: Mapping[str, float]  # of one unit, per group
    whole: float  # of the network
    share: float  # that remains
    scope: Scope = "global"
    per_cost: bool = False
    align: int = 1
    min_keep: int = 1

    def __post_init__(self) -> None:
        least = self.least()
        if self.share < least - 1e-12:
            raise ConfigError(
                f"recipe.target: expected at least {least:.4f}, where every module is down to min_keep = {self.min_keep} units "
                f"(align {self.align}), got {self.share:g}. Raise the target, or allow more with sites.kinds or a lower min_keep."
            )

    def least(self) -> float:
        """The smallest share that can remain."""
        return 1 - removable(self.groups, self.costs, align=self.align, min_keep=self.min_keep) / self.whole

    def along(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """g - c·(g·c)/(c·c), c the cost of each unit: the part of a gradient over gates that leaves the budget as it is."""
        inner = sum(gradients[g.name].sum() * self.costs[g.name] for g in self.groups)
        price = inner / sum(g.units * self.costs[g.name] ** 2 for g in self.groups)
        return {g.name: gradients[g.name] - price * self.costs[g.name] for g in self.groups}

    def keep(self, scores: Mapping[str, Tensor], share: float | None = None) -> dict[str, Tensor]:
        """Indices of the units that stay within the budget, per group."""
        remove = (1 - (self.share if share is None else share)) * self.whole
        options = {"scope": self.scope, "per_cost": self.per_cost, "align": self.align, "min_keep": self.min_keep}
        return allocate(self.groups, scores, self.costs, remove, **options)  # type: ignore[arg-type]

    def remaining(self, counts: Mapping[str, int]) -> float:
        """Share of the network that remains when so many units of each group stay."""
        return 1 - sum((g.units - counts[g.name]) * self.costs[g.name] for g in self.groups) / self.whole

    def expected(self, opens: Mapping[str, Tensor]) -> Tensor:
        """E[share that remains] = 1 - Σ_i cost_i·(1 - P(m_i > 0))/whole."""
        lost = sum((1 - opens[g.name]).sum() * (self.costs[g.name] / self.whole) for g in self.groups)
        return 1 - lost  # type: ignore[return-value]
