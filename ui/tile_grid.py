"""Prompts over steps as HTML: a tile for each sample, with its score and what has become of it since step 0."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from studio.chart import number
from studio.run_view import RunView
from ui.pairs import GUARD, HELD_OUT
from ui.served import address
from ui.tiles import Row, Tile

PAGE = 12  # rows on a page
WORDS = 240  # characters of a text on a tile
PICTURES, TEXTS, LARGE = "pictures", "texts", "large"  # tiles; large ones are few, and of whole evaluations


def grid(view: RunView, found: Sequence[Row], steps: Sequence[int], name: str | None, page: int, kind: str) -> str:
    """One page of rows; steps as columns, the base first."""
    pages = max(1, -(-len(found) // PAGE))
    page = min(max(page, 0), pages - 1)
    shown = found[page * PAGE : (page + 1) * PAGE]
    head = "".join(f'<th scope=col class="{"base" if at == 0 else ""}">{_step(step, at)}</th>' for at, step in enumerate(steps))
    body = "".join(_row(view, row, steps, name, at) for at, row in enumerate(shown))
    first = f"<th scope=col>{'' if kind == LARGE else 'prompt'}</th>"
    table = (
        f'<table class="tiles {kind}" style="--n:{len(steps)}"><thead><tr>{first}{head}</tr></thead><tbody>{body}</tbody></table>'
    )
    turn = "" if kind == LARGE else _turn(page, pages, len(found))
    return f'<div class="wide">{table}</div>{turn}'


def _step(step: int, at: int) -> str:
    told = "base" if step == 0 else "newest" if at == 1 else ""
    return f"step {step:,}{f'<small>{told}</small>' if told else ''}"


def _row(view: RunView, row: Row, steps: Sequence[int], name: str | None, at: int) -> str:
    cells = "".join(_cell(view, row, step, name, at, column) for column, step in enumerate(steps))
    return f"<tr><th scope=row><span>{escape(row.prompt)}</span></th>{cells}</tr>"


def _cell(view: RunView, row: Row, step: int, name: str | None, at: int, column: int) -> str:
    kind = ' class="base"' if column == 0 else ""
    tile = row.tiles.get(step)
    if tile is None:
        return f'<td{kind}><span class="hole" title="No sample of this prompt and seed was kept at step {step}">–</span></td>'
    score, gain = row.score(name, step), None if step == 0 else row.gain(name, step)
    tone = tone_of(gain, name)
    told = f"{row.prompt}, step {step}" + ("" if name is None else f", {title(name)} {number(score)}")
    told += f", {number(gain, '+')} against step 0" if gain is not None else ""
    change = "" if gain is None else f' <b class="{tone}">{brief(gain, "+")}</b>'
    scored = any(name in each.scores for each in row.tiles.values())
    label = f'<span class="score">{brief(score)}{change}</span>' if scored else ""
    return (
        f'<td{kind}><button type=button class="tile {tone}" data-key="{row.key}" data-step="{step}" data-row="{at}" '
        f'data-column="{column}" aria-label="{escape(told)}">{preview(view, tile)}{label}</button></td>'
    )


def preview(view: RunView, tile: Tile) -> str:
    """The sample on its tile; what is missing or broken says so."""
    if tile.text is not None:
        return f'<span class="words">{escape(tile.text[:WORDS]) or "<i>empty</i>"}</span>'
    badge = '<span class="moves" title="Open it to see it move">▶</span>' if tile.film else ""
    return picture(view, tile, "") + badge


def picture(view: RunView, tile: Tile, told: str) -> str:
    """The picture of a sample, or why there is none."""
    if tile.file is None:
        return '<span class="hole" title="The record names no file of this run">broken record</span>'
    try:
        stamp = tile.file.stat().st_mtime_ns // 1_000_000  # a resumed run writes a step again under the same name
    except OSError:
        return f'<span class="hole" title="{escape(tile.file.name)} is not there">picture missing</span>'
    small = ' class="pixel"' if tile.pixels else ""
    return f'<img{small} loading=lazy alt="{escape(told)}" src="{address(view, tile.file)}?v={stamp}">'


def brief(value: float | None, sign: str = "") -> str:
    """Three digits: a tile is narrow."""
    if sign and value == 0:
        return "±0"
    return number(None if value is None else float(f"{value:.3g}"), sign)


def tone_of(gain: float | None, name: str | None) -> str:
    """up, down or none; a guard is neither good nor bad."""
    if gain is None or name is None or name.startswith(GUARD):
        return ""
    return "up" if gain > 0 else "down" if gain < 0 else ""


def title(name: str) -> str:
    """The name of a score as a person reads it."""
    return name.replace(HELD_OUT, "held out: ").replace(GUARD, "guard: ")


def _turn(page: int, pages: int, count: int) -> str:
    if pages == 1:
        return f'<p class="turn soft">{count} {"prompt" if count == 1 else "prompts"}</p>'
    first, last = page * PAGE + 1, min((page + 1) * PAGE, count)
    back, on = (
        f'<button type=button data-page="{to}" aria-label="{told} page"{"" if 0 <= to < pages else " disabled"}>{sign}</button>'
        for to, told, sign in ((page - 1, "Previous", "←"), (page + 1, "Next", "→"))
    )
    return f'<p class="turn">{back}<span>{first}–{last} of {count} prompts</span>{on}</p>'
