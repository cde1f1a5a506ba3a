"""The drawing of a chart alone: title, legend and the values under the pointer stand around it on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from studio.chart import LETTER, LIMIT, PALETTE, Points, axes, line, place, scales, stroke, summary, tick_labels

WIDTH, HEIGHT = 400, 190
LEFT, TOP, RIGHT, BOTTOM = 16, 8, 18, 22  # margins [px], the left one beside the labels of its axis


class Band(NamedTuple):
    """Where a guard may be without an alarm."""

    low: float
    high: float
    told: str  # where it comes from


def plot(
    lines: Mapping[str, Points],
    *,
    title: str,
    faint: Mapping[str, Points] | None = None,
    band: Band | None = None,
    width: int = WIDTH,
    height: int = HEIGHT,
    kind: str = "small",
) -> str:
    """SVG of at most 8 lines over training steps; the i-th line has the i-th color, also when it has no points.

    `faint` curves are drawn behind in the color of their line: what was measured, behind its mean. studio.js reads the frame
    [px] and the bounds from the attributes, and moves the crosshair.
    """
    faint = faint or {}
    points = [point for each in (*lines.values(), *faint.values()) for point in each]
    top = (
        f'<svg class="plot {kind}" role="img" tabindex="0" aria-label="{escape(title)}" viewBox="0 0 {width} {height}" '
        'font-size="11" fill="currentColor" aria-keyshortcuts="ArrowLeft ArrowRight"'
    )
    if not points or len(lines) > LIMIT:
        return f"{top}></svg>"
    also = band[:2] if band else ()
    frame = (LEFT, TOP, width - RIGHT, height - BOTTOM)
    letters = max(map(len, tick_labels(scales(points, frame, also)[2])))
    frame = (LEFT + round(LETTER * letters), *frame[1:])
    bounds, x_ticks, y_ticks = scales(points, frame, also)
    drawn = [_band(band, frame, bounds)] if band else []
    drawn.append(axes(frame, bounds, x_ticks, y_ticks))
    colors = {name: i for i, name in enumerate(lines)}
    drawn += [_faint(colors[name], each, frame, bounds) for name, each in faint.items() if each]
    drawn += [line(colors[name], name, each, frame, bounds, titles=False) for name, each in lines.items()]
    placed = f'data-frame="{" ".join(map(str, frame))}" data-bounds="{" ".join(map(repr, bounds))}"'
    told = escape(summary(dict(lines), title, "training steps"))
    return f'{top} {placed}><desc>{told}</desc>{"".join(drawn)}<g class="cross"></g></svg>'


def _band(band: Band, frame: Sequence[float], bounds: Sequence[float]) -> str:
    left, _, right, _ = frame
    high, low = (place((bounds[0], edge), frame, bounds)[1] for edge in (band.high, band.low))
    edges = "".join(f'<path class="edge" d="M{left} {y:.1f}H{right}"/>' for y in (high, low))
    return f'<rect class="band" x="{left}" y="{high:.1f}" width="{right - left}" height="{low - high:.1f}"/>{edges}'


def _faint(i: int, points: Points, frame: Sequence[float], bounds: Sequence[float]) -> str:
    path = " ".join("{:.1f},{:.1f}".format(*place(point, frame, bounds)) for point in points)
    return f'<polyline class="faint" points="{path}" fill="none" style="{stroke(i)}"/>'


def color(i: int) -> str:
    """The i-th color in light and dark, for what stands beside a plot."""
    return f"var(--line-{i + 1},{PALETTE[i]})"
