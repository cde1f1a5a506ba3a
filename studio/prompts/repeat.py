"""K samples per prompt, spread over ranks: which rows of the global batch a rank samples."""

from __future__ import annotations

from typing import NamedTuple

from studio.errors import ConfigError
from studio.types import Prompts


class Rows(NamedTuple):
    """A rank's rows of the global batch."""

    prompts: Prompts  # [b]
    group: list[int]  # [b] which prompt of the iteration
    replica: list[int]  # [b] which sample of its group
    start: int  # position of the first row in the global batch


def rank_rows(prompts: Prompts, per_prompt: int, rank: int = 0, world: int = 1) -> Rows:
    """Rows [rank·b, (rank+1)·b) of the batch that repeats each prompt `per_prompt` times; a group may be spread over ranks.

    Every rank must pass the same prompts. Groups are numbered by position, so equal prompts stay distinct groups.
    """
    total = len(prompts) * per_prompt
    if total % world:
        raise ConfigError(
            f"recipe.train: expected groups_per_step × group_size to divide over {world} processes, got {len(prompts)} × "
            f"{per_prompt} = {total}. Change one of the three."
        )
    size = total // world
    mine = range(rank * size, (rank + 1) * size)
    group = [row // per_prompt for row in mine]
    return Rows(prompts.take(group), group, [row % per_prompt for row in mine], mine.start)
