"""Direct back-propagation of a differentiable reward: DRaFT, AlignProp, ReFL."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from studio.core.pathwise import Cut, PathwiseObjective, Rise, Toward, UpTo


@dataclass(frozen=True)
class LastSteps:
    """The last `count` steps; the sample is noised to their start and they are taken again `renoise` times."""

    count: int
    renoise: int = 0

    def __call__(self, steps: int, draws: random.Random) -> Cut:
        return Cut(max(0, steps - self.count), renoise=self.renoise)


@dataclass(frozen=True)
class RandomStart:
    """Gradients from a random step on, a share of all steps: Normal(mean, std) or uniform, the same on every rank."""

    kind: Literal["normal", "uniform"]
    mean: float
    std: float

    def __call__(self, steps: int, draws: random.Random) -> Cut:
        share = draws.gauss(self.mean, self.std) if self.kind == "normal" else draws.random()
        return Cut(min(max(round(share * steps), 0), steps - 1))


@dataclass(frozen=True)
class OneStep:
    """One step, drawn uniformly between two shares of the steps; the picture is what it predicts."""

    low: float
    high: float

    def __call__(self, steps: int, draws: random.Random) -> Cut:
        last = min(round(self.high * steps), steps - 1)
        return Cut(draws.randint(min(round(self.low * steps), last), last), predict=True)


@dataclass(frozen=True)
class DRaFT:
    """DRaFT-K (arXiv:2309.17400): gradients through the last k steps; renoise=2 with k=1 is DRaFT-LV."""

    k: Annotated[int, Field(ge=1)] = 1
    renoise: Annotated[int, Field(ge=0)] = 0
    scale: Annotated[float, Field(gt=0)] = 1.0

    def objective(self) -> PathwiseObjective:
        return PathwiseObjective(LastSteps(self.k, self.renoise), Rise(self.scale))


@dataclass(frozen=True)
class AlignProp:
    """AlignProp (arXiv:2310.03739): truncation at a random step, Normal(42, 5) of 50 as published."""

    kind: Literal["normal", "uniform"] = "normal"
    mean: Annotated[float, Field(ge=0, le=1)] = 0.84  # 42 of 50
    std: Annotated[float, Field(ge=0)] = 0.1
    scale: Annotated[float, Field(gt=0)] = 0.01
    goal: float | None = None  # loss |goal - R|, e.g. 10 for aesthetic scores; None = -R

    def objective(self) -> PathwiseObjective:
        loss = Rise(self.scale) if self.goal is None else Toward(self.goal, self.scale)
        return PathwiseObjective(RandomStart(self.kind, self.mean, self.std), loss)


@dataclass(frozen=True)
class ReFL:
    """ReFL (arXiv:2304.05977): one step from late in the grid, 30 to 39 of 40; loss 1e-3·max(2 - R, 0)."""

    low: Annotated[float, Field(ge=0, le=1)] = 0.75
    high: Annotated[float, Field(ge=0, le=1)] = 0.975
    bound: float = 2.0  # of ImageReward; above the range of the reward it never binds
    scale: Annotated[float, Field(gt=0)] = 1e-3

    def objective(self) -> PathwiseObjective:
        return PathwiseObjective(OneStep(self.low, self.high), UpTo(self.bound, self.scale))
