"""Prompts drawn by how much there is to learn from them: the success rates that the algorithm tracks decide."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, runtime_checkable

from pydantic import Field

from studio.annotation import Component, Kind
from studio.errors import ConfigError, NeedsError
from studio.prompts.order import Shuffled
from studio.types import Prompts, Rollout


@runtime_checkable
class Tracks(Protocol):
    """An advantage that estimates how often each prompt succeeds."""

    def priorities(self, keys: Sequence[str]) -> list[float]: ...  # how much each prompt deserves to be drawn
    def estimate(self, rewards: Mapping[str, Sequence[float]]) -> None: ...  # from samples before training, by key


@dataclass(frozen=True)
class PriorityPrompts:
    """The list of another source, drawn in proportion to √(p·(1 - p)) + 0.05, p what `spo` tracks (arXiv:2509.13232)."""

    of: Annotated[Component, Kind("prompts")]
    first: Annotated[int, Field(ge=0)] = 8  # n₀, samples of every prompt before training, for its first p; 0 = all ½

    def check(self) -> list[str]:
        """Warnings; ConfigError for a source without a list."""
        self._list(0)
        return self.of.options.check()

    def check_recipe(self, recipe: Any, processes: int) -> None:
        """NeedsError for an algorithm that tracks nothing."""
        tracker_of(recipe.objective(), recipe.algorithm.name)

    def build(self, seed: int) -> Prioritized:
        return Prioritized(self._list(seed), seed, self.first)

    def held_out(self, count: int) -> Prompts:
        return self.of.options.held_out(count)

    def _list(self, seed: int) -> Prompts:
        source = self.of.options.build(seed)
        if not isinstance(source, Shuffled) or source.weights is not None:
            raise ConfigError(
                f"recipe.prompts.of: expected a source with a list of prompts and no weights of its own, got {self.of.name!r} "
                "without one. Give a file without select.weight, or tasks with train: how many problems."
            )
        return source.prompts


class Prioritized:
    """Draws without replacement while the list is long enough, by the priorities of the moment; every rank draws the same.

    How often it has drawn is its whole state: the priorities belong to the algorithm, which is checkpointed as well.
    """

    def __init__(self, prompts: Prompts, seed: int, first: int) -> None:
        self.prompts, self.seed, self.first, self.drawn = prompts, seed, first, 0
        self._priorities: Callable[[Sequence[str]], list[float]] | None = None

    def follow(self, objective: Any) -> None:
        """Draw by what this objective tracks."""
        self._priorities = tracker_of(objective).priorities

    def next(self, count: int) -> Prompts:
        if self._priorities is None:
            raise ConfigError(
                "recipe.prompts: expected an algorithm that tracks success rates for prompts 'priority', got a run without one. "
                "Use the source inside it."
            )
        weights = self._priorities(self.prompts.key)
        draws = random.Random(f"priority-{self.seed}-{self.drawn}")
        self.drawn += 1
        return self.prompts.take(weighted_draws(weights, count, draws))

    def update(self, rollout: Rollout) -> None:
        """The algorithm learns from the rewards."""

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drawn = state["drawn"]


def weighted_draws(weights: Sequence[float], count: int, draws: random.Random) -> list[int]:
    """Positions drawn one after the other in proportion to weights > 0, without replacement unless count > N."""
    if count > len(weights):
        return draws.choices(range(len(weights)), weights, k=count)
    clocks = [draws.expovariate(weight) for weight in weights]  # the first clocks to ring are such draws
    return heapq.nsmallest(count, range(len(weights)), key=clocks.__getitem__)


def tracker_of(objective: Any, name: str = "") -> Tracks:
    """The advantage of an objective that tracks success rates; NeedsError for any other."""
    advantage = getattr(objective, "advantage", None)
    if not isinstance(advantage, Tracks):
        raise NeedsError(
            f"recipe.prompts: expected an algorithm that tracks success rates for prompts 'priority', got {name or 'another'!r}. "
            "Use algorithm spo, or other prompts."
        )
    return advantage
