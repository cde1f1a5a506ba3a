"""GridWorld: cells with goals, deaths and walls, where the best action at some places is two-sided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from flows.control.environment import Space, Step
from flows.control.pictures import Scene
from flows.control.starts import uniform

SIZE = 25
CENTER = SIZE // 2
FREE, GOAL, DEATH, WALL = range(4)
PAY = {FREE: 0.0, GOAL: 20.0, DEATH: -10.0, WALL: 0.0}

Cell = Callable[[int, int], int]  # (x, y) -> what is there


def two_walls(x: int, y: int) -> int:
    return GOAL if y in (0, 1, 23, 24) else FREE


def three_goals(x: int, y: int) -> int:
    if abs(x - CENTER) <= 1 and abs(y - CENTER) <= 1:
        return DEATH
    return GOAL if any(abs(x - i) <= 1 and abs(y - j) <= 1 for i, j in ((12, 18), (7, 7), (17, 7))) else FREE


def tree(x: int, y: int) -> int:
    if abs(y - CENTER) > 2:
        return FREE
    return DEATH if 13 <= x <= 17 else GOAL if x >= 23 else FREE


def two_slits(x: int, y: int) -> int:
    if x == 15:
        return FREE if 4 <= y <= 7 or 17 <= y <= 20 else WALL
    return GOAL if x == 24 else FREE


def cshape(x: int, y: int) -> int:
    """Walls on three sides at distance 5 from the center, open to the left."""
    across, up = abs(x - CENTER), abs(y - CENTER)
    if (up == 5 and across <= 5) or (x == CENTER + 5 and up <= 5):
        return WALL
    return GOAL if max(across, up) <= 2 else FREE


MAPS: dict[str, Cell] = {"two_walls": two_walls, "three_goals": three_goals, "tree": tree, "two_slits": two_slits, "cshape": cshape}


@dataclass(frozen=True)
class GridWorld:
    """A grid of 25×25 cells with continuous actions (FPO, arXiv:2507.21053).

    The move along each axis is round(clip(a, ±1)), half to even; moves end at the edge of the grid, and one into a wall is none.
    A goal pays 20, a death -10, both end the task; 100 steps cut it. Starts are uniform over the free cells (the released code
    also starts inside walls). Observations (cell - 12)/12.
    """

    map: Literal["two_walls", "three_goals", "tree", "two_slits", "cshape"] = "two_walls"
    arena: ClassVar[str] = "flows.control.arena:Arena"
    horizon: ClassVar[int] = 100

    def check(self) -> list[str]:
        return []

    def build(self, count: int, first: int, seed: int, start: tuple[int, int] | None = None) -> Grid:
        """`start` is a cell (x, y)."""
        return Grid(self, count, first, seed, start)

    def cells(self) -> Tensor:
        """What is at [x, y].  [25, 25]"""
        return torch.tensor([[MAPS[self.map](x, y) for y in range(SIZE)] for x in range(SIZE)])

    def scene(self) -> Scene:
        """What pictures show, in observations: a cell is a square of side 1/12."""
        half, cells = 0.5 / CENTER, self.cells()
        places = {kind: seen((cells == kind).nonzero()).tolist() for kind in (GOAL, WALL, DEATH)}
        boxes = {kind: [(x - half, y - half, x + half, y + half) for x, y in places[kind]] for kind in (WALL, DEATH)}
        goals, edge = [(x, y) for x, y in places[GOAL]], 1 + half
        return Scene((-edge, -edge), (edge, edge), goals, half, boxes[WALL], boxes[DEATH], reach=1.0)


class Grid:
    """Copies of GridWorld. Each draws its starts from its own number and the step at which it starts."""

    def __init__(self, options: GridWorld, count: int, first: int, seed: int, start: tuple[int, int] | None) -> None:
        self.options, self.count, self.first, self.seed, self.start = options, count, first, seed, start
        self.space = Space(2, 2, (-1.0, -1.0), (1.0, 1.0))
        self.cells = options.cells()
        self.free = (self.cells == FREE).nonzero()
        self.pay = torch.tensor([PAY[kind] for kind in range(len(PAY))])
        self.place = torch.zeros(count, 2, dtype=torch.long)
        self.clock = torch.zeros(count, dtype=torch.long)
        self.step_count = 0

    def reset(self) -> Tensor:
        """All over again."""
        self.step_count, self.clock = 0, torch.zeros(self.count, dtype=torch.long)
        self.place = self._starts()
        return seen(self.place)

    def step(self, action: Tensor) -> Step:
        moved = (self.place + action.clamp(-1, 1).round().long()).clamp(0, SIZE - 1)
        moved = torch.where((self.kind(moved) == WALL)[:, None], self.place, moved)
        kind = self.kind(moved)
        there, dead = kind == GOAL, (kind == GOAL) | (kind == DEATH)
        self.clock = self.clock + 1
        cut = (self.clock >= self.options.horizon) & ~dead
        over = dead | cut
        self.step_count += 1
        self.place = torch.where(over[:, None], self._starts(), moved) if over.any() else moved
        self.clock = self.clock.masked_fill(over, 0)
        return Step(seen(self.place), self.pay[kind], dead, cut, seen(moved), {"success": there})

    def kind(self, place: Tensor) -> Tensor:
        """What is at cells [N, 2].  [N]"""
        return self.cells[place[:, 0], place[:, 1]]

    def _starts(self) -> Tensor:
        if self.start is not None:
            return torch.tensor(self.start).expand(self.count, 2).clone()
        number = uniform(self.seed, self.step_count, self.first, self.count, 1)[:, 0].double()  # in float32 a product may reach len
        return self.free[(number * len(self.free)).long()]

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place, "clock": self.clock, "steps": self.step_count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place, self.clock, self.step_count = state["place"], state["clock"], state["steps"]

    def close(self) -> None:
        """Nothing is held."""


def seen(place: Tensor) -> Tensor:
    """Cells [N, 2] as observations."""
    return (place - CENTER) / CENTER
