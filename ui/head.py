"""The head of a run's page: its state and progress, the newest rewards, and what to do about a run that does not go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from studio.chart import LIMIT, is_number, number
from studio.page import named
from studio.run_view import ACTIVE, RunView
from ui.charts import Shown
from ui.index import ago, duration, kind_of
from ui.plot import color
from ui.shell import link

TILES = 4  # rewards at most
REMEDY = {
    "lost": "Resume continues from {from_}.",
    "failed": "Mend the cause, then resume: it continues from {from_}.",
    "stopped": "Resume continues from {from_}.",
    "no heartbeat": "Its process lives but has written nothing for a while. Look at the log.",
}


def head(view: RunView, recipe: Mapping[str, Any], shown: Sequence[Shown], bad: Sequence[Mapping[str, Any]]) -> str:
    """State, progress, speed and newest rewards of a run, what went wrong (`bad` events), and which color which run has."""
    status = view.status
    label, active, numbers = str(status["label"]), status["state"] in ACTIVE, {k: v for k, v in status.items() if is_number(v)}
    step, total, speed = int(numbers.get("step", 0)), int(numbers.get("total_steps", 0)), numbers.get("seconds_per_step")
    tiles = {
        "step": f"{step}{f' <small>of {total}</small>' if total else ''}",
        "speed": f"{number(speed)} <small>s/step</small>" if speed else "–",
        "remaining": duration(numbers.get("eta_s")) if active else "–",
        **{escape(name): number(value) for name, value in newest(shown[0]).items()},
    }
    policy = recipe.get("policy")
    model = named(policy.get("model") or policy if isinstance(policy, dict) else policy or recipe.get("model"))
    method = named(recipe.get("criterion") or recipe.get("algorithm"))
    about = " · ".join(map(escape, (kind_of(dict(recipe)), method, model, f"started {ago(numbers.get('started', 0.0))}")))
    alarms = sum(event.get("kind") == "alarm" for event in bad)
    flags = _flag(alarms, "alarm", "failed") + _flag(len(bad) - alarms, "warning", "stopping")
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in tiles.items())
    state = f'<span class="state {escape(label).replace(" ", "-")}">{escape(label)}</span>'
    return (
        f'<div class="run-head card"><div class="title"><h1>{escape(view.folder.name)}</h1>'
        f'{state}{flags}<span class="soft">{about}</span></div>'
        f'<progress max="1" value="{min(1.0, step / total) if total else 0:.4f}" aria-label="Progress"></progress><dl>{cells}</dl>'
        f"{_remedy(view, status)}{_colors(shown)}</div>"
    )


def _flag(count: int, what: str, kind: str) -> str:
    return f'<a class="state {kind}" href="#section-events">{count} {what}{"s" if count > 1 else ""}</a>' if count else ""


def newest(run: Shown) -> dict[str, float]:
    """Newest value of the rewards that matter first: what trains, then held-out evaluation."""
    names = [
        name
        for name in run.curves.names
        if name in ("reward/mean", "reward/return") or name.startswith(("reward/eval.", "reward/held_out."))
    ]
    order = sorted(names, key=lambda name: (name not in ("reward/return", "reward/mean"), "held_out" not in name))
    return {name.removeprefix("reward/"): value for name in order[:TILES] if (value := run.curves.latest(name)) is not None}


def _remedy(view: RunView, status: Mapping[str, Any]) -> str:
    """Why a run does not go on, and what to do about it."""
    label, steps = status["label"], view.checkpoints()
    if label not in REMEDY:
        return ""
    place = f"the checkpoint of step {steps[-1]}" if steps else "its beginning, as it has no checkpoint"
    reason = " ".join(str(status[key]) for key in ("reason", "error") if status.get(key))
    told = f"{escape(label.capitalize())}{f': {escape(reason)}' if reason else ''}. {REMEDY[label].format(from_=place)}"
    return f'<p class="note {"calm" if label == "stopped" else ""}">{told}</p>'


def _colors(shown: Sequence[Shown]) -> str:
    if len(shown) < 2:
        return ""
    items = "".join(
        f'<li style="--color:{color(i)}"{" class=dashed" if i >= LIMIT // 2 else ""}><span>'
        f'<a href="{link("run", run=run.name)}">{escape(run.name)}</a></span> '
        f"{' '.join(f'{escape(name)} <b>{number(value)}</b>' for name, value in list(newest(run).items())[:2])}</li>"
        for i, run in enumerate(shown)
    )
    return f'<ul class="legend runs">{items}</ul>'


def early(active: bool) -> str:
    """Instead of curves while there is nothing to draw."""
    told = "This run ended before its first step. The log below may say why."
    if active:
        told = "The first point comes with the first step. What the process says until then is in its log below."
    return f'<div class="empty"><h2>No metrics yet</h2><p>{told}</p></div>'


def absent(run: str | None, names: Sequence[str]) -> str:
    """Instead of the page while there is no such run."""
    if not names:
        return (
            '<div class="empty"><h2>No runs yet</h2><p>Start one on the page '
            f'<a href="{link("launch")}">Launch</a>, or in a terminal: <code>studio train shapes/grpo-guard</code>.</p></div>'
        )
    told = f"{escape(run)} is not in this folder of runs any more." if run else "Nothing is chosen."
    told += f' Choose another above, or see all <a href="{link("")}">runs</a>.'
    return f'<div class="empty"><h2>No such run</h2><p>{told}</p></div>'
