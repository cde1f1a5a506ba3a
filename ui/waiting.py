"""The queue as HTML: what waits, what runs, what has ended and why."""

from __future__ import annotations

from html import escape

from ui.entry import Entry
from ui.index import duration
from ui.queue import Queue, Standing
from ui.shell import link

SHOWN = 6  # entries that have ended
LABELS = {"waiting": "queued", "starting": "starting", "running": "running", "done": "finished", "failed": "failed"}  # -> class


def table(queue: Queue) -> str:
    """All entries in their order, and what can be done with each; empty without entries."""
    found = [(entry, queue.standing(entry)) for entry in queue.entries()]
    done = [pair for pair in found if pair[0].state == "done"][-SHOWN:]
    rest = [pair for pair in found if pair[0].state != "done"]
    rows = [_row(queue, *pair) for pair in rest]
    past = [_row(queue, *pair) for pair in reversed(done)]
    told = f'<p class="problem" role="alert">{escape(queue.trouble)}</p>' if queue.trouble else ""
    told += _table(rows) if rows else ""
    told += f'<details><summary class="soft">{len(done)} done</summary>{_table(past)}</details>' if done else ""
    return f'<section class="queue"><h2>Queue</h2>{told}</section>' if told else ""


def _table(rows: list[str]) -> str:
    head = "".join(f"<th scope=col>{name}</th>" for name in ("run", "state", "GPUs", "progress", ""))
    return f'<table class="plain stack"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _row(queue: Queue, entry: Entry, standing: Standing) -> str:
    name, state = escape(entry.name), standing.state
    view = queue.run(entry)
    title = f'<a href="{link("run", run=entry.name)}">{name}</a>' if view else name
    changed = f" with {len(entry.overrides)} changes" if len(entry.overrides) > 1 else " with 1 change" if entry.overrides else ""
    about = f"{escape(entry.recipe)}{changed}"
    why = f'<p class="problem">{escape(standing.reason)}</p>' if state == "failed" else ""
    label = standing.reason if state == "done" and standing.reason else LABELS[state] if state != "waiting" else "waiting"
    status = view.status if view else {}
    progress = ""
    if status.get("total_steps"):
        step, total = int(status.get("step") or 0), int(status["total_steps"])
        left = f"<small>{duration(status.get('eta_s'))} left</small>" if state == "running" and status.get("eta_s") else ""
        progress = f'{step} of {total}<progress max="{total}" value="{step}" aria-label="Progress of {name}"></progress>{left}'
    return (
        f'<tr data-entry="{escape(entry.id)}"><th scope=row>{title}<small>{about}</small>{why}</th>'
        f'<td><span class="state {LABELS[state]}">{escape(label)}</span></td><td class="gpus">{escape(entry.gpus) or "all"}</td>'
        f"<td>{progress}</td><td>{_buttons(entry, state)}</td></tr>"
    )


def _buttons(entry: Entry, state: str) -> str:
    acts = {
        "waiting": (("up", "↑", "earlier"), ("down", "↓", "later"), ("cancel", "Cancel", "cancel")),
        "running": (("stop", "Stop", "stop"),),
        "done": (("forget", "Clear", "clear"),),
        "failed": (("forget", "Clear", "clear"),),
    }.get(state if entry.state not in ("done", "failed") else entry.state, ())
    return "".join(
        f'<button type="button" class="plain-button" data-act="{act}" '
        f'aria-label="{escape(told)} {escape(entry.name)}">{title}</button>'
        for act, title, told in acts
    )
