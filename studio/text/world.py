"""The bundled text world: endless problems of the tasks, and which of them are never trained on."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping

from studio.text.tasks import LEVELS, TASKS, Problem

__all__ = ["HELD_OUT_SHARE", "LEVELS", "TASKS", "USUAL", "Problem", "drawn", "held_out", "problems"]

HELD_OUT_SHARE = 8  # one problem in eight is never trained on
# the level of each task of which the bundled model solves some and not all
USUAL = {"addition": 3, "subtraction": 2, "countdown": 2, "sorting": 3, "brackets": 3, "json": 3}


def held_out(problem: Problem) -> bool:
    """Whether a problem belongs to the test split; decided by its identity, so it holds for every seed and level."""
    return hashlib.sha256(problem.identity.encode()).digest()[0] % HELD_OUT_SHARE == 0


def drawn(
    rng: random.Random, weights: Mapping[str, float], levels: Mapping[str, tuple[int, ...]], *, test: bool = False
) -> Problem:
    """A random problem of one split: the task in proportion to its weight, its level uniformly among those given."""
    task = rng.choices(list(weights), list(weights.values()))[0]
    while True:
        made = TASKS[task].sample(rng, rng.choice(levels[task]))
        if held_out(made) is test:
            return made


def problems(
    seed: int, weights: Mapping[str, float], levels: Mapping[str, tuple[int, ...]], *, test: bool = False
) -> Iterator[Problem]:
    """Endless problems of one split; the same seed gives the same sequence."""
    rng = random.Random(f"text-{'test' if test else 'train'}-{seed}")
    while True:
        yield drawn(rng, weights, levels, test=test)
