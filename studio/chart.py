"""Line charts as SVG text, for pages without scripts: which points go where, what the axes and captions say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

LIMIT = 8  # lines that an eye still tells apart
# The colors of Okabe and Ito, which stay apart for color-blind readers; yellow is darkened, as it drowns on white.
# On a dark ground STYLE replaces them by brighter ones. The second four are dashed as well.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b27d00", "#3a9bd9", "#8a7d00", "#555555")
LEFT, RIGHT, BOTTOM, TITLE, ROW = 64, 16, 42, 32, 17  # margins, height of the title and of a row of the legend [px]
LETTER = 6.4  # mean width of a character at 11 px
DOTS = 40  # up to this many points each is marked and tells its value under the pointer
STYLE = """
:root{color-scheme:light dark;--paper:#f7f7f5;--card:#fff;--ink:#1b1d21;--soft:#5f656e;--edge:#e4e4e0;--bad:#b3261e;
--bad-paper:#fdeceb;--accent:#0b62a8}@media(prefers-color-scheme:dark){:root{--paper:#131417;--card:#1c1e22;
--ink:#e9e9e6;--soft:#a2a8b1;--edge:#303339;--bad:#ff8a80;--bad-paper:#3a1f1f;--accent:#6db8f2}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
main{max-width:1100px;margin:auto;padding:56px 24px 96px}h1,h2{line-height:1.2;letter-spacing:-.02em;margin:4px 0 8px}
h1{font-size:2.1rem}h2{font-size:1.35rem;margin-top:64px}p{margin:0 0 16px;max-width:76ch}*{overflow-wrap:anywhere}
.soft,dt,figcaption,.pair span,thead th,.group th{color:var(--soft)}dt,figcaption,thead th,.group th{font-size:.84rem}
.eyebrow{color:var(--accent);font-size:.8rem;font-weight:600;letter-spacing:.08em;text-transform:uppercase;margin:0}
dl{display:flex;flex-wrap:wrap;gap:12px 40px;margin:24px 0 0}dd,.tile b{margin:0;font-weight:600}
.grid{display:grid;gap:20px;margin-top:16px;--least:300px;align-items:start;
grid-template-columns:repeat(auto-fill,minmax(min(100%,var(--least)),1fr))}.two{--least:420px}.tiles{--least:200px;
margin-top:32px}.card{background:var(--card);border:1px solid var(--edge);border-radius:14px;padding:18px;
margin:16px 0 0;min-width:0;overflow-x:auto}.grid>.card{margin:0}.tile{font-size:.84rem}.tile b{display:block;
font-size:1.7rem;line-height:1.35}.wide svg{min-width:640px}.two svg{min-width:400px}figcaption{margin-top:10px}
figcaption b{display:block;color:var(--ink);font-weight:600}.pair{display:grid;grid-template-columns:1fr 1fr;gap:10px}
.pair span{display:block;font-size:.75rem;margin-bottom:4px}.pair img{display:block;width:100%;border-radius:8px}
.pixel{image-rendering:pixelated}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:9px 14px;text-align:right;border-bottom:1px solid var(--edge);font-weight:500;white-space:nowrap}
tr>:first-child{text-align:left;padding-left:0}tr>:last-child{padding-right:0}
.events td:last-child{text-align:left;white-space:normal;width:99%}.group th{padding-top:24px}
tbody tr:last-child>*{border-bottom:0}.bad>*,.note{color:var(--bad);font-weight:600}.note{background:var(--bad-paper);
border-radius:10px;padding:10px 16px;margin-top:20px;max-width:none}pre{white-space:pre-wrap;
font:.8rem/1.6 ui-monospace,Menlo,Consolas,monospace;margin:12px 0 0}.pair pre{margin:0}summary{cursor:pointer;
font-weight:600}
@media(max-width:600px){main{padding:32px 16px 64px}th,td{padding:8px 5px;font-size:.82rem}}
svg{display:block;width:100%;height:auto;min-width:280px}:root{--grid:#ebebe8;--axis:#a3a39f}
@media(prefers-color-scheme:dark){:root{--grid:#2a2d32;--axis:#62666d;--line-1:#56b4e9;--line-2:#ff7f3f;
--line-3:#2fc79a;--line-4:#e39cc4;--line-5:#e69f00;--line-6:#8fb8ff;--line-7:#f0e442;--line-8:#b8b8b8}}
"""  # the page around the charts, in light and dark

Points = list[tuple[float, float]]
Bounds = tuple[float, float, float, float]


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
    points = [point for each in lines.values() for point in each]
    told = summary(lines, x_label, y_label)
    parts = [
        f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-size="11" fill="currentColor">',
        f"<title>{escape(title)}</title><desc>{escape(told)}</desc>",
        f'<text x="4" y="15" font-size="13" font-weight="600">{escape(title)}</text>',
    ]
    if not points:
        return "".join([*parts, _text(width / 2, height / 2, "no data", "middle"), "</svg>"])
    legend, top = _legend(lines, title, width)
    frame = (LEFT, top, width - RIGHT, height - BOTTOM)
    bounds, x_ticks, y_ticks = scales(points, frame)
    parts += [legend, axes(frame, bounds, x_ticks, y_ticks, x_label, y_label)]
    parts += [line(i, name, each, frame, bounds) for i, (name, each) in enumerate(lines.items())]
    return "".join([*parts, "</svg>"])


def scales(points: Points, frame: Sequence[float], also: Sequence[float] = ()) -> tuple[Bounds, list[float], list[float]]:
    """Bounds (x low, y low, x high, y high) of a plot that fills a frame (left, top, right, bottom) in pixels, and its ticks.

    The x axis ends at the outermost points, the y axis at the ticks around them and around the values in `also`.
    """
    x_low, x_high = _spread([x for x, _ in points], 1.0)
    whole = all(float(x).is_integer() for x, _ in points)
    x_count = max(2, (frame[2] - frame[0]) // 60)
    x_ticks = [x for x in nice_ticks(x_low, x_high, x_count, least=1.0 if whole else 0.0) if x_low <= x <= x_high]
    y_ticks = nice_ticks(*_spread([*(y for _, y in points), *also]), max(2, (frame[3] - frame[1]) // 36))
    return (x_low, y_ticks[0], x_high, y_ticks[-1]), x_ticks, y_ticks


def finite(points: Sequence[tuple[float, float | None]]) -> Points:
    """The points with two finite coordinates, by x."""
    kept = [(x, y) for x, y in points if x is not None and y is not None and math.isfinite(x) and math.isfinite(y)]
    return sorted(kept, key=lambda point: point[0])


def normalized(points: Points) -> Points:
    """The points with their lowest value at 0 and their highest at 1; a constant stands at one half."""
    low, high = min(y for _, y in points), max(y for _, y in points)
    return [(x, (y - low) / (high - low) if high > low else 0.5) for x, y in points]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, sign: str = "") -> str:
    """Four digits of a number, with "+" as `sign` also for positive ones; a dash for what is none."""
    if not is_number(value):
        return "–"
    form = ",.0f" if abs(value) >= 1e4 else ".4g"
    return f"{value:{sign}{form}}".replace("e-0", "e-").replace("-", "−")


def change(old: Any, new: Any) -> str:
    return number(new - old if is_number(old) and is_number(new) else None, "+")


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
    step, largest = (ticks[-1] - ticks[0]) / max(1, len(ticks) - 1), max(abs(tick) for tick in ticks)
    order = math.floor(math.log10(step) + 1e-9) if step > 0 else 0
    if 1e-3 <= largest < 1e6 or step == 0:
        return [f"{tick:.{max(0, -order)}f}" if tick else "0" for tick in ticks]
    digits = max(0, math.floor(math.log10(largest) + 1e-9) - order)
    return [f"{tick:.{digits}e}".replace("e-0", "e-").replace("e+0", "e") if tick else "0" for tick in ticks]


def _spread(values: Sequence[float], pad: float | None = None) -> tuple[float, float]:
    """Lowest and highest value; around a constant, `pad` or a tenth of it to either side."""
    low, high = min(values), max(values)
    if high - low > 1e-12 * max(abs(low), abs(high)):
        return low, high
    pad = pad or abs(low) / 10 or 1.0
    return low - pad, high + pad


def place(point: tuple[float, float], frame: Sequence[float], bounds: Sequence[float]) -> tuple[float, float]:
    """Pixels of a point: bounds (x low, y low, x high, y high) fill the frame (left, top, right, bottom)."""
    (left, top, right, bottom), (x_low, y_low, x_high, y_high) = frame, bounds
    return (
        left + (right - left) * (point[0] - x_low) / (x_high - x_low),
        bottom - (bottom - top) * (point[1] - y_low) / (y_high - y_low),
    )


def axes(
    frame: Sequence[float],
    bounds: Sequence[float],
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    x_label: str = "",
    y_label: str = "",
) -> str:
    """Lines and labels of the ticks, and the names of the axes that have one."""
    left, top, right, bottom = frame
    parts = []
    for tick, label in zip(y_ticks, tick_labels(y_ticks), strict=True):
        y = place((bounds[0], tick), frame, bounds)[1]
        parts.append(f'<path d="M{left} {y:.1f}H{right}" style="stroke:var(--grid,#e3e3e0)"/>')
        parts.append(_text(left - 7, y + 4, label.replace("-", "−"), "end"))
    for tick, label in zip(x_ticks, tick_labels(x_ticks or [0.0]), strict=False):
        x = place((tick, bounds[1]), frame, bounds)[0]
        parts.append(f'<path d="M{x:.1f} {bottom}v4" style="stroke:var(--axis,#9a9a96)"/>')
        parts.append(_text(x, bottom + 16, label.replace("-", "−"), "middle"))
    parts.append(f'<path d="M{left} {bottom}H{right}" style="stroke:var(--axis,#9a9a96)"/>')
    if x_label:
        parts.append(_text((left + right) / 2, bottom + 34, x_label, "middle"))
    if y_label:
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
        parts.append(f'<path d="M{x:.1f} {y - 1}h20" fill="none" style="{stroke(i)}"/>')
        parts.append(_text(x + 26, y + 3, name, "start"))
        x += wide
    return "".join(parts), y + ROW


def line(i: int, name: str, points: Points, frame: Sequence[float], bounds: Sequence[float], *, titles: bool = True) -> str:
    """One series in the i-th color, its points marked when they are few; with `titles` each tells its value by itself."""
    if not points:
        return ""
    placed = [place(point, frame, bounds) for point in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in _thin(placed))
    parts = [f'<polyline points="{path}" fill="none" stroke-linejoin="round" style="{stroke(i)}"/>']
    marked = range(len(points)) if len(points) <= DOTS else (0, len(points) - 1)
    for k in marked:
        (x, y), (at, value) = placed[k], points[k]
        told = f"<title>{escape(f'{name}: {value:.6g} at {at:g}')}</title>" if titles else ""
        radius = 3.5 if len(points) == 1 else 2.2
        fill = f"fill:var(--line-{i + 1},{PALETTE[i]})"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" style="{fill}">{told}</circle>')
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


def stroke(i: int) -> str:
    dash = ";stroke-dasharray:6 3" if i >= LIMIT // 2 else ""
    return f"stroke:var(--line-{i + 1},{PALETTE[i]});stroke-width:1.6{dash}"


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} opacity="0.8"{" " + more if more else ""}>{escape(text)}</text>'


def summary(lines: Mapping[str, Points], x_label: str, y_label: str) -> str:
    """The chart in words, for those who do not see it."""
    told = [f"Line chart of {y_label} over {x_label}."]
    for name, points in lines.items():
        if points:
            (x0, y0), (x1, y1) = points[0], points[-1]
            told.append(f"{name}: {number(y0)} at {x0:g}, {number(y1)} at {x1:g}, {len(points)} points.")
        else:
            told.append(f"{name}: no data.")
    return " ".join(told)
