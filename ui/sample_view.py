"""What the page Samples shows for what was asked: the grid with a sample at large, or a group, or why there is nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

from studio.config import load_yaml
from studio.run_view import ACTIVE, RunView
from ui import groups, tiles
from ui.before_after import detail
from ui.films import films
from ui.index import kind_of
from ui.tile_grid import LARGE, PICTURES, TEXTS, grid, title

HELD_OUT, GROUPS = "Held-out prompts", "Training groups"
NEWEST = -1  # the choice of a step that moves on with the run
FEW = 4  # rows that are seen at a glance


@dataclass(frozen=True)
class Asked:
    """What a person has chosen."""

    view: str = HELD_OUT
    words: str = ""
    name: str | None = None  # the score on the tiles
    order: str = tiles.AS_EVALUATED
    how: str = tiles.SPREAD
    step: int = NEWEST
    rank: str = groups.BY_ADVANTAGE
    color: str = "advantage"
    chosen: Mapping[str, Any] | None = None  # key and step of the sample that is open
    page: int = 0
    number: int | None = None  # of the group


@dataclass(frozen=True)
class Shown:
    """What there is to see, and what can be chosen."""

    body: str
    panel: str = ""
    names: list[str] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)  # with groups
    columns: bool = False  # whether there are scores and steps to choose from
    filters: bool = False  # whether there are so many rows that filters help
    spelled: bool = False  # whether there are tokens
    drawing: bool = False  # whether films can be drawn


def show(shelf: tiles.Shelf, view: RunView, asked: Asked) -> Shown:
    """The page of a run."""
    file = view.file("recipe.yaml")
    kind = _kind(file, file.stat().st_mtime_ns) if file.is_file() else "image"
    return _group(shelf, view, asked, kind) if asked.view == GROUPS else _held_out(shelf, view, asked, kind)


@lru_cache(maxsize=64)
def _kind(recipe: Path, stamp: int) -> str:
    return kind_of(load_yaml(recipe))


def _held_out(shelf: tiles.Shelf, view: RunView, asked: Asked, kind: str) -> Shown:
    shows = tiles.columns(view.sample_steps(), asked.how)
    read = {step: shelf.tiles(view, step) for step in shows}
    rows = tiles.rows([tile for found, _ in read.values() for tile in found])
    notes = _broken({step: broken for step, (_, broken) in read.items()})
    if not rows:
        control = kind == "control"
        return Shown(notes + (films(view) if control else _none_yet(view)), drawing=control)
    known = tiles.names(rows)
    name = asked.name if asked.name in known else next(iter(known), None)
    kept, unknown = tiles.matching(rows, asked.words, known)
    found = tiles.ordered(kept, name, asked.order)
    texts = any(tile.text is not None for row in rows for tile in row.tiles.values())
    look = TEXTS if texts else LARGE if kind == "control" and len(rows) <= FEW else PICTURES
    body = grid(view, found, shows, name, asked.page, look) if found else NO_MATCH
    chosen = asked.chosen
    row = next((row for row in rows if chosen and row.key == chosen["key"]), None)
    panel = detail(view, row, chosen["step"], shows, name) if row is not None and chosen else ""
    return Shown(
        _unknown(unknown, known) + notes + body, panel, [name, *known] if name else [], columns=True, filters=len(rows) > FEW
    )


def _group(shelf: tiles.Shelf, view: RunView, asked: Asked, kind: str) -> Shown:
    steps = view.group_steps()
    if not steps:
        return Shown(_no_groups(kind))
    step = asked.step if asked.step in steps else steps[-1]
    found, broken = shelf.tiles(view, step, "groups.jsonl")
    notes = _broken({step: broken})
    if not found:
        return Shown(f'{notes}<div class="empty"><h2>No records</h2><p>The table of step {step:,} is empty.</p></div>', steps=steps)
    told = f'<p class="soft">Sampled in iteration {step:,}, before its update; advantages as they were used in it.</p>'
    body = notes + groups.group(view, groups.grouped(found), asked.number, asked.rank, asked.color) + told
    return Shown(body, steps=steps, spelled=any("tokens" in tile.record for tile in found))


NO_MATCH = '<div class="empty"><h2>No prompt matches</h2><p>Remove words or conditions from the filter.</p></div>'


def gone(told: str) -> Shown:
    """A run that cannot be read."""
    words = f"<p>{escape(told)}</p><p>Choose another run above.</p>"
    return Shown(f'<div class="empty"><h2>This run cannot be shown</h2>{words}</div>')


def _none_yet(view: RunView) -> str:
    """Why there are no samples, and what to do next."""
    if view.status["state"] in (*ACTIVE, "queued"):
        told = "The first come with the evaluation of the untouched model, before step 1. This page shows them by itself."
    else:
        told = (
            "Samples are kept at every evaluation: set <code>watch.samples</code> above 0, or draw some with "
            "<code>studio sample</code>."
        )
    return f'<div class="empty"><h2>No samples yet</h2><p>{told}</p></div>'


def _no_groups(kind: str) -> str:
    if kind == "control":
        told = "Episodes are not compared with each other, so there are no groups. What the policy does is in the other view."
    else:
        told = (
            "At every evaluation after step 0, and on “Sample now”, a run keeps the samples of the first prompts of its rollout: "
            "as many as <code>watch.groups</code> says, 2 unless the recipe says otherwise. Runs from before that setting have "
            "none, nor do methods that give no credit to single samples."
        )
    return f'<div class="empty"><h2>No training groups</h2><p>{told}</p></div>'


def _unknown(unknown: list[str], known: list[str]) -> str:
    if not unknown:
        return ""
    there = ", ".join(title(name) for name in known) or "none"
    told = f"No score is called {', '.join(unknown)}. This run has: {there}."
    return f'<p class="warning">{escape(told)}</p>'


def _broken(broken: Mapping[int, int]) -> str:
    told = " ".join(
        f"Step {step:,}: {count} {'line is' if count == 1 else 'lines are'} broken and left out."
        for step, count in broken.items()
        if count
    )
    return f'<p class="warning">{told}</p>' if told else ""
