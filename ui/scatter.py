"""Points that can be followed: axes are SVG, points are links that tell what they stand for, to the pointer and the keyboard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from studio.chart import nice_ticks, tick_labels

WIDTH, HEIGHT = 460, 300
LEFT, TOP, RIGHT, BOTTOM = 52, 12, 14, 44  # margins [px]
LEAST = 0.1  # of the network or of its time, across: closer targets are one target
DECADES = 8.0  # from this ratio of the largest to the smallest value on, an error is drawn on a logarithmic axis


class Point(NamedTuple):
    """One thing in the chart."""

    x: float
    y: float
    series: int  # number of its color
    told: str  # its name, then a line for each fact
    href: str  # escaped
    chosen: bool = False


class Axis(NamedTuple):
    """Which values stand where: `low` at 0, `high` at 1."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool

    def place(self, value: float) -> float:
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def scatter(points: Sequence[Point], *, x_label: str, y_label: str, less: bool) -> str:
    """The chart as HTML; with `less`, smaller y are better, and are spread out by a logarithm when they differ much."""
    points = [p for p in points if math.isfinite(p.x) and math.isfinite(p.y)]
    if not points:
        return f'<p class="soft">No finished run has both {escape(x_label)} and {escape(y_label)}.</p>'
    x, y = axis([p.x for p in points], least=LEAST), axis([p.y for p in points], spread=less)
    placed = [(_across(x.place(p.x)), _down(y.place(p.y))) for p in points]
    best = [placed[k] for k in front(points, less)]
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in best)
    dots = "".join(_dot(p, a, b) for p, (a, b) in zip(points, placed, strict=True))
    title = escape(f"{y_label} against {x_label}, {len(points)} runs")
    return (
        f'<div class="scatter"><svg role="img" aria-label="{title}" viewBox="0 0 {WIDTH} {HEIGHT}">'
        f'<title>{title}</title>{_axes(x, y, x_label, y_label)}<polyline class="front" points="{line}"/></svg>{dots}</div>'
    )


def axis(values: Sequence[float], *, spread: bool = False, least: float = 0.0) -> Axis:
    """An axis with round ends, ticks at least `least` apart; logarithmic when asked to spread positive values that differ much."""
    low, high = min(values), max(values)
    if spread and low > 0 and high / low >= DECADES:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        ticks = [k * 10.0**power for power in range(first, last + 1) for k in (1, 2, 5)]
        below, above = max(t for t in ticks if t <= low * (1 + 1e-9)), min(t for t in ticks if t >= high * (1 - 1e-9))
        return Axis(below, above, tuple(t for t in ticks if below <= t <= above), True)
    margin = max(0.04 * (high - low) or 0.05 * abs(high) or 0.5, (least - (high - low)) / 2)  # a point on an edge is hard to see
    ticks = nice_ticks(low - margin, high + margin, 5)
    return Axis(ticks[0], ticks[-1], tuple(ticks), False)


def front(points: Sequence[Point], less: bool) -> list[int]:
    """Numbers of the points that no other is left of and better than, by x: the smallest network of each quality."""
    order = sorted(range(len(points)), key=lambda k: (points[k].x, points[k].y if less else -points[k].y))
    kept: list[int] = []
    for k in order:
        if not kept or (points[k].y < points[kept[-1]].y if less else points[k].y > points[kept[-1]].y):
            kept.append(k)
    return kept


def _across(share: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * share


def _down(share: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * share


def _dot(point: Point, x: float, y: float) -> str:
    name, *facts = map(escape, point.told.split("\n"))
    sides = f"{'late' if x > WIDTH / 2 else ''} {'high' if y < HEIGHT / 2 else ''}".strip()
    return (
        f'<a class="dot{" chosen" if point.chosen else ""}" href="{point.href}" aria-label="{name}: {"; ".join(facts)}" '
        f'style="left:{100 * x / WIDTH:.2f}%;top:{100 * y / HEIGHT:.2f}%;--k:var(--line-{point.series % 8 + 1})">'
        f'<span class="says {sides}" aria-hidden="true"><b>{name}</b>{"<br>".join(facts)}</span></a>'
    )


def _axes(x: Axis, y: Axis, x_label: str, y_label: str) -> str:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for tick, label in zip(y.ticks, _labels(y), strict=True):
        at = _down(y.place(tick))
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{right}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{at + 4:.1f}" text-anchor="end">{label}</text>')
    for tick, label in zip(x.ticks, _labels(x), strict=True):
        at = _across(x.place(tick))
        parts.append(f'<path class="axis" d="M{at:.1f} {bottom}v4"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 17}" text-anchor="middle">{label}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>')
    parts.append(f'<text x="{(LEFT + right) / 2:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>')
    middle = (TOP + bottom) / 2
    turned = f'transform="rotate(-90 11 {middle:.1f})"'
    parts.append(f'<text x="11" y="{middle:.1f}" text-anchor="middle" {turned}>{escape(y_label)}</text>')
    return "".join(parts)


def _labels(axis: Axis) -> list[str]:
    if axis.log:
        return [f"{tick:g}" for tick in axis.ticks]
    return [label.replace("-", "−") for label in tick_labels(axis.ticks)]
