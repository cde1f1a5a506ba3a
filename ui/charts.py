"""Cards of charts: one metric of one or several runs, with legend, newest values and the data behind the picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any

import numpy as np

from studio.chart import LIMIT, number
from ui.curves import POINTS, Curves, smoothed, thinned
from ui.plot import Band, color, plot

NEAR = 4.0  # curves share an axis when together they span at most this many times the largest range of one


@dataclass(frozen=True)
class Shown:
    """A run on the page."""

    name: str
    curves: Curves
    bands: Mapping[str, Band] = field(default_factory=dict)  # metric -> where it raises no alarm


Track = tuple[np.ndarray, np.ndarray]  # steps, values


@dataclass(frozen=True)
class Line:
    """A curve of a chart, thinned to what a picture can show."""

    name: str
    measured: Track
    smooth: Track | None = None  # drawn in front of what was measured
    heights: np.ndarray | None = None  # where it is drawn instead, when curves of several scales share a chart

    @classmethod
    def of(cls, name: str, track: Track, weight: float) -> Line:
        """A curve, with its smoothed values where a weight asks for them."""
        steps, values = track
        means = smoothed(steps, values, weight)
        return cls(name, _thin(steps, values), None if means is values else _thin(steps, means, POINTS // 2))

    @property
    def front(self) -> Track:
        """What is drawn and told first."""
        steps, values = self.smooth or self.measured
        return steps, values if self.heights is None else self.heights

    def data(self, i: int) -> dict[str, Any]:
        """What studio.js shows under the pointer and saves as CSV."""
        found = {"n": self.name, "i": i, "x": self.measured[0].tolist(), "y": _short(self.measured[1])}
        if self.smooth:
            found |= {"sx": self.smooth[0].tolist(), "sy": _short(self.smooth[1])}
        return found | ({} if self.heights is None else {"h": _short(self.heights)})


def metric_card(metric: str, runs: Sequence[Shown], *, told: str = "", weight: float = 0.0) -> str:
    """One metric; runs are told apart by color."""
    lines = [Line.of(run.name, run.curves.series(metric), weight) for run in runs[:LIMIT]]
    if len(runs) == 1:
        lines = [replace(lines[0], name=metric)]
    return card(metric, lines, told=told, band=runs[0].bands.get(metric))


def joint_card(title: str, metrics: Sequence[str], run: Shown, *, told: str = "", weight: float = 0.0, wide: bool = False) -> str:
    """Several metrics of one run; where their scales differ, each fills its own range."""
    lines = [Line.of(metric, run.curves.series(metric), weight) for metric in metrics[:LIMIT]]
    if not _alike(lines):
        lines = [_filling(line) for line in lines]
        told = f"{told} Each curve fills its own range: compare directions, not heights.".strip()
    return card(title, lines, told=told, wide=wide)


def card(title: str, lines: Sequence[Line], *, told: str = "", band: Band | None = None, wide: bool = False) -> str:
    """The chart, its legend with the newest values, and its data in an attribute."""
    drawn = {line.name: _pairs(line.front) for line in lines}
    raw = {line.name: _pairs(line.measured) for line in lines if line.smooth and line.heights is None}
    svg = plot(drawn, title=title, faint=raw, band=band)
    if wide:  # letters keep their size only where the drawing does, so that a wide page gets a drawing of its own
        svg = plot(drawn, title=title, faint=raw, band=band, width=1180, height=270, kind="large") + svg
    data = escape(json.dumps([line.data(i) for i, line in enumerate(lines)], separators=(",", ":")))
    out = band is not None and any(not band.low <= value <= band.high for line in lines for value in line.measured[1][-1:])
    alone = lines[0] if len(lines) == 1 else None
    value = f'<span class="now">{_newest(alone)}</span>' if alone else ""
    state = '<span class="state lost">outside its band</span>' if out else ""
    note = " ".join(part for part in (told, band.told if band else "") if part)
    return (
        f'<figure class="chart{" wide-chart" if wide else ""}{" out" if out else ""}" data-series="{data}">'
        f"<figcaption><b>{escape(title)}</b>{value}{state}"
        f'<button type="button" data-csv="{escape(title)}" title="Save the points of this picture" '
        f'aria-label="Save {escape(title)} as CSV">CSV</button></figcaption>'
        f"{'' if alone else legend(lines)}{svg}{f'<p>{escape(note)}</p>' if note else ''}</figure>"
    )


def legend(lines: Sequence[Line]) -> str:
    """Names and newest values by color."""
    items = "".join(
        f'<li style="--color:{color(i)}"{" class=dashed" if i >= LIMIT // 2 else ""}><span>{escape(line.name)}</span> '
        f"<b>{_newest(line)}</b></li>"
        for i, line in enumerate(lines)
        if len(line.measured[1])
    )
    return f'<ul class="legend">{items}</ul>'


def constant(metric: str, runs: Sequence[Shown]) -> float | None:
    """The value that a metric has at all steps of all runs that have it; None when it moved."""
    values = np.concatenate([run.curves.series(metric)[1] for run in runs])
    return float(values[0]) if len(values) and (values == values[0]).all() else None


def twins(metrics: Sequence[str], runs: Sequence[Shown]) -> dict[str, str]:
    """Metrics that equal an earlier one at every step of every run -> that one: a single reward is its own mean."""
    seen: dict[bytes, str] = {}
    found = {}
    for metric in metrics:
        mark = b"|".join(part.tobytes() for run in runs for part in run.curves.series(metric))
        first = seen.setdefault(mark, metric)
        if first != metric:
            found[metric] = first
    return found


def _newest(line: Line) -> str:
    values = (line.smooth or line.measured)[1]
    return number(float(values[-1])) if len(values) else "–"


def _alike(lines: Sequence[Line]) -> bool:
    """Whether all curves can be read on one axis."""
    found = [(values.min(), values.max()) for line in lines if len(values := line.measured[1])]
    whole = max((high for _, high in found), default=0.0) - min((low for low, _ in found), default=0.0)
    return whole <= NEAR * max((high - low for low, high in found), default=0.0)


def _filling(line: Line) -> Line:
    """The curve with its lowest drawn value at 0 and its highest at 1; a constant at one half."""
    values = line.front[1]
    if not len(values):
        return line
    low, high = values.min(), values.max()
    return replace(line, heights=(values - low) / (high - low) if high > low else np.full(len(values), 0.5))


def _thin(steps: np.ndarray, values: np.ndarray, most: int = POINTS) -> Track:
    kept = thinned(values, most)
    return steps[kept], values[kept]


def _pairs(track: Track) -> list[tuple[float, float]]:
    return list(zip(track[0].tolist(), track[1].tolist(), strict=True))


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values.tolist()]
