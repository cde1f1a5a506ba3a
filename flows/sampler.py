"""How a rollout samples: grid, guidance, noise family, and which steps are noisy and trained."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from studio.errors import ConfigError


@dataclass(frozen=True)
class Window:
    """The steps that are stochastic and trained; all others follow the ODE.

    `random` picks a start uniformly in [low, high - size] each rollout (Flow-GRPO-Fast); `slide` moves by `stride` every
    `every` rollouts (MixGRPO, arXiv:2507.21802), back to `low` past the end or staying there; `fixed` stays at `low`.
    """

    size: Annotated[int, Field(ge=0)] = 0  # 0 = every step but the last, which is nearly noiseless
    low: Annotated[int, Field(ge=0)] = 0
    high: int | None = None  # one past the last step that may be in the window; None = steps - 1
    move: Literal["fixed", "random", "slide"] = "fixed"
    every: Annotated[int, Field(ge=1)] = 25
    stride: Annotated[int, Field(ge=1)] = 1
    tempo: Literal["constant", "linear", "exponential"] = "constant"  # linear: from `every` down to 1 iteration per place
    decay: Annotated[float, Field(ge=0)] = 0.1  # of the exponential tempo: every·exp(-decay·max(0, start - decay_from)), rounded up
    decay_from: Annotated[int, Field(ge=0)] = 13
    past_end: Literal["roll_back", "stay"] = "roll_back"

    def steps(self, total: int, iteration: int, seed: int) -> list[int]:
        """Indices of the window at this iteration; equal on every rank."""
        high = total - 1 if self.high is None else min(self.high, total - 1)
        size = self.size or high - self.low
        if size < 1 or self.low + size > high:
            raise ConfigError(
                f"recipe.sampler.window: {size} steps from {self.low} do not fit below step {high} of {total} (the last step is "
                f"never trained). Use a smaller size or more sampler.steps."
            )
        last = high - size
        if self.move == "random":
            start = random.Random(f"window-{seed}-{iteration}").randint(self.low, last)
        elif self.move == "slide":
            start = self._slid(iteration, last)
        else:
            start = self.low
        return list(range(start, start + size))

    def _slid(self, iteration: int, last: int) -> int:
        """Where a sliding window starts: each place is kept for its dwell time, in order, then again or at the end."""
        places = list(range(self.low, last + 1, self.stride))
        times = [self.dwell(place, last) for place in places]
        if self.past_end == "roll_back":
            iteration %= sum(times)
        for place, time in zip(places, times, strict=True):
            if iteration < time:
                return place
            iteration -= time
        return last

    def dwell(self, start: int, last: int) -> int:
        """Iterations that a sliding window stays at `start`: less and less under a falling tempo, at least 1."""
        if self.tempo == "linear" and last > self.low:
            return max(1, round(self.every + (1 - self.every) * (start - self.low) / (last - self.low)))
        if self.tempo == "exponential":
            return math.ceil(self.every * math.exp(-self.decay * max(0, start - self.decay_from)))
        return self.every


@dataclass(frozen=True)
class Sampler:
    """Sampling settings of rollouts and evaluation."""

    steps: Annotated[int, Field(ge=2)] = 8  # denoising steps of a rollout
    eval_steps: Annotated[int, Field(ge=1)] = 8  # of evaluation images
    guidance: Annotated[float, Field(ge=1.0)] = 1.0  # classifier-free weight, the same in rollout and replay; 1 = off
    kernel: Literal["flow_sde", "dance_sde", "cps", "ddim"] = "flow_sde"
    level: Annotated[float, Field(gt=0.0, le=2.0)] = 0.7  # noise: a of flow_sde and cps, eta of dance_sde and ddim
    min_std: Annotated[float, Field(ge=0)] = (
        0.01  # window steps with less noise follow the ODE: their ratio is rounding divided by almost nothing
    )
    grid: Literal["pipeline", "even"] = "pipeline"  # the scheduler's own, or linspace with a static shift
    grid_shift: Annotated[float, Field(gt=0)] = 3.0  # of the even grid
    window: Window = field(default_factory=Window)
    train_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0  # random share of window steps per sample (DanceGRPO: 0.6)
    same_noise: bool = False  # all samples of a group start from the same latent
