"""Heat maps of metrics that have a value per denoising step: training steps to the right, denoising steps downward."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from studio.chart import number
from ui.curves import Curves

COLUMNS, ROWS, LEVELS = 120, 64, 24  # at most; shades that are told apart
HEIGHT = (18, 72, 260)  # of a row, and of all rows at least and at most [px]
USUAL = 0.98  # share of cells that a scale should serve
STOPS = 4  # colors of a scale, less one: --seq-0 to --seq-4, --div-0 to --div-4


@dataclass(frozen=True)
class Heat:
    """Means of a metric over stretches of training, per denoising step."""

    spans: list[tuple[int, int]]  # first and last training step of each column
    rows: list[int]  # denoising steps
    cells: np.ndarray  # [rows, columns], NaN where nothing was recorded


@dataclass(frozen=True)
class Scale:
    """From values to shades; with both signs, zero is in the middle."""

    low: float
    high: float
    cut: bool = False  # values beyond an end are shown like the end

    @classmethod
    def of(cls, maps: Sequence[Heat]) -> Scale:
        """From the smallest to the largest value of all maps: from 0 when one sign occurs, else as far up as down.

        Where the largest is more than twice what 98 of 100 cells stay below, the scale ends there: one spike should not take the
        shades from all others.
        """
        found = np.concatenate([each.cells[~np.isnan(each.cells)] for each in maps])
        size = np.abs(found)
        most, usual = float(size.max(initial=0.0)), float(np.quantile(size, USUAL)) if len(size) else 0.0
        cut = most > 2 * usual > 0
        most = usual if cut else most
        low = float(found.min()) if len(found) else 0.0
        return cls(-most if low < 0 else 0.0 if low < most / 2 else low, most, cut)

    @property
    def kind(self) -> str:
        return "div" if self.low < 0 else "seq"

    def level(self, value: float) -> int:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.0
        return round(min(max(share, 0.0), 1.0) * (LEVELS - 1))

    def paint(self, level: int) -> str:
        """The color of a shade, mixed from those of the theme."""
        place = level / (LEVELS - 1) * STOPS
        at = min(int(place), STOPS - 1)
        return f"color-mix(in oklab,var(--{self.kind}-{at + 1}) {100 * (place - at):.0f}%,var(--{self.kind}-{at}))"


def stepwise(names: Iterable[str]) -> dict[str, dict[int, str]]:
    """Metrics called `NAME@T` -> name -> denoising step -> metric, in order of steps."""
    found: dict[str, dict[int, str]] = {}
    for name in names:
        if match := re.fullmatch(r"(.+)@(\d{1,4})", name):
            found.setdefault(match[1], {})[int(match[2])] = name
    return {name: dict(sorted(rows.items())) for name, rows in found.items()}


def heat(curves: Curves, rows: dict[int, str]) -> Heat | None:
    """At most 120 columns of about equally many recorded training steps; None when there is no value."""
    shown = list(rows)
    if len(shown) > ROWS:
        shown = [shown[round(k * (len(shown) - 1) / (ROWS - 1))] for k in range(ROWS)]
    table = np.array([curves.columns[rows[t]] for t in shown if rows[t] in curves.columns])
    if not table.size or np.isnan(table).all():
        return None
    live = ~np.isnan(table).all(axis=0)
    table, steps = table[:, live], curves.steps[live]
    starts = np.unique(np.linspace(0, len(steps), min(COLUMNS, len(steps)), endpoint=False).astype(int))
    count = np.add.reduceat(~np.isnan(table), starts, axis=1)
    total = np.add.reduceat(np.nan_to_num(table), starts, axis=1)
    cells = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    ends = [*starts[1:], len(steps)]
    spans = [(int(steps[a]), int(steps[b - 1])) for a, b in zip(starts, ends, strict=True)]
    return Heat(spans, [t for t in shown if rows[t] in curves.columns], cells)


def heat_card(metric: str, maps: dict[str, Heat], told: str = "") -> str:
    """The same metric of one or several runs on one scale."""
    scale, title = Scale.of(list(maps.values())), escape(metric)
    several = len(maps) > 1
    drawn = "".join(f"{f'<h4>{escape(run)}</h4>' if several else ''}{_map(metric, run, each, scale)}" for run, each in maps.items())
    return (
        f'<figure class="chart heat"><figcaption><b>{title}</b>{_scale(scale)}<button type="button" data-csv="{title}" '
        f'title="Save the values of this picture" aria-label="Save {title} as CSV">CSV</button></figcaption>{drawn}'
        f"{f'<p>{escape(told)}</p>' if told else ''}</figure>"
    )


def _map(metric: str, run: str, each: Heat, scale: Scale) -> str:
    height, least, most = HEIGHT
    tall = max(least, min(most, height * len(each.rows)))
    told = f"{metric} of {run}: rows are denoising steps {each.rows[0]} to {each.rows[-1]}, columns training steps"
    told += f" {each.spans[0][0]} to {each.spans[-1][1]}, from {number(scale.low)} to {number(scale.high)}"
    data = {"n": run, "t": each.rows, "x": each.spans, "v": [[_short(value) for value in row] for row in each.cells.tolist()]}
    every = -(-len(each.rows) * 13 // tall)  # labels that stand free of each other
    labels = "".join(f"<span>{t if k % every == 0 else ''}</span>" for k, t in enumerate(each.rows))
    middle = each.spans[len(each.spans) // 2][0]
    ends = (each.spans[0][0], middle, each.spans[-1][1]) if len(each.spans) > 2 else (each.spans[0][0], each.spans[-1][1])
    return (
        f'<div class="map" style="height:{tall}px"><div class="ts" aria-hidden="true">{labels}</div>'
        f'<svg class="cells" role="img" tabindex="0" aria-label="{escape(told)}" preserveAspectRatio="none" '
        f'viewBox="0 0 {len(each.spans)} {len(each.rows)}" data-heat="{escape(json.dumps(data, separators=(",", ":")))}">'
        f'{_cells(each, scale)}<g class="cross"></g></svg></div>'
        f'<div class="xs" aria-hidden="true">{"".join(f"<span>{x}</span>" for x in dict.fromkeys(ends))}</div>'
    )


def _cells(each: Heat, scale: Scale) -> str:
    """One path per shade; neighbors of a shade in a row are one stroke."""
    strokes: dict[int, list[str]] = {}
    for y, row in enumerate(each.cells.tolist()):
        levels = [None if value != value else scale.level(value) for value in row]
        x = 0
        while x < len(levels):
            end = next((k for k in range(x, len(levels)) if levels[k] != levels[x]), len(levels))
            if levels[x] is not None:
                strokes.setdefault(levels[x], []).append(f"M{x} {y}.5H{end}")
            x = end
    return "".join(f'<path d="{"".join(path)}" style="stroke:{scale.paint(level)}"/>' for level, path in sorted(strokes.items()))


def _scale(scale: Scale) -> str:
    both = scale.kind == "div"
    low, high = (
        f"{sign if scale.cut else ''}{number(end)}" for sign, end in (("≤ " if both else "", scale.low), ("≥ ", scale.high))
    )
    shades = f'<i class="{scale.kind}">{"<span>0</span>" if both else ""}</i>'
    return f'<span class="scale"><span>{low}</span>{shades}<span>{high}</span></span>'


def _short(value: float) -> float | None:
    return None if value != value else float(f"{value:.4g}")
