"""Before training: samples of every prompt, from which an algorithm that tracks success rates takes its first estimates."""

from __future__ import annotations

import math
from dataclasses import replace

from studio.core.advantage import row_reward
from studio.dist import Processes
from studio.parts import Parts
from studio.prompts.priority import Prioritized, tracker_of
from studio.recipe import Recipe
from studio.rollout import sample
from studio.types import Prompts, Rollout


class Walk:
    """Each prompt of a list so many times in a row, then from the beginning."""

    def __init__(self, prompts: Prompts, times: int) -> None:
        self.prompts, self.times, self.position = prompts, times, 0

    def next(self, count: int) -> Prompts:
        places = range(self.position, self.position + count)
        self.position += count
        return self.prompts.take([place // self.times % len(self.prompts) for place in places])

    def update(self, rollout: Rollout) -> None:
        """A walk learns nothing."""


def first_estimates(recipe: Recipe, parts: Parts, processes: Processes) -> None:
    """At least `first` samples of every prompt of a prioritized source, by the untrained policy; nothing for other sources.

    SPO (arXiv:2509.13232).  They are drawn and scored like those of an iteration, in iterations numbered from -n to -1.
    """
    source = parts.prompts
    if not isinstance(source, Prioritized) or not source.first:
        return
    settings, found = recipe.train, {}
    times = math.ceil(source.first / settings.group_size)
    rounds = math.ceil(len(source.prompts) * times / settings.groups_per_step)
    walking = replace(parts, prompts=Walk(source.prompts, times))
    for step in range(-rounds, 0):
        batch, _ = sample(recipe, walking, processes, step)
        reward, present = row_reward(batch.everyone, "first estimates")
        for key, value, there in zip(batch.everyone.prompts.key, reward.tolist(), present.tolist(), strict=True):
            if there:
                found.setdefault(key, []).append(value)
    tracker_of(parts.objective).estimate(found)
