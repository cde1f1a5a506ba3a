"""End-to-end masks (arXiv:2412.02852): gates trained so that the gated sampler ends at the latents of the dense one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from pruning.allocate import Scope
from pruning.gates import HardConcrete
from pruning.sites import KINDS
from studio.types import Rollout

Share = Annotated[float, Field(ge=0, le=1)]
Expected = Callable[[Mapping[str, Tensor]], Tensor]  # P(m > 0) per group -> expected share that remains


@dataclass
class NormPenalty:
    """β·Σ_kinds (1/#modules)·Σ_modules ||λ'||₁/n, λ' = λ, or σ(0.4·λ + 1) when squashed: the published penalty.

    Without squashing its minimum is at λ = 0, a gate of one half, and no target is aimed at.
    """

    beta: float
    squashed: bool = False

    def __call__(
        self, logits: Mapping[str, Tensor], kinds: Mapping[str, str], share: Tensor, target: float, progress: float
    ) -> tuple[Tensor, dict[str, float]]:
        sums: dict[str, list[Tensor]] = {}
        for name, value in logits.items():
            moved = torch.sigmoid(0.4 * value + 1) if self.squashed else value
            sums.setdefault(kinds[name], []).append(moved.abs().mean())
        return self.beta * torch.stack([torch.stack(parts).mean() for parts in sums.values()]).sum(), {}

    def now(self, target: float, progress: float) -> float:
        """Settled gates, which the release does not have, would fill the budget at once."""
        return target

    def after(self, share: float, target: float, progress: float) -> None:
        """Nothing is remembered."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing was remembered."""


@dataclass
class BudgetPenalty:
    """Augmented Lagrangian of the budget: μ·d + (ρ/2)·d², d = E[share that remains] - target now; then μ ← μ + ρ/100·d.

    The target falls linearly from 1 over the first `ramp` of the updates. μ is a hundredth as fast as the square: Adam moves
    logits by a fixed length per update, and a price that runs ahead of them swings about the target without end.
    """

    rate: float  # ρ
    ramp: float
    multiplier: float = 0.0  # μ

    def __call__(
        self, logits: Mapping[str, Tensor], kinds: Mapping[str, str], share: Tensor, target: float, progress: float
    ) -> tuple[Tensor, dict[str, float]]:
        gap = share - self.now(target, progress)
        return self.multiplier * gap + 0.5 * self.rate * gap**2, {"prune/multiplier": self.multiplier}

    def now(self, target: float, progress: float) -> float:
        return 1 - (1 - target) * (min(1.0, progress / self.ramp) if self.ramp else 1.0)

    def after(self, share: float, target: float, progress: float) -> None:
        self.multiplier += 0.01 * self.rate * (share - self.now(target, progress))

    def state_dict(self) -> dict[str, Any]:
        return {"multiplier": self.multiplier}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.multiplier = state["multiplier"]


@dataclass
class MaskObjective:
    """What one update of the gates minimizes: latent error, a reward's gap, and a penalty on what remains."""

    gate: HardConcrete
    penalty: NormPenalty | BudgetPenalty
    relative: bool = False  # error over the mean square of the target latents
    settle: float = 0.0  # share of the updates, at the end, with the 0/1 mask that would be deployed
    reward: float = 0.0  # weight of mean max(R_dense - R_gated, 0), R the recipe's differentiable rewards
    per_step: bool = False  # match every velocity on dense latents instead of the final latents
    rounds: int = 0  # removals for good while the budget falls
    needs: ClassVar[frozenset[str]] = frozenset({"masks"})
    iteration: ClassVar[str] = "pruning.learn:learn"

    def error(self, made: Tensor, target: Tensor) -> Tensor:
        """mean_E (ẑ - z)², or that over mean_E z²  -> [N]"""
        square = ((made.float() - target.float()) ** 2).flatten(1).mean(1)
        return square / (target.float() ** 2).flatten(1).mean(1) if self.relative else square

    def removes(self, step: int, steps: int) -> bool:
        """Whether a round ends at this update: after equal parts of the fall but the last, which stays open to the end."""
        ramp = getattr(self.penalty, "ramp", 0.0)
        return step in {round(steps * ramp * k / self.rounds) for k in range(1, self.rounds)}

    def update(self, rollout: Rollout) -> None:
        """Nothing is learned from rewards."""

    def state_dict(self) -> dict[str, Any]:
        return self.penalty.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.penalty.load_state_dict(state)


@dataclass(frozen=True)
class EcoDiff:
    """EcoDiff as published (arXiv:2412.02852): L1 penalty, one noise for all prompts, thresholds per kind of unit.

    Defaults are the release's for SDXL. Unlike the release: logits in float32, one draw of gate noise shared by forward and
    recompute, and the kept share is that of the target, not a ratio per kind.
    """

    start: float = 3.0  # logit of every gate
    noise: Annotated[float, Field(gt=0)] = 0.5
    beta: Annotated[float, Field(ge=0)] = 0.5
    squashed: bool = False  # FLUX: true
    one_noise: bool = True
    weight_decay: Annotated[float, Field(ge=0)] = 0.01  # AdamW's, on the logits
    needs: ClassVar[frozenset[str]] = frozenset({"learn"})
    scored: ClassVar[bool] = False  # masks are learned on latents
    kinds: ClassVar[frozenset[str]] = frozenset(KINDS)
    scope: ClassVar[Scope] = "kind"
    per_cost: ClassVar[bool] = False
    first: ClassVar[None] = None
    rounds: ClassVar[int] = 0
    reward: ClassVar[float] = 0.0

    def gate(self) -> HardConcrete:
        return HardConcrete(noise=self.noise)

    def objective(self) -> MaskObjective:
        return MaskObjective(self.gate(), NormPenalty(self.beta, self.squashed))


@dataclass(frozen=True)
class EndToEnd:
    """End-to-end masks with an exact budget: expected cost under a multiplier, many noises, and a settled 0/1 phase at the end.

    Gates start in the order of a training-free criterion, so that the updates are spent on what it gets wrong. With
    compensation, what goes in a round goes for good and the rest is refitted at once: gates then see the weights that will be
    deployed. That needs the Gram matrices of all layers together.
    """

    start: float = 2.0  # mean logit of the start
    spread: Annotated[float, Field(ge=0)] = 2.0  # logits start evenly in start ± spread, in the order of `first`
    first: str | None = "taylor"  # criterion that orders the units at the start; null = all alike
    noise: Annotated[float, Field(gt=0)] = 0.1
    rate: Annotated[float, Field(gt=0)] = 50.0  # ρ of the budget
    ramp: Share = 0.7  # share of the updates over which the budget falls to the target
    settle: Share = 0.6
    rounds: Annotated[int, Field(ge=0)] = 4  # in which units are removed and the rest is refitted; 0 or 1 = only at the end
    per_step: bool = False
    reward: Annotated[float, Field(ge=0)] = 0.0  # weight of the reward that is lost; needs a differentiable reward in `protect`
    one_noise: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    needs: ClassVar[frozenset[str]] = frozenset({"learn"})
    scored: ClassVar[bool] = False  # masks are learned on latents
    kinds: ClassVar[frozenset[str]] = frozenset(KINDS)
    scope: ClassVar[Scope] = "global"
    per_cost: ClassVar[bool] = False

    def gate(self) -> HardConcrete:
        return HardConcrete(noise=self.noise)

    def objective(self) -> MaskObjective:
        penalty = BudgetPenalty(self.rate, self.ramp)
        options: Any = {"settle": self.settle, "reward": self.reward, "per_step": self.per_step, "rounds": self.rounds}
        return MaskObjective(self.gate(), penalty, relative=True, **options)
