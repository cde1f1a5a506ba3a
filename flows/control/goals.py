"""The tasks of the extra `robotics`: a ball in a maze with a goal, and the robots of MuJoCo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from flows.control.gym import Copies, Gym
from studio.errors import MissingError

NAMES = {"umaze": "UMaze", "open": "Open", "medium": "Medium", "large": "Large"}
DIVERSE = {"no": "", "goal": "_Diverse_G", "both": "_Diverse_GR"}


@dataclass(frozen=True)
class PointMaze:
    """A ball pushed by a force through a maze to a goal (PointMaze of gymnasium-robotics).

    Observations (x, y, vx, vy, goal x, goal y), actions in [-1, 1]². Rewards e^{-d} when dense, else [d ≤ 0.45], d the distance to
    the goal. Episodes last 300 steps (umaze, open), 600 (medium) or 800 (large). PolicyFlow (arXiv:2602.01156) uses
    {map: medium, diverse: goal}.
    """

    map: Literal["umaze", "open", "medium", "large"] = "umaze"
    dense: bool = True
    diverse: Literal["no", "goal", "both"] = "no"  # what is drawn anew from several cells: the goal, or the start as well
    continuing_task: bool = True  # false = reaching the goal ends the episode
    reset_target: bool = False  # a new goal once one is reached, in a continuing task
    asynchronous: bool = False  # one process per copy
    limit: Annotated[int, Field(ge=1)] | None = None  # steps of an episode; None = as above

    arena: ClassVar[str] = "flows.control.arena:Arena"
    copies: ClassVar[int] = 8  # at most, in an evaluation: each is an environment, or even a process, of its own

    def __post_init__(self) -> None:
        if self.map == "umaze" and self.diverse != "no":
            raise ValueError(
                f"diverse: expected no for map umaze, which has one goal, got {self.diverse}. Choose open, medium or large."
            )

    def gym(self) -> Gym:
        """The environment that these options name."""
        require("gymnasium_robotics")
        # the package in front of the id registers it in every process that makes one
        name = f"gymnasium_robotics:PointMaze_{NAMES[self.map]}{DIVERSE[self.diverse]}{'Dense' if self.dense else ''}-v3"
        return Gym(
            name, self.asynchronous, {"continuing_task": self.continuing_task, "reset_target": self.reset_target}, self.limit
        )

    def check(self) -> list[str]:
        return self.gym().check()

    def build(self, count: int, first: int, seed: int, start: Mapping[str, Any] | None = None) -> Copies:
        """`start` may name cells: {"reset_cell": (row, column), "goal_cell": (row, column)}."""
        return self.gym().build(count, first, seed, start)


@dataclass(frozen=True)
class MuJoCo:
    """A robot of MuJoCo by its gymnasium id, such as Hopper-v5, HalfCheetah-v5, Walker2d-v5, Ant-v5."""

    id: str
    asynchronous: bool = False  # one process per copy
    kwargs: dict[str, Any] = field(default_factory=dict)  # of gymnasium.make, e.g. terminate_when_unhealthy
    limit: Annotated[int, Field(ge=1)] | None = None  # steps of an episode; None = as registered, 1000 for most

    arena: ClassVar[str] = "flows.control.arena:Arena"
    copies: ClassVar[int] = 8  # at most, in an evaluation: each is an environment, or even a process, of its own

    def gym(self) -> Gym:
        """The environment that these options name."""
        require("mujoco")
        return Gym(self.id, self.asynchronous, self.kwargs, self.limit)

    def check(self) -> list[str]:
        return self.gym().check()

    def build(self, count: int, first: int, seed: int, start: Mapping[str, Any] | None = None) -> Copies:
        return self.gym().build(count, first, seed, start)


def require(package: str) -> None:
    """MissingError with the extra to install when the package is absent or does not load."""
    try:
        import_module(package)
    except ImportError as problem:
        raise MissingError(
            f"recipe.env: expected the package {package}, got: {problem}. Install it: pip install 'alignment-studio[robotics]'."
        ) from problem
