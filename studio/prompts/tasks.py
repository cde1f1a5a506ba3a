"""Problems of the bundled text world as a prompt source: each can be judged exactly, and the held-out ones are never trained on."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from studio.errors import ConfigError
from studio.names import suggestion
from studio.prompts.order import Shuffled
from studio.text import world
from studio.types import Prompts, Rollout

TEST_SEED = 7
TRIES = 50  # draws per wanted problem before a small world counts as exhausted


@dataclass(frozen=True)
class TaskPrompts:
    """Problems of the named tasks; info holds what the reward `task` needs, with `answer` and `solution`.

    Also the two answers of a preference pair: `chosen`, the solution, and `rejected`, which a plausible mistake makes wrong.
    """

    tasks: tuple[str, ...] | dict[str, float] = ()  # names, or names with their shares; empty = all alike
    difficulty: int | tuple[int, ...] | dict[str, int] | None = None  # 1 to 4; None = what suits the bundled model, per task
    train: Annotated[int, Field(ge=1)] | None = None  # how many problems are trained on; None = always new ones
    test: Annotated[int, Field(ge=0)] = 512  # most problems that are held out
    instructions: bool = False  # whether the rule of the task precedes the problem, for models that do not know the format

    def check(self) -> list[str]:
        """ConfigError for tasks and levels that do not exist."""
        weights, levels = self.shares(), self.levels()
        found = 0 if self.train is None else len(distinct(self.train, "train", weights, levels, test=False))
        short = self.train is not None and found < self.train
        return [f"prompts: {self.train} training problems asked for, but only {found} different ones exist"] if short else []

    def build(self, seed: int) -> ProblemStream | Shuffled:
        weights, levels = self.shares(), self.levels()
        if self.train is None:
            return ProblemStream(seed, weights, levels, self.instructions)
        return Shuffled(prompts_of(distinct(self.train, "train", weights, levels, test=False), self.instructions), seed)

    def held_out(self, count: int) -> Prompts:
        """At most `count` different held-out problems, the same for every seed."""
        found = distinct(min(count, self.test), TEST_SEED, self.shares(), self.levels(), test=True)
        return prompts_of(found, self.instructions)

    def shares(self) -> dict[str, float]:
        """Task -> its share of the problems."""
        named = self.tasks if isinstance(self.tasks, Mapping) else dict.fromkeys(self.tasks or world.TASKS, 1.0)
        for task, share in named.items():
            if task not in world.TASKS:
                known = ", ".join(world.TASKS)
                raise ConfigError(
                    f"recipe.prompts.tasks: no task is named {task!r}{suggestion(task, world.TASKS)} (known: {known})"
                )
            if not 0 < share < float("inf"):
                raise ConfigError(
                    f"recipe.prompts.tasks.{task}: expected a positive share, got {share}. Leave the task out instead."
                )
        return dict(named)

    def levels(self) -> dict[str, tuple[int, ...]]:
        """Task -> the levels its problems are drawn from."""
        given = self.difficulty if isinstance(self.difficulty, dict) else {}
        everywhere = None if isinstance(self.difficulty, dict) else self.difficulty
        chosen = {}
        for task in self.shares():
            level = given.get(task, world.USUAL[task] if everywhere is None else everywhere)
            chosen[task] = (level,) if isinstance(level, int) else tuple(level)
            if not chosen[task] or not set(chosen[task]) <= set(world.LEVELS):
                raise ConfigError(
                    f"recipe.prompts.difficulty: expected levels from {world.LEVELS[0]} to {world.LEVELS[-1]}, got {level!r} for "
                    f"{task!r}. Choose among them."
                )
        return chosen


class ProblemStream:
    """Endless training problems of one seed; the position is the only state."""

    def __init__(self, seed: int, weights: Mapping[str, float], levels: Mapping[str, tuple[int, ...]], instructions: bool) -> None:
        self.seed, self.weights, self.levels, self.instructions, self.position = seed, weights, levels, instructions, 0

    def next(self, count: int) -> Prompts:
        places = range(self.position, self.position + count)
        self.position += count
        return prompts_of((self._at(place) for place in places), self.instructions)

    def update(self, rollout: Rollout) -> None:
        """Problems are drawn independently of results."""

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]

    def _at(self, position: int) -> world.Problem:
        return world.drawn(random.Random(f"tasks-{self.seed}-{position}"), self.weights, self.levels)


def prompts_of(some: Iterable[world.Problem], instructions: bool = False) -> Prompts:
    """Prompts keyed by the problem itself, so that its history outlives another wording."""
    some = list(some)
    texts = [f"{world.TASKS[made.info['task']].rule}\n{made.text}" if instructions else made.text for made in some]
    infos: list[Mapping[str, Any]] = [made.info | {"chosen": made.solution, "rejected": rejected(made)} for made in some]
    return Prompts(texts, [made.text for made in some], infos)


def rejected(made: world.Problem) -> str:
    """A wrong completion that looks right at first sight; the same for the same problem. The task's verifier has the last word."""
    task, draws = world.TASKS[made.info["task"]], random.Random(f"tasks-mistake-{made.text}")
    while task.verify(wrong := task.mistake(draws, made), made.info):
        pass
    return wrong


def distinct(
    count: int, seed: int | str, weights: Mapping[str, float], levels: Mapping[str, tuple[int, ...]], *, test: bool
) -> list[world.Problem]:
    """`count` different problems of one split, or fewer where a small world has no more."""
    found: dict[str, world.Problem] = {}
    draws = random.Random(f"tasks-list-{seed}")
    for _ in range(TRIES * count):
        made = world.drawn(draws, weights, levels, test=test)
        found.setdefault(made.text, made)
        if len(found) == count:
            break
    return list(found.values())[:count]
