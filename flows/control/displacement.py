"""MultiGoal-4: a point that jumps among four goals, from soft Q-learning; its cost of actions is the larger part of the reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from flows.control.environment import Space, Step
from flows.control.multigoal import coverage
from flows.control.pictures import Scene
from flows.control.starts import normal


@dataclass(frozen=True)
class MultiGoal4:
    """Four goals at distance 5 from the center; the action is a displacement (soft Q-learning, arXiv:1702.08165).

    a = clip(action, ±1), p' = clip(p + a, ±7), d the distance of p' to the nearest goal;
    reward scale·(-30·|a|² - d² + 10·[d < 1]); d < 1 ends the task, `horizon` steps cut it. Starts are N(0, 0.1²).
    Observations p. Soft Q-learning trains with scale 0.1.
    """

    reward_scale: Annotated[float, Field(gt=0)] = 1.0
    horizon: Annotated[int, Field(ge=1)] = 30  # MEOW (arXiv:2405.13629) takes 1000

    arena: ClassVar[str] = "flows.control.arena:Arena"
    bound: ClassVar[float] = 1.0
    edge: ClassVar[float] = 7.0
    radius: ClassVar[float] = 1.0  # of a goal
    spread: ClassVar[float] = 0.1  # of the starts

    def check(self) -> list[str]:
        return []

    def build(self, count: int, first: int, seed: int, start: tuple[float, float] | None = None) -> Jumps:
        return Jumps(self, count, first, seed, start)

    def places(self) -> Tensor:
        """[4, 2]"""
        return torch.tensor([[5.0, 0.0], [-5.0, 0.0], [0.0, 5.0], [0.0, -5.0]])

    def scene(self) -> Scene:
        """What pictures show."""
        goals = [(x, y) for x, y in self.places().tolist()]
        return Scene((-self.edge, -self.edge), (self.edge, self.edge), goals, self.radius, reach=self.bound)

    def coverage(self, last: Tensor, dead: Tensor) -> dict[str, float]:
        """Of the states [E, 2] that episodes ended in: success, and how evenly it is spread over the goals."""
        return coverage(last, self.places(), torch.ones_like(dead), self.radius)


class Jumps:
    """Copies of MultiGoal-4. Each draws its starts from its own number and the step at which it starts."""

    def __init__(self, options: MultiGoal4, count: int, first: int, seed: int, start: tuple[float, float] | None) -> None:
        self.options, self.count, self.first, self.seed, self.start = options, count, first, seed, start
        self.space = Space(2, 2, (-options.bound,) * 2, (options.bound,) * 2)
        self.goals = options.places()
        self.place = torch.zeros(count, 2)
        self.clock = torch.zeros(count, dtype=torch.long)
        self.step_count = 0

    def reset(self) -> Tensor:
        """All over again."""
        self.step_count, self.clock = 0, torch.zeros(self.count, dtype=torch.long)
        self.place = self._starts()
        return self.place.clone()

    def step(self, action: Tensor) -> Step:
        options = self.options
        jump = action.clamp(-options.bound, options.bound)
        moved = (self.place + jump).clamp(-options.edge, options.edge)
        near = (moved[:, None] - self.goals).square().sum(2).amin(1)
        there = near < options.radius**2
        reward = options.reward_scale * (-30 * jump.square().sum(1) - near + 10 * there)
        self.clock = self.clock + 1
        cut = (self.clock >= options.horizon) & ~there
        over = there | cut
        self.step_count += 1
        self.place = torch.where(over[:, None], self._starts(), moved) if over.any() else moved
        self.clock = self.clock.masked_fill(over, 0)
        return Step(self.place.clone(), reward, there, cut, moved, {"success": there})

    def _starts(self) -> Tensor:
        if self.start is not None:
            return torch.tensor(self.start, dtype=torch.float32).expand(self.count, 2).clone()
        return self.options.spread * normal(self.seed, self.step_count, self.first, self.count, 2)

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place, "clock": self.clock, "steps": self.step_count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place, self.clock, self.step_count = state["place"], state["clock"], state["steps"]

    def close(self) -> None:
        """Nothing is held."""
