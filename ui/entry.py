"""A run that is to start, and which of several may start now."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Entry:
    """A run to be started, and how far that has got."""

    name: str  # of the run
    work: str  # train or prune
    recipe: str  # a bundled name, or .launch/NAME.yaml
    overrides: tuple[str, ...] = ()
    processes: int = 1
    gpus: str = ""  # CUDA_VISIBLE_DEVICES; empty = whatever the interface itself sees
    began: float = 0.0  # when it was taken for starting
    claim: dict[str, Any] = field(default_factory=dict)  # the interface that took it
    process: dict[str, Any] = field(default_factory=dict)  # the command
    place: int = 0
    id: str = ""
    state: str = "waiting"

    def words(self, root: Path) -> list[str]:
        """What stands behind `studio` on the command line."""
        recipe = str(root / self.recipe) if self.recipe.startswith(".launch/") else self.recipe
        several = ["--gpus", str(self.processes)] if self.processes > 1 else []
        place = ["--name", self.name, "--runs", str(root)]
        return [self.work, recipe, *self.overrides, *several, *place, "--progress", "plain"]


def ready(entries: Iterable[Entry]) -> list[Entry]:
    """The waiting entries whose turn it is: none before them, and none that runs, shares a GPU with them."""
    entries = list(entries)
    busy = [entry.gpus for entry in entries if entry.state == "started"]
    found = []
    for entry in entries:
        if entry.state == "waiting":
            if not any(shared(entry.gpus, gpus) for gpus in busy):
                found.append(entry)
            busy.append(entry.gpus)
    return found


def shared(a: str, b: str) -> bool:
    """Whether two sets of GPUs overlap; an empty one stands for all that the machine has."""
    return not a or not b or bool(set(a.split(",")) & set(b.split(",")))
