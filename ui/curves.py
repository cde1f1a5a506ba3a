"""Metrics of runs as columns: read once, then only what is new; smoothed and thinned for a picture of them."""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from studio.files import Cursor
from studio.run_view import RunView

RUNS = 32  # that are kept in memory; of 10,000 steps with 60 metrics each takes 5 MB
POINTS = 400  # of a curve that are drawn
SPAN = 1000  # a run longer than this many steps is smoothed in thousandths of its length
START = Cursor()
LARGEST = 2**53  # steps and whole numbers beyond are not counts but damage


@dataclass(frozen=True)
class Curves:
    """Metrics of a run, a row per step."""

    steps: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))  # [n], ascending, each once
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)  # name -> [n], NaN where a step has no value
    cursor: Cursor = START  # how far the file was read; tells two versions apart

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a metric where it has any."""
        column = self.columns.get(name)
        if column is None:
            return self.steps[:0], np.empty(0)
        kept = ~np.isnan(column)
        return self.steps[kept], column[kept]

    def latest(self, name: str) -> float | None:
        values = self.series(name)[1]
        return float(values[-1]) if len(values) else None

    @property
    def names(self) -> list[str]:
        """Metrics that have a value at some step."""
        return [name for name, column in self.columns.items() if not np.isnan(column).all()]


def merged(old: Curves, records: Sequence[Mapping[str, Any]], cursor: Cursor = START) -> Curves:
    """The curves with new records; of two values of one step the later counts, also where it is null."""
    records = [record for record in records if _counted(record.get("step"))]
    if not records:
        return replace(old, cursor=cursor)
    fresh = np.array([record["step"] for record in records], dtype=np.int64)
    steps = np.union1d(old.steps, fresh)
    was, now = np.searchsorted(steps, old.steps), np.searchsorted(steps, fresh)
    places, values = defaultdict(list), defaultdict(list)
    for place, record in zip(now.tolist(), records, strict=True):
        for name, value in record.items():
            places[name].append(place)
            values[name].append(value if type(value) is float else _value(value))
    columns = {}
    for name in dict.fromkeys((*old.columns, *places)):
        if name in ("t", "step"):
            continue
        columns[name] = column = np.full(len(steps), np.nan)
        if name in old.columns:
            column[was] = old.columns[name]
        if name in places:
            column[places[name]] = values[name]
            column[np.isinf(column)] = np.nan
    return Curves(steps, columns, cursor)


def _counted(step: Any) -> bool:
    return type(step) is int and abs(step) < LARGEST


def _value(value: Any) -> float:
    return float(value) if _counted(value) else math.nan


class Reader:
    """Curves of the runs that were looked at last; a file that has grown is read from where it ended."""

    def __init__(self, most: int = RUNS) -> None:
        self._most = most
        self._known: OrderedDict[tuple[Path, Any], Curves] = OrderedDict()
        self._lock = Lock()  # handlers of several browsers run at once

    def read(self, view: RunView) -> Curves:
        """All metrics of a run as they stand."""
        key = (view.folder, view.status.get("started"))  # a run made anew under an old name is another one
        with self._lock:
            old = self._known.pop(key, Curves())
            found = view.metrics(old.cursor)
            if found.cursor != old.cursor or found.restarted:
                old = merged(Curves() if found.restarted else old, found.records, found.cursor)
            self._known[key] = old
            while len(self._known) > self._most:
                self._known.popitem(last=False)
        return old


def smoothed(steps: np.ndarray, values: np.ndarray, weight: float) -> np.ndarray:
    """Exponential means [n]: Σ w^(d/u) y / Σ w^(d/u) over a point and those before it, d steps away, u = max(1, span/1000).

    Dividing by the sum of the weights takes away the pull to zero at the start. Distances count in steps, so that evaluations
    twenty steps apart are hardly mixed where neighboring steps are.
    """
    if not weight or len(values) < 2:
        return values
    unit = max(1.0, float(steps[-1] - steps[0]) / SPAN)
    total = norm = 0.0
    means = []
    for decay, value in zip((weight ** (np.diff(steps, prepend=steps[:1]) / unit)).tolist(), values.tolist(), strict=True):
        total, norm = decay * total + value, decay * norm + 1.0
        means.append(total / norm)
    return np.array(means)


def thinned(values: np.ndarray, most: int = POINTS) -> np.ndarray:
    """Indices of at most `most` values: the first, the last, and the lowest and highest of each of equal parts between."""
    if len(values) <= most:
        return np.arange(len(values))
    edges = np.linspace(1, len(values) - 1, (most - 2) // 2 + 1).astype(int)
    kept = {0, len(values) - 1}
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        part = values[low:high]
        kept |= {low + int(part.argmin()), low + int(part.argmax())}
    return np.array(sorted(kept))
