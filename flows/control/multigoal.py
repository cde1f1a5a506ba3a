"""MultiGoal: a point mass among several goals that are worth the same, so that coverage shows how many a policy keeps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from flows.control.environment import Space, Step
from flows.control.pictures import Scene
from flows.control.starts import uniform
from studio.seeds import row_seed


@dataclass(frozen=True)
class MultiGoal:
    """Six goals on a circle of radius 5; the action is an acceleration (PolicyFlow, arXiv:2602.01156).

    p' = p + 0.1·v, v' = v + 0.1·clip(a, ±5); reward 0.1·(e^{-0.3d²} + e^{-0.1d²} - 0.01·|a|²), d the distance of p' to the nearest
    goal, a unclipped; leaving the box ±8 ends the task, more than 50 steps cut it. Starts are uniform in ±7, at rest.
    Observations (p, v).
    """

    goals: int = 6
    arena: ClassVar[str] = "flows.control.arena:Arena"
    horizon: ClassVar[int] = 50
    bound: ClassVar[float] = 5.0
    edge: ClassVar[float] = 8.0
    start: ClassVar[tuple[float, float]] = (0.0, 0.0)  # of an evaluation: every goal is as far

    def check(self) -> list[str]:
        return []

    def build(self, count: int, first: int, seed: int, start: tuple[float, float] | None = None) -> Points:
        return Points(self, count, first, seed, start)

    def places(self) -> Tensor:
        """[goals, 2]"""
        angle = torch.arange(self.goals) * (2 * math.pi / self.goals)
        return 5 * torch.stack([angle.cos(), angle.sin()], 1)

    def scene(self) -> Scene:
        """What pictures show."""
        goals = [(x, y) for x, y in self.places().tolist()]
        return Scene((-self.edge, -self.edge), (self.edge, self.edge), goals, reach=self.bound)

    def coverage(self, last: Tensor, dead: Tensor) -> dict[str, float]:
        """Of the states [E, 4] that episodes ended in, `dead` [E] outside of the box.

        success: share within 1 of a goal · covered: goals with at least a quarter of an even share of the successes,
        p_g ≥ 1/(4·goals) · evenness: -Σ p_g log p_g / log goals · largest: max p_g.
        """
        return coverage(last[:, :2], self.places(), ~dead)


def coverage(place: Tensor, goals: Tensor, alive: Tensor, radius: float = 1.0) -> dict[str, float]:
    """Success and how evenly it is spread over the goals.  place [E, 2], goals [G, 2], alive [E] bool"""
    distance, nearest = torch.cdist(place, goals).min(1)
    reached = (distance <= radius) & alive
    share = torch.bincount(nearest[reached], minlength=len(goals)).double() / max(1, int(reached.sum()))
    entropy = -(share * share.clamp(min=1e-300).log()).sum()
    return {
        "success": reached.double().mean().item(),
        "covered": float((share >= 1 / (4 * len(goals))).sum()) if reached.any() else 0.0,
        "evenness": abs(entropy.item()) / math.log(len(goals)),
        "largest": share.max().item(),
    }


class Points:
    """Copies of MultiGoal. Each draws its starts from its own number and the step at which it starts."""

    def __init__(self, options: MultiGoal, count: int, first: int, seed: int, start: tuple[float, float] | None) -> None:
        self.options, self.count, self.first, self.seed, self.start = options, count, first, seed, start
        self.space = Space(4, 2, (-options.bound,) * 2, (options.bound,) * 2)
        self.goals = options.places()
        self.state = torch.zeros(count, 4)
        self.clock = torch.zeros(count, dtype=torch.long)
        self.step_count = 0

    def reset(self) -> Tensor:
        """All over again. Clocks start apart, so that episodes do not end all at once, unless all copies start in one place."""
        self.step_count, self.clock = 0, torch.zeros(self.count, dtype=torch.long)
        if self.start is None:
            own = torch.Generator().manual_seed(row_seed(self.seed, "clock", 0))
            self.clock = torch.randint(0, self.options.horizon, (self.first + self.count,), generator=own)[self.first :]
        self.state = self._starts()
        return self.state.clone()

    def step(self, action: Tensor) -> Step:
        options = self.options
        p, v = self.state[:, :2], self.state[:, 2:]
        moved = torch.cat([p + 0.1 * v, v + 0.1 * action.clamp(-options.bound, options.bound)], 1)
        # not by torch.cdist, whose products of matrices lose digits near a goal and differ with the number of rows
        near = (moved[:, None, :2] - self.goals).square().sum(2).amin(1)
        reward = 0.1 * ((-0.3 * near).exp() + (-0.1 * near).exp() - 0.01 * action.square().sum(1))
        self.clock = self.clock + 1
        dead = (moved[:, :2].abs() > options.edge).any(1)
        cut = (self.clock > options.horizon) & ~dead
        over = dead | cut
        self.step_count += 1
        self.state = torch.where(over[:, None], self._starts(), moved) if over.any() else moved
        self.clock = self.clock.masked_fill(over, 0)
        info = {"success": (near <= 1) & ~dead}
        return Step(self.state.clone(), reward, dead, cut, moved, info)

    def _starts(self) -> Tensor:
        if self.start is not None:
            return torch.tensor([*self.start, 0.0, 0.0]).expand(self.count, 4).clone()
        place = uniform(self.seed, self.step_count, self.first, self.count, 2) * 14 - 7
        return torch.cat([place, torch.zeros(self.count, 2)], 1)

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.state, "clock": self.clock, "steps": self.step_count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state, self.clock, self.step_count = state["state"], state["clock"], state["steps"]

    def close(self) -> None:
        """Nothing is held."""
