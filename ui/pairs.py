"""Two sides on the same prompts and seeds: which samples belong together, and by how much their scores differ."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from studio.chart import is_number
from studio.errors import StudioError
from studio.run_view import RunView
from ui.index import kind_of

GUARD, HELD_OUT = "guard.", "held_out."
Key = tuple[str, str, str]


@dataclass(frozen=True)
class Side:
    """What one half of the page shows: a run as it was at one step."""

    view: RunView
    step: int | None  # None = the run has no samples

    @classmethod
    def of(cls, view: RunView, wanted: Any = None, *, first: bool = False) -> Side:
        """The side at the wanted step; at its newest samples, or its first, when there are none of that step."""
        steps = view.sample_steps()
        chosen = wanted if wanted in steps else (steps[0] if first else steps[-1]) if steps else None
        return cls(view, chosen)

    @property
    def name(self) -> str:
        return self.view.folder.name

    @property
    def title(self) -> str:
        return f"{self.name} · {'no samples' if self.step is None else f'step {self.step}'}"

    @property
    def recipe(self) -> dict[str, Any]:
        """Empty while a run has none that can be read."""
        try:
            return self.view.recipe
        except StudioError:
            return {}

    @property
    def kind(self) -> str:
        return kind_of(self.recipe)

    def records(self) -> list[dict[str, Any]]:
        """The samples; none when a record names a file outside the run."""
        try:
            return [] if self.step is None else self.view.samples(self.step)
        except StudioError:
            return []


class Pair(NamedTuple):
    """The records of one prompt, sample and seed on both sides."""

    first: Mapping[str, Any]
    second: Mapping[str, Any]

    @property
    def key(self) -> Key:
        return key_of(self.first)

    @property
    def prompt(self) -> str:
        return str(self.first.get("prompt", ""))


class Difference(NamedTuple):
    """One score over all pairs that have it on both sides; a difference is second - first."""

    name: str
    first: float  # means
    second: float
    change: float
    error: float | None  # standard error of the mean difference over pairs, s / √n; None for one pair
    wins: int  # pairs in which the second side is higher
    ties: int
    count: int

    @property
    def rate(self) -> float:
        """Share of pairs that the second side wins; a tie is half a win."""
        return (self.wins + self.ties / 2) / self.count

    @property
    def clear(self) -> bool:
        """Whether the mean difference is more than 1.96 standard errors from 0."""
        return self.error is not None and abs(self.change) > 1.96 * self.error


def key_of(record: Mapping[str, Any]) -> Key:
    """What makes two samples comparable: text of the prompt, number of the sample, seed of the noise."""
    return str(record.get("prompt", "")), str(record.get("sample_id", "")), str(record.get("seed", ""))


def text_of(record: Mapping[str, Any]) -> str | None:
    """What a sample says; None for a picture."""
    if isinstance(record.get("text"), str):
        return record["text"]
    file = record.get("file")
    return file.read_text("utf-8", "replace") if file is not None and file.suffix == ".txt" and file.is_file() else None


def match(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> list[Pair]:
    """Pairs of one key in the order of the first side; of several records with one key the last one counts."""
    left, right = ({key_of(record): record for record in records} for records in (first, second))
    return [Pair(record, right[key]) for key, record in left.items() if key in right]


def differing(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs without those that say the same on both sides, of which nobody can prefer one."""
    texts = [(text_of(pair.first), text_of(pair.second)) for pair in pairs]
    return [pair for pair, (left, right) in zip(pairs, texts, strict=True) if left is None or left != right]


def scores(record: Mapping[str, Any]) -> dict[str, float]:
    """The finite rewards of a sample, and its guards as `guard.NAME`."""
    rewards, guards = (record.get(part) if isinstance(record.get(part), Mapping) else {} for part in ("rewards", "guards"))
    both = {str(k): v for k, v in rewards.items()} | {f"{GUARD}{k}": v for k, v in guards.items()}  # type: ignore[union-attr]
    return {name: float(value) for name, value in both.items() if is_number(value)}


def names(pairs: Sequence[Pair]) -> list[str]:
    """Every score that some pair has on both sides: rewards first, then held-out ones, then guards."""
    found = dict.fromkeys(name for pair in pairs for name in scores(pair.first) if name in scores(pair.second))
    return sorted(found, key=lambda name: (name.startswith(GUARD), name.startswith(HELD_OUT)))


def delta(pair: Pair, name: str) -> float | None:
    """Second - first; None where a side has no such score."""
    first, second = scores(pair.first).get(name), scores(pair.second).get(name)
    return None if first is None or second is None else second - first


def differences(pairs: Sequence[Pair]) -> list[Difference]:
    """Every score over all pairs."""
    columns = {name: ([], []) for name in names(pairs)}
    for pair in pairs:
        first, second = scores(pair.first), scores(pair.second)
        for name, (left, right) in columns.items():
            if name in first and name in second:
                left.append(first[name])
                right.append(second[name])
    return [difference(name, left, right) for name, (left, right) in columns.items()]


def difference(name: str, first: Sequence[float], second: Sequence[float]) -> Difference:
    """Paired differences of values [n], n ≥ 1: their mean, its standard error √(Σ(d - d̄)² / (n - 1) / n), who is higher."""
    deltas = [y - x for x, y in zip(first, second, strict=True)]
    return Difference(
        name,
        statistics.fmean(first),
        statistics.fmean(second),
        statistics.fmean(deltas),
        statistics.stdev(deltas) / math.sqrt(len(deltas)) if len(deltas) > 1 else None,
        sum(d > 0 for d in deltas),
        sum(d == 0 for d in deltas),
        len(deltas),
    )


ORDERS = {
    "largest gain": lambda change: -change,
    "largest loss": lambda change: change,
    "largest change": lambda change: -abs(change),
}
AS_DRAWN = "as evaluated"


def ordered(pairs: Sequence[Pair], name: str | None, order: str) -> list[Pair]:
    """Pairs by the difference of one score; those without it last, equal ones in their order."""
    if name is None or order not in ORDERS:
        return list(pairs)
    changes = {pair.key: delta(pair, name) for pair in pairs}
    by_change = ORDERS[order]

    def place(pair: Pair) -> tuple[bool, float]:
        change = changes[pair.key]
        return change is None, 0.0 if change is None else by_change(change)

    return sorted(pairs, key=place)


def unmatched(first: Side, second: Side) -> str:
    """Why no sample of the two sides can be compared, and what to do about it."""
    for side in (first, second):
        if side.step is None:
            return (
                f"{side.name} has no samples yet. Choose another run, press “Sample now” on the page Runs while it is at work, or "
                "start it again with watch.samples above 0."
            )
    left, right = ({str(record.get("prompt", "")) for record in side.records()} for side in (first, second))
    shared = len(left & right)
    if not shared:
        return (
            f"No prompt is on both sides ({len(left)} and {len(right)} prompts). Choose runs of the same prompts, or two steps of "
            "one run."
        )
    seeds = [side.recipe.get("seed") for side in (first, second)]
    told = f" (the recipes have seed={seeds[0]} and seed={seeds[1]})" if seeds[0] != seeds[1] else ""
    return (
        f"{shared} prompts are on both sides, but no sample of them has the same number and seed{told}: their difference would "
        "mostly be that of the noise. Choose runs of one seed, start one again with the seed of the other, or choose two steps of "
        "one run."
    )
