"""What the prune runs of a folder have reached, and what one of them removed, as parts of a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from studio import removed
from studio.chart import is_number, number
from studio.errors import StudioError
from studio.run_view import RunView
from ui.index import Row
from ui.pairs import GUARD, Pair, Side, match, scores
from ui.prune_queue import TARGETS
from ui.scatter import Point, scatter
from ui.served import address
from ui.shell import link
from ui.site import Site

SIZES = {"params_kept": "parameters kept", "flops_kept": "FLOPs kept"}
TIME = "time of one forward, against dense"
ERROR, KEPT = "latent error", " kept"  # what quality may mean: the error, or a reward as a share of the dense network's
PAIRS = 24  # at most; beyond that, the page of samples has them all
SMALL = 128  # pictures up to this width are enlarged without smoothing
MISSING = "This picture is missing."


@dataclass(frozen=True)
class Pruned:
    """One prune run: its row of the table of runs, and the figures of its summary, if it has come so far."""

    row: Row
    target: str
    figures: Mapping[str, float]  # params_kept, flops_kept, latency_ratio, latent_error
    rewards: Mapping[str, tuple[float, float]]  # of the dense and of the pruned network
    healed: bool = False

    def quality(self, name: str) -> float | None:
        """The latent error, or "<reward> kept": pruned over dense, which needs a reward above 0."""
        if name == ERROR:
            return self.figures.get("latent_error")
        dense, left = self.rewards.get(name.removesuffix(KEPT), (0.0, 0.0))
        return left / dense if dense > 0 else None


class Summaries:
    """The prune runs of a folder; a summary is read again only after it has changed."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._read: dict[str, tuple[Any, Pruned]] = {}

    def runs(self) -> list[Pruned]:
        """Finished ones first, with the most parameters kept on top; then the others, newest first."""
        rows = [row for row in self.site.index.rows() if row.kind == "prune"]
        for gone in self._read.keys() - {row.name for row in rows}:
            self._read.pop(gone, None)
        found = [self._of(row) for row in rows]
        return sorted(found, key=lambda run: (not run.figures, -run.figures.get("params_kept", 0.0)))

    def _of(self, row: Row) -> Pruned:
        try:
            view = RunView.find(self.site.root, row.name)
            path = view.file("summary.json")
            stat = path.stat() if path.is_file() else None
            stamp = (row.state, stat and (stat.st_mtime_ns, stat.st_size))
            if self._read.get(row.name, (None,))[0] != stamp:
                self._read[row.name] = (stamp, pruned(row, view.recipe, view.summary or {}))
            return replace(self._read[row.name][1], row=row)
        except StudioError:  # being deleted, or a summary that is no JSON
            return Pruned(row, "", {}, {})


def pruned(row: Row, recipe: Mapping[str, Any], summary: Mapping[str, Any]) -> Pruned:
    """A run's recipe and summary.json as figures; what is no number is left out."""
    goal = recipe.get("target") if isinstance(recipe.get("target"), dict) else {}
    aims = [f"{TARGETS.get(key, key)} {value:g}" for key, value in goal.items() if is_number(value)]
    before, after = (side if isinstance(side := summary.get(key), dict) else {} for key in ("before", "after"))
    both = {name: (before[name], after[name]) for name in before if is_number(before[name]) and is_number(after.get(name))}
    names = ("params_kept", "flops_kept", "latency_ratio", "latent_error")
    figures = {name: summary[name] for name in names if is_number(summary.get(name))}
    stages = summary.get("stages")
    healed = isinstance(stages, list) and any(isinstance(stage, dict) and stage.get("name") == "healed" for stage in stages)
    return Pruned(row, ", ".join(aims), figures, both, healed)


def qualities(runs: Iterable[Pruned]) -> list[str]:
    """What the charts can show upwards: the latent error, then every reward that a run has."""
    return [ERROR, *dict.fromkeys(f"{name}{KEPT}" for run in runs for name in run.rewards)]


def charts(runs: Sequence[Pruned], size: str, quality: str, chosen: str | None) -> str:
    """Quality against size and against measured time, a point per finished run."""
    criteria = list(dict.fromkeys(run.row.method for run in runs if run.figures))
    size = size if size in SIZES else next(iter(SIZES))
    parts = []
    for key, label in ((size, SIZES[size]), ("latency_ratio", TIME)):
        points = [
            Point(x, y, criteria.index(run.row.method), told(run), _to(run), run.row.name == chosen)
            for run in runs
            if (x := run.figures.get(key)) is not None and (y := run.quality(quality)) is not None
        ]
        parts.append(f'<div class="card">{scatter(points, x_label=label, y_label=quality, less=quality == ERROR)}</div>')
    keys = "".join(f'<span><i style="--k:var(--line-{k % 8 + 1})"></i>{escape(name)}</span>' for k, name in enumerate(criteria))
    better = "lower" if quality == ERROR else "higher"
    note = f"Left is smaller or faster, {better} is better. The line joins the runs that no other beats on both axes."
    return f'<div class="pair-of-charts">{"".join(parts)}</div><p class="legend">{keys}</p><p class="soft">{note}</p>'


def _to(run: Pruned) -> str:
    """The part of the page about a run."""
    return f"{link('prune', run=run.row.name)}#chosen"


def told(run: Pruned) -> str:
    """A run in a few lines, for who points at it."""
    lines = [run.row.name, f"{run.row.method} of {run.row.model}{', healed' if run.healed else ''}"]
    shown = {**SIZES, "latency_ratio": "time against dense", "latent_error": ERROR}
    lines += [f"{label} {number(run.figures[key])}" for key, label in shown.items() if key in run.figures]
    return "\n".join([*lines, *(f"{name} {number(a)} → {number(b)}" for name, (a, b) in run.rewards.items())])


def table(runs: Sequence[Pruned], chosen: str | None) -> str:
    """All prune runs with their figures; those without a summary say how far they are."""
    names = list(dict.fromkeys(name for run in runs for name in run.rewards))
    titles = ["run", "target", "parameters", "FLOPs", "time", ERROR, *names, "state"]
    head = "".join(f"<th scope=col>{escape(title)}</th>" for title in titles)
    body = "".join(_row(run, titles, names, chosen) for run in runs)
    return f'<table class="plain stack labeled"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _row(run: Pruned, titles: Sequence[str], rewards: Sequence[str], chosen: str | None) -> str:
    name, label = escape(run.row.name), escape(run.row.label)
    values = [escape(run.target) or "–"]
    values += [number(run.figures.get(key)) for key in ("params_kept", "flops_kept", "latency_ratio", "latent_error")]
    for reward in rewards:
        dense, left = run.rewards.get(reward, (None, None))
        share = f"<small>of {number(dense)}</small>" if dense is not None else ""
        values.append(f"{number(left)}{share}")
    progress = f"<small>{run.row.step} of {run.row.total}</small>" if run.row.total and not run.figures else ""
    values.append(f'<span class="state {label.replace(" ", "-")}">{label}</span>{progress}')
    about = f"{escape(run.row.method)} · {escape(run.row.model)}{' · healed' if run.healed else ''}"
    cells = "".join(f'<td data-label="{escape(title)}">{value}</td>' for title, value in zip(titles[1:], values, strict=True))
    current = ' aria-current="true"' if run.row.name == chosen else ""
    return f'<tr{current}><th scope=row><a href="{_to(run)}">{name}</a><small>{about}</small></th>{cells}</tr>'


def removal(view: RunView) -> str:
    """The table of stages and the map of what went, as the report has them."""
    try:
        summary = view.summary
        if not summary or not summary.get("stages"):
            return _nothing(view)
        return removed.stage_table(summary) + removed.removal_map(summary.get("groups") or [])
    except (StudioError, AttributeError, ArithmeticError, LookupError, TypeError, ValueError):  # written by hand
        return f'<p class="note">summary.json of {escape(view.name)} is not what a prune run writes: there is nothing to show.</p>'


def _nothing(view: RunView) -> str:
    status = view.status
    told = f"<p>{escape(view.name)} is {escape(str(status['label']))}. The stages and the map come at its end.</p>"
    reason = f'<p class="note">{escape(str(status["reason"]))}</p>' if status.get("reason") else ""
    return f'<div class="empty"><h2>Nothing was removed yet</h2>{told}{reason}</div>'


def pairs(view: RunView) -> list[Pair]:
    """The dense and the pruned network's pictures of one prompt and noise, largest change of a reward first.

    Every reward has a scale of its own: a change counts relative to the largest one of that reward.
    """
    first, last = Side.of(view, first=True), Side.of(view)
    if first.step != 0 or not last.step:
        return []
    both = match(first.records(), last.records())
    moves = [{name: b - a for name, (a, b) in _rewards(pair).items()} for pair in both]
    largest = {name: max(abs(move.get(name, 0.0)) for move in moves) or 1.0 for name in {n for move in moves for n in move}}
    size = [max((abs(value) / largest[name] for name, value in move.items()), default=-1.0) for move in moves]
    return [both[k] for k in sorted(range(len(both)), key=lambda k: -size[k])]


def _rewards(pair: Pair) -> dict[str, tuple[float, float]]:
    first, second = scores(pair.first), scores(pair.second)
    return {name: (first[name], second[name]) for name in first if name in second and not name.startswith(GUARD)}


def pictures(view: RunView) -> str:
    """Dense beside pruned from the same noise, with their rewards."""
    found = pairs(view)
    if not found:
        return ""
    all_of_them = link("samples", run=view.folder.name)
    text = (
        f"Dense beside pruned, from the same noise: {min(PAIRS, len(found))} of {len(found)} pairs, most changed reward first, so "
    )
    text += f'not typical. <a href="{all_of_them}">All samples</a>'
    figures = "".join(_figure(view, pair) for pair in found[:PAIRS])
    return f'<section><h2>Pictures</h2><p class="soft">{text}</p><div class="pictures">{figures}</div></section>'


def _figure(view: RunView, pair: Pair) -> str:
    sides = (("dense", pair.first), ("pruned", pair.second))
    shown = "".join(f"<div><span>{side}</span>{_picture(view, record, side)}</div>" for side, record in sides)
    rewards = "".join(f"<div>{escape(name)} {number(a)} → {number(b)}</div>" for name, (a, b) in _rewards(pair).items())
    told = f"<figcaption><b>{escape(pair.prompt)}</b>{rewards}</figcaption>"
    return f'<figure class="card"><div class="sides">{shown}</div>{told}</figure>'


def _picture(view: RunView, record: Mapping[str, Any], side: str) -> str:
    if not record["file"].is_file():
        return f"<em>{MISSING}</em>"
    small = is_number(record.get("width")) and record["width"] <= SMALL
    alt = escape(f"{record.get('prompt', '')}, {side}")
    return f'<img loading="lazy" alt="{alt}" class="{"pixel" if small else ""}" src="{address(view, record["file"])}">'
