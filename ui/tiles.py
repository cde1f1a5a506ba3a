"""The samples of a run as rows of prompts over steps: read once, found by words and scores, put in order."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from operator import eq, ge, gt, le, lt
from pathlib import Path
from typing import Any

from studio.errors import StudioError
from studio.files import read_records
from studio.layout import numbered
from studio.run_view import RunView
from ui.pairs import GUARD, HELD_OUT, key_of, scores

COLUMNS = 7  # steps beside each other, the base among them
SPREAD, NEWEST, EVERY = "spread", "newest", "all"
AS_EVALUATED = "as evaluated"
ORDERS = {
    "highest score": lambda row, name: _less(row.score(name), -1),
    "lowest score": lambda row, name: _less(row.score(name), 1),
    "largest gain": lambda row, name: _less(row.gain(name), -1),
    "largest loss": lambda row, name: _less(row.gain(name), 1),
    "prompt": lambda row, name: row.prompt.lower(),
}
SIGNS = {"<=": le, ">=": ge, "<": lt, ">": gt, "=": eq}
CONDITION = re.compile(r"(?P<name>[a-z_][\w.\-]*)(?P<sign><=|>=|<|>|=)(?P<value>[-+]?\d*\.?\d+)")
CHANGE = "change."  # before a name: against step 0


@dataclass(frozen=True)
class Tile:
    """One sample: what its record says, and where its files are; None for a file that is not named or not in the run."""

    step: int
    record: Mapping[str, Any]
    file: Path | None
    film: Path | None = None

    @cached_property
    def key(self) -> str:
        """Prompt, number and seed as a short word: the same sample at every step."""
        return blake2b("\0".join(key_of(self.record)).encode(), digest_size=6).hexdigest()

    @property
    def prompt(self) -> str:
        told = self.record.get("prompt")
        return told if isinstance(told, str) and told else "prompt not recorded"

    @property
    def text(self) -> str | None:
        told = self.record.get("text")
        return told if isinstance(told, str) else None

    @cached_property
    def scores(self) -> dict[str, float]:
        """Finite rewards, and guards as `guard.NAME`."""
        return {name: value + 0.0 for name, value in scores(self.record).items()}  # -0.0 is 0

    @property
    def pixels(self) -> bool:
        """Whether the picture is so small that its pixels should be seen."""
        sides = [side for side in (self.record.get("width"), self.record.get("height")) if isinstance(side, int)]
        return bool(sides) and max(sides) <= 128


@dataclass(frozen=True)
class Row:
    """One prompt and seed over the steps."""

    key: str
    prompt: str
    tiles: Mapping[int, Tile]

    def score(self, name: str | None, step: int | None = None) -> float | None:
        """The score at a step, by default the newest."""
        tile = self.tiles.get(max(self.tiles) if step is None else step)
        return None if tile is None or name is None else tile.scores.get(name)

    def gain(self, name: str | None, step: int | None = None) -> float | None:
        """The score at a step, by default the newest, less that of step 0."""
        now, before = self.score(name, step), self.score(name, 0)
        return None if now is None or before is None else now - before


@dataclass
class Shelf:
    """Tables of samples as they were last read; one that did not change is not read again."""

    kept: dict[Path, tuple[Any, list[Tile], int]] = field(default_factory=dict)
    most: int = 256

    def tiles(self, view: RunView, step: int, table: str = "samples.jsonl") -> tuple[list[Tile], int]:
        """The samples of a step, and how many of its lines are no records."""
        path = view.file(f"samples/{numbered(step)}/{table}")
        try:
            stat = path.stat()
        except OSError:
            return [], 0
        stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if self.kept.get(path, (None,))[0] != stamp:
            while len(self.kept) >= self.most:
                self.kept.pop(next(iter(self.kept)), None)
            self.kept[path] = (stamp, *_read(view, step, path))
        return self.kept[path][1:]


def _read(view: RunView, step: int, path: Path) -> tuple[list[Tile], int]:
    records, cursor, _ = read_records(path)
    lines = sum(1 for line in path.read_bytes()[: cursor.offset].split(b"\n") if line.strip())
    by_path = {str(record.get("path")) + ("" if "path" in record else str(i)): record for i, record in enumerate(records)}
    tiles = [Tile(step, r, _file(view, r.get("path")), _file(view, r.get("film"))) for r in by_path.values()]
    return tiles, lines - len(records)


def _file(view: RunView, named: Any) -> Path | None:
    """A file that a record names; None unless it would lie among the run's samples."""
    if not isinstance(named, str) or not named.startswith("samples/"):
        return None
    try:
        return view.file(named)
    except (StudioError, OSError, ValueError):
        return None


def columns(steps: Sequence[int], how: str) -> list[int]:
    """The steps that are shown: the first, then the newest before the older; steps ascending."""
    if not steps:
        return []
    base, rest = steps[0], list(steps[1:])
    room = COLUMNS - 1
    if how != EVERY and len(rest) > room:
        apart = (len(rest) - 1) / (room - 1)
        rest = rest[-room:] if how == NEWEST else [rest[round(k * apart)] for k in range(room)]
    return [base, *reversed(rest)]


def rows(tiles: Sequence[Tile]) -> list[Row]:
    """One row a prompt and seed, in the order of the newest step that has it."""
    found: dict[str, dict[int, Tile]] = {}
    for tile in sorted(tiles, key=lambda tile: -tile.step):
        found.setdefault(tile.key, {})[tile.step] = tile
    return [Row(key, next(iter(own.values())).prompt, own) for key, own in found.items()]


def names(shown: Sequence[Row]) -> list[str]:
    """Every score: trained rewards first, then held-out ones, then guards."""
    found = dict.fromkeys(name for row in shown for tile in row.tiles.values() for name in tile.scores)
    return sorted(found, key=lambda name: (name.startswith(GUARD), name.startswith(HELD_OUT)))


def matching(found: Sequence[Row], words: str, known: Sequence[str]) -> tuple[list[Row], list[str]]:
    """The rows whose prompt or newest text holds every word and meets every condition, and names that no score has.

    A condition is a score against a number at the newest step, scene<0.5, or its change since step 0, change.scene<0.
    """
    kept, unknown = list(found), []
    for word in str(words or "").lower().split():
        told = CONDITION.fullmatch(word)
        if told is None:
            kept = [row for row in kept if word in f"{row.prompt} {row.tiles[max(row.tiles)].text or ''}".lower()]
            continue
        changed, asked = told["name"].startswith(CHANGE), told["name"].removeprefix(CHANGE)
        name = next((n for n in known if asked in (n.lower(), n.lower().removeprefix(HELD_OUT).removeprefix(GUARD))), None)
        if name is None:
            unknown.append(asked)
            continue
        meets, value = SIGNS[told["sign"]], float(told["value"])
        measured = [(row, row.gain(name) if changed else row.score(name)) for row in kept]
        kept = [row for row, number in measured if number is not None and meets(round(number, 6), value)]  # float32 was written
    return kept, unknown


def ordered(found: Sequence[Row], name: str | None, order: str) -> list[Row]:
    """Rows by one score at the newest step; those without it last, equal ones in their order."""
    place = ORDERS.get(order)
    return list(found) if place is None else sorted(found, key=lambda row: place(row, name))


def _less(value: float | None, sign: int) -> tuple[bool, float]:
    return value is None, sign * (value or 0.0)
