"""One sample at large: step 0 against a later step behind a slider, its texts or films beside each other, every score."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from studio.chart import number
from studio.run_view import RunView
from ui.compared import label
from ui.served import address
from ui.tile_grid import picture, tone_of
from ui.tiles import Row, Tile


def detail(view: RunView, row: Row, step: int, steps: Sequence[int], name: str | None) -> str:
    """The panel beside the grid."""
    before, after = row.tiles.get(0), row.tiles.get(step)
    chips = "".join(_chip(row, at, at == step, name) for at in sorted(steps) if at in row.tiles)
    if after is None:
        shown, told = '<p class="soft">No sample of this prompt and seed was kept at this step.</p>', ""
    else:
        pair = before if before is not None and step != 0 else None
        shown, told = _sides(view, pair, after), _scores(pair, after, name)
    return (
        f'<aside class="card detail" aria-label="Sample"><header><h2>{escape(row.prompt)}</h2>'
        f'<button type=button data-close aria-label="Close" title="Close (Escape)">×</button></header>'
        f'<div class="chips" role=group aria-label="Step">{chips}</div>{shown}{told}{_facts(after)}</aside>'
    )


def _chip(row: Row, step: int, chosen: bool, name: str | None) -> str:
    score = "" if name is None else f"<b>{number(row.score(name, step))}</b>"
    return (
        f'<button type=button data-key="{row.key}" data-step="{step}"{" aria-current=step" if chosen else ""}>'
        f"{'base' if step == 0 else f'step {step:,}'}{score}</button>"
    )


def _sides(view: RunView, before: Tile | None, after: Tile) -> str:
    now = "step 0, the untouched model" if after.step == 0 else f"step {after.step:,}"
    if after.text is not None:
        texts = [("step 0", before), (now, after)] if before is not None else [(now, after)]
        return "".join(f"<h3>{said}</h3><pre>{escape(tile.text or '')}</pre>" for said, tile in texts)
    if after.film is not None or (before is not None and before.film is not None):
        films = [("step 0", before), (now, after)] if before is not None else [(now, after)]
        halves = (f"<figure>{film(view, tile, said)}<figcaption>{said}</figcaption></figure>" for said, tile in films)
        return f'<div class="halved">{"".join(halves)}</div>'
    if before is None:
        return f"<figure>{picture(view, after, now)}<figcaption>{now}</figcaption></figure>"
    return slider(picture(view, before, "step 0"), picture(view, after, now), "step 0", now)


def slider(before: str, after: str, left: str, right: str) -> str:
    """Two pictures over each other; the handle is a range input, so that arrow keys move it."""
    if not (before.startswith("<img") and after.startswith("<img")):
        pair = ((before, left), (after, right))
        halves = (f"<figure>{shown}<figcaption>{told}</figcaption></figure>" for shown, told in pair)
        return f'<div class="halved">{"".join(halves)}</div>'
    return (
        f'<div class="slider">{after}<div class="over">{before}</div><span class="bar" aria-hidden=true></span>'
        f'<input type=range min=0 max=100 value=50 aria-label="How much of {left} is shown, the rest is {right}">'
        f"<span class=left>{left}</span><span class=right>{right}</span></div>"
    )


def film(view: RunView, tile: Tile, told: str) -> str:
    """The moving picture of a sample, its still one where there is none or where motion is not wanted."""
    still = picture(view, tile, told)
    if tile.film is None or not tile.film.is_file():
        return still
    stamp = tile.film.stat().st_mtime_ns // 1_000_000
    moving = f'<img loading=lazy alt="Rollouts, {escape(told)}" src="{address(view, tile.film)}?v={stamp}">'
    if not still.startswith("<img"):
        return moving
    quiet = still.partition('src="')[2].partition('"')[0]
    return f'<picture><source media="(prefers-reduced-motion: reduce)" srcset="{quiet}">{moving}</picture>'


def _scores(before: Tile | None, after: Tile, name: str | None) -> str:
    """A row for each reward and guard."""
    old, new = before.scores if before is not None else {}, after.scores
    found = dict.fromkeys([*(each for each in (name,) if each in new or each in old), *new, *old])
    if not found:
        return ""
    rows = "".join(_score(each, old.get(each), new.get(each), before is not None) for each in found)
    columns = ("score", "step 0", f"step {after.step:,}", "change") if before is not None else ("score", f"step {after.step:,}")
    head = "".join(f"<th scope=col>{told}</th>" for told in columns)
    return f'<table class="plain values"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _score(name: str, old: float | None, new: float | None, two: bool) -> str:
    gain = new - old if two and new is not None and old is not None else None
    told = "±0" if gain == 0 else number(gain, "+")
    cells = f'<td>{number(old)}</td><td>{number(new)}</td><td class="{tone_of(gain, name)}">{told}</td>'
    return f"<tr><th scope=row>{label(name)}</th>{cells if two else f'<td>{number(new)}</td>'}</tr>"


def _facts(tile: Tile | None) -> str:
    """Seed, size and file of a sample."""
    if tile is None:
        return ""
    record = tile.record
    size = f"{record['width']} × {record['height']} pixels" if "width" in record and "height" in record else ""
    told = [f"seed {record['seed']}" if "seed" in record else "", size, str(record.get("path", "no file"))]
    return f'<p class="soft facts">{escape(" · ".join(part for part in told if part))}</p>'
