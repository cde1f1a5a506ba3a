"""Line charts as SVG text, for pages without scripts: which points go where, and what the axes say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

LIMIT = 8  # lines that an eye still tells apart
# The colors of Okabe and Ito, which stay apart for color-blind readers; yellow is darkened, as it drowns on white.
# A page may set --line-1 to --line-8, e.g. brighter ones on a dark ground. The second four are dashed as well.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b27d00", "#3a9bd9", "#8a7d00", "#555555")
LEFT, RIGHT, BOTTOM, TITLE, ROW = 64, 16, 42, 32, 17  # margins, height of the title and of a row of the legend [px]
LETTER = 6.4  # mean width of a character at 11 px
DOTS = 40  # up to this many points each is marked and tells its value under the pointer

Points = list[tuple[float, float]]


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float | None]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    width: int = 520,
    height: int = 260,
) -> str:
    """An accessible SVG with one line per series; points that are None, NaN or infinite are dropped.

    The x axis ends at the outermost points, the y axis at the ticks around them.
    """
    if len(series) > LIMIT:
        raise ValueError(f"line_chart: got {len(series)} series, expected at most {LIMIT}. Draw several charts.")
    lines = {name: finite(points) for name, points in series.items()}
    points = [point for line in lines.values() for point in line]
    summary = _summary(lines, x_label, y_label)
    parts = [
        f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-size="11" fill="currentColor">',
        f"<title>{escape(title)}</title><desc>{escape(summary)}</desc>",
        f'<text x="4" y="15" font-size="13" font-weight="600">{escape(title)}</text>',
    ]
    if not points:
        return "".join([*parts, _text(width / 2, height / 2, "no data", "middle"), "</svg>"])
    legend, top = _legend(lines, title, width)
    frame = (LEFT, top, width - RIGHT, height - BOTTOM)
    x_low, x_high = _spread([x for x, _ in points], 1.0)
    whole = all(float(x).is_integer() for x, _ in points)
    x_count = max(2, (frame[2] - frame[0]) // 80)
    x_ticks = [x for x in nice_ticks(x_low, x_high, x_count, least=1.0 if whole else 0.0) if x_low <= x <= x_high]
    y_ticks = nice_ticks(*_spread([y for _, y in points]), max(2, (frame[3] - frame[1]) // 36))
    bounds = (x_low, y_ticks[0], x_high, y_ticks[-1])
    parts += [legend, _axes(frame, bounds, x_ticks, y_ticks, x_label, y_label)]
    for i, (name, line) in enumerate(lines.items()):
        parts.append(_line(i, name, line, frame, bounds))
    return "".join([*parts, "</svg>"])


def finite(points: Sequence[tuple[float, float | None]]) -> Points:
    """The points with two finite coordinates, by x."""
    kept = [(x, y) for x, y in points if x is not None and y is not None and math.isfinite(x) and math.isfinite(y)]
    return sorted(kept, key=lambda point: point[0])


def nice_ticks(low: float, high: float, count: int = 5, *, least: float = 0.0) -> list[float]:
    """About `count` multiples of 1, 2 or 5 times a power of ten, from the last at most `low` to the first from `high`.

    `least` is the smallest step that makes sense, e.g. 1 for things that are counted.
    """
    rough = max((high - low) / count, least)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k / round(1 / step) if step < 1 else k * step for k in range(first, max(last, first + 1) + 1)]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Ticks with as many digits as their distance asks for, in scientific notation when very small or large."""
    step, largest = ticks[-1] - ticks[0], max(abs(tick) for tick in ticks)
    if len(ticks) > 1:
        step /= len(ticks) - 1
    order = math.floor(math.log10(step) + 1e-9) if step > 0 else 0
    if step >= 0.9e-3 and largest < 1e6 or step == 0:
        return [f"{tick:.{max(0, -order)}f}" if tick else "0" for tick in ticks]
    digits = max(1, math.floor(math.log10(largest) + 1e-9) - order + 1)
    return [f"{tick:.{digits}g}".replace("e-0", "e-").replace("e+0", "e") if tick else "0" for tick in ticks]


def _spread(values: Sequence[float], pad: float | None = None) -> tuple[float, float]:
    """Lowest and highest value; around a constant, `pad` or a tenth of it to either side."""
    low, high = min(values), max(values)
    if high - low > 1e-12 * max(abs(low), abs(high)):
        return low, high
    pad = pad or abs(low) / 10 or 1.0
    return low - pad, high + pad


def _place(point: tuple[float, float], frame: Sequence[float], bounds: Sequence[float]) -> tuple[float, float]:
    """Pixels of a point: bounds (x low, y low, x high, y high) fill the frame (left, top, right, bottom)."""
    (left, top, right, bottom), (x_low, y_low, x_high, y_high) = frame, bounds
    return (
        left + (right - left) * (point[0] - x_low) / (x_high - x_low),
        bottom - (bottom - top) * (point[1] - y_low) / (y_high - y_low),
    )


def _axes(
    frame: Sequence[float],
    bounds: Sequence[float],
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    x_label: str,
    y_label: str,
) -> str:
    left, top, right, bottom = frame
    parts = []
    for tick, label in zip(y_ticks, tick_labels(y_ticks), strict=True):
        y = _place((bounds[0], tick), frame, bounds)[1]
        parts.append(f'<path d="M{left} {y:.1f}H{right}" style="stroke:var(--grid,#e3e3e0)"/>')
        parts.append(_text(left - 7, y + 4, label, "end"))
    for tick, label in zip(x_ticks, tick_labels(x_ticks or [0.0]), strict=False):
        x = _place((tick, bounds[1]), frame, bounds)[0]
        parts.append(f'<path d="M{x:.1f} {bottom}v4" style="stroke:var(--axis,#9a9a96)"/>')
        parts.append(_text(x, bottom + 16, label, "middle"))
    parts.append(f'<path d="M{left} {bottom}H{right}" style="stroke:var(--axis,#9a9a96)"/>')
    parts.append(_text((left + right) / 2, bottom + 34, x_label, "middle"))
    middle = (top + bottom) / 2
    turned = f'transform="rotate(-90 12 {middle:.1f})"'
    parts.append(_text(12, middle, y_label, "middle", turned))
    return "".join(parts)


def _legend(lines: Mapping[str, Points], title: str, width: int) -> tuple[str, int]:
    """Names with samples of their lines, and where the plot may start; none when the title says the only name."""
    if list(lines) == [title]:
        return "", TITLE
    parts, x, y = [], 4.0, TITLE
    for i, name in enumerate(lines):
        wide = 26 + LETTER * len(name) + 14
        if x > 4 and x + wide > width:
            x, y = 4.0, y + ROW
        parts.append(f'<path d="M{x:.1f} {y - 1}h20" fill="none" style="{_stroke(i)}"/>')
        parts.append(_text(x + 26, y + 3, name, "start"))
        x += wide
    return "".join(parts), y + ROW - 2


def _line(i: int, name: str, points: Points, frame: Sequence[float], bounds: Sequence[float]) -> str:
    if not points:
        return ""
    placed = [_place(point, frame, bounds) for point in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in _thin(placed))
    parts = [f'<polyline points="{path}" fill="none" stroke-linejoin="round" style="{_stroke(i)}"/>']
    marked = range(len(points)) if len(points) <= DOTS else (0, len(points) - 1)
    for k in marked:
        (x, y), (at, value) = placed[k], points[k]
        told = escape(f"{name}: {value:.6g} at {at:g}")
        radius = 3.5 if len(points) == 1 else 2.2
        fill = f"fill:var(--line-{i + 1},{PALETTE[i]})"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" style="{fill}"><title>{told}</title></circle>')
    return "".join(parts)


def _thin(placed: Points) -> Points:
    """Of the points of one pixel column only the first, lowest, highest and last: the picture stays the same."""
    columns: dict[int, list[int]] = {}
    for k, (x, _) in enumerate(placed):
        columns.setdefault(int(x), []).append(k)
    kept: set[int] = set()
    for column in columns.values():
        by_height = sorted(column, key=lambda k: placed[k][1])
        kept |= {column[0], by_height[0], by_height[-1], column[-1]}
    return [placed[k] for k in sorted(kept)]


def _stroke(i: int) -> str:
    dash = ";stroke-dasharray:6 3" if i >= LIMIT // 2 else ""
    return f"stroke:var(--line-{i + 1},{PALETTE[i]});stroke-width:1.8{dash}"


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} opacity="0.8"{" " + more if more else ""}>{escape(text)}</text>'


def _summary(lines: Mapping[str, Points], x_label: str, y_label: str) -> str:
    """The chart in words, for those who do not see it."""
    told = [f"Line chart of {y_label} over {x_label}."]
    for name, points in lines.items():
        if points:
            (x0, y0), (x1, y1) = points[0], points[-1]
            told.append(f"{name}: {y0:.4g} at {x0:g}, {y1:.4g} at {x1:g}, {len(points)} points.")
        else:
            told.append(f"{name}: no data.")
    return " ".join(told)
