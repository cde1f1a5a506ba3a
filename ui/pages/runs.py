"""The table of runs: what is at work, what it has reached, and what can be done to it."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from studio.chart import number
from ui import control
from ui.index import Row, ago, duration
from ui.say import done, refusal
from ui.shell import CONTROL, QUIET, header, link, live
from ui.site import Site

SORTS = {
    "newest first": lambda row: -row.started,
    "name": lambda row: row.name,
    "state": lambda row: (row.label, -row.started),
    "reward": lambda row: -row.latest.get("mean", row.latest.get("return", float("-inf"))),
    "progress": lambda row: -row.share,
}
SHOWN = 3  # rewards in a row of the table
# Checked rows are known by name in the browser: rows move when a run begins, and a place in the table is not a run.
PICK = """
const chosen = new Set();
const boxes = () => element.querySelectorAll('input[data-run]');
const show = () => boxes().forEach(box => { box.checked = chosen.has(box.dataset.run); });
element.addEventListener('change', event => {
  const box = event.target;
  if (!box.dataset.run) return;
  box.checked ? chosen.add(box.dataset.run) : chosen.delete(box.dataset.run);
  trigger('select', {names: [...chosen]});
});
watch('value', () => {
  const there = new Set([...boxes()].map(box => box.dataset.run));
  const before = chosen.size;
  [...chosen].forEach(name => there.has(name) || chosen.delete(name));
  show();
  if (chosen.size !== before) trigger('select', {names: [...chosen]});
});
"""


def build(site: Site) -> None:
    """Lay out the page."""
    header("")
    picked = gr.State([])
    with gr.Row(elem_classes="tools"):
        words = gr.Textbox(placeholder="name, method, model or state", label="Filter", scale=3)
        kind = gr.Dropdown(["all", "image", "control", "text", "prune"], value="all", label="Branch", scale=1)
        order = gr.Dropdown(list(SORTS), value="newest first", label="Order", scale=1)
    table = gr.HTML(js_on_load=PICK, elem_classes="wide", apply_default_css=False)
    with gr.Row(elem_classes="actions"):
        compare = gr.HTML(_compare([]), min_width=260)
        buttons = {what: gr.Button(title, size="sm") for what, title in ACTIONS.items()}
        remove = gr.Button("Delete …", size="sm", variant="stop")
    with gr.Group(visible=False) as asking:
        question = gr.HTML()
        with gr.Row():
            sure = gr.Button("Delete for good", size="sm", variant="stop")
            keep = gr.Button("Keep", size="sm")

    def refresh(words: str, kind: str, order: str) -> str:
        rows = site.index.rows()
        return _table(_matching(rows, words, kind, order), len(rows))

    live(refresh, [words, kind, order], [table])
    for change in (words.change, kind.change, order.change):
        change(refresh, [words, kind, order], table, **QUIET)

    def select(event: gr.EventData) -> tuple[list[str], str]:
        names = [name for name in getattr(event, "names", []) if isinstance(name, str)]
        return names, _compare(names)

    table.select(select, None, [picked, compare], **QUIET)
    for what, button in buttons.items():
        button.click(_acting(site, what), picked, None, **CONTROL)

    def ask(names: list[str]) -> tuple[Any, str]:
        views = [site.run(name) for name in _some(names)]
        listed = ", ".join(escape(view.folder.name) for view in views)
        return gr.update(visible=True), f"Delete {listed}, with all checkpoints, samples and exports? This cannot be undone."

    def really(names: list[str]) -> Any:
        done(control.each([site.run(name) for name in names], lambda view: control.delete(site.root, view)))
        return gr.update(visible=False)

    remove.click(ask, picked, [asking, question], **CONTROL)
    sure.click(really, picked, asking, **CONTROL)
    keep.click(lambda: gr.update(visible=False), None, asking, **QUIET)


ACTIONS = {"stop": "Stop", "save": "Save now", "sample": "Sample now", "resume": "Resume"}


def _acting(site: Site, what: str):
    def act(names: list[str]) -> None:
        views = [site.run(name) for name in _some(names)]
        done(control.each(views, control.resume if what == "resume" else lambda view: control.ask(view, what)))

    return act


def _some(names: list[str]) -> list[str]:
    if not names:
        raise refusal("Check the box of one or more runs first.", "No run is chosen")
    return names


def _matching(rows: list[Row], words: str, kind: str, order: str) -> list[Row]:
    """The rows that hold every word, in order."""
    wanted = str(words or "").lower().split()
    kept = [row for row in rows if kind in ("all", row.kind)]
    kept = [row for row in kept if all(w in f"{row.name} {row.kind} {row.method} {row.model} {row.label}".lower() for w in wanted)]
    return sorted(kept, key=SORTS.get(order, SORTS["newest first"]))


def _compare(names: list[str]) -> str:
    if len(names) < 2:
        return '<span class="soft">Check two or more runs to compare them.</span>'
    return f'<a class="button" href="{link("run", run=names[0], others=",".join(names[1:]))}">Compare {len(names)} runs</a>'


def _table(rows: list[Row], count: int) -> str:
    if not count:
        return (
            '<div class="empty"><h2>No runs yet</h2><p>Start one on the page '
            f'<a href="{link("launch")}">Launch</a>, or in a terminal: <code>studio train shapes/grpo-guard</code>.</p></div>'
        )
    if not rows:
        return '<div class="empty"><h2>No run matches</h2><p>Remove words from the filter or choose another branch.</p></div>'
    head = "".join(f"<th scope=col>{name}</th>" for name in ("", "run", "state", "progress", "remaining", "rewards", "", "started"))
    return f'<table class="plain stack"><thead><tr>{head}</tr></thead><tbody>{"".join(map(_row, rows))}</tbody></table>'


def _row(row: Row) -> str:
    name = escape(row.name)
    speed = f"{number(row.seconds_per_step)} s a step" if row.seconds_per_step else ""
    about, label = f"{escape(row.method)} · {escape(row.model)}", escape(row.label)
    active = row.state in ("starting", "running", "stopping")
    rewards = "".join(f"<span><i>{escape(key)}</i> {number(value)}</span>" for key, value in _told(row.latest).items())
    bar = f'<progress max=1 value="{row.share:.3f}" aria-label="Progress of {name}"></progress>' if row.total or active else ""
    done = f"{row.step} of {row.total}" if row.total else str(row.step or "–")
    left = f"{duration(row.eta_s)}<small>{speed}</small>" if active else "–"
    return (
        f'<tr><td><input type=checkbox data-run="{name}" aria-label="Choose {name}"></td>'
        f'<th scope=row><a href="{link("run", run=row.name)}">{name}</a><small>{about}</small></th>'
        f'<td><span class="state {label.replace(" ", "-")}" title="{escape(row.reason)}">{label}</span></td>'
        f"<td{_bare(done)}>{done}{bar}</td><td{_bare(left)}>{left}</td>"
        f'<td class="rewards{"" if rewards else " bare"}">{rewards or "–"}</td><td>{_spark(row)}</td>'
        f"<td>{ago(row.started)}</td></tr>"
    )


def _bare(text: str) -> str:
    """The class of a cell that says nothing; on a narrow screen, without the head of the table, it is left out."""
    return ' class="bare"' if text == "–" else ""


def _told(latest: dict[str, float]) -> dict[str, float]:
    """The mean that trains, then held-out evaluation; statistics of groups are on the run's own page."""
    names = [name for name in latest if name in ("mean", "return") or name.startswith(("eval.", "held_out."))]
    return {name: latest[name] for name in sorted(names, key=lambda name: name not in ("mean", "return"))[:SHOWN]}


def _spark(row: Row, width: int = 96, height: int = 26) -> str:
    """The headline metric as a small line."""
    if len(row.curve) < 2:
        return ""
    (x0, _), (x1, _) = row.curve[0], row.curve[-1]
    low, high = min(y for _, y in row.curve), max(y for _, y in row.curve)
    points = " ".join(
        f"{1 + (width - 2) * (x - x0) / max(x1 - x0, 1):.1f},{height - 2 - (height - 4) * (y - low) / (high - low or 1):.1f}"
        for x, y in row.curve
    )
    told = escape(f"{row.headline} from {number(row.curve[0][1])} to {number(row.curve[-1][1])}")
    return (
        f'<svg class="spark" role="img" aria-label="{told}" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<title>{told}</title><polyline points="{points}"/></svg>'
    )
