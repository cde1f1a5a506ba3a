"""Two runs, or two steps of one, on the same prompts and seeds: side by side, or as a blind vote."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from studio.errors import StudioError
from ui import blind, preferences, votes
from ui.compared import report
from ui.pairs import AS_DRAWN, GUARD, HELD_OUT, ORDERS, Pair, Side, differing, match, names, unmatched
from ui.say import refusal
from ui.shell import QUIET, header, live
from ui.site import Site

BESIDE, VOTE = "Side by side", "Blind vote"
# what is looked at stays in the address, so that it can be reloaded, kept and sent to others
ADDRESS = """(run, step, other, other_step) => {
  const address = new URL(location);
  Object.entries({run, step, other, other_step}).forEach(([key, value]) => address.searchParams.set(key, value ?? ''));
  history.replaceState(null, '', address);
}"""
VOTING: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "votes", "concurrency_limit": 1, "show_progress": "hidden"}


def build(site: Site) -> None:
    """Lay out the page."""
    header("compare")
    ballot = gr.State(None)
    with gr.Row(elem_classes="tools"):
        first, first_step = gr.Dropdown([], label="First run", scale=4), gr.Dropdown([], label="at step", scale=2, min_width=140)
        second, second_step = gr.Dropdown([], label="Second run", scale=4), gr.Dropdown([], label="at step", scale=2, min_width=140)
    with gr.Row(elem_classes="tools"):
        view = gr.Radio([BESIDE, VOTE], value=BESIDE, label="View", scale=2, min_width=300, interactive=False)
        with gr.Row(scale=2) as ordering:
            score = gr.Dropdown([], label="Score", scale=1)
            order = gr.Dropdown([*ORDERS, AS_DRAWN], value=next(iter(ORDERS)), label="Order", scale=1)
    body = gr.HTML(elem_classes="comparison", apply_default_css=False)
    duel = gr.HTML(js_on_load=blind.KEYS, elem_classes="voting", apply_default_css=False)
    with gr.Row(visible=False, elem_classes="actions") as after:
        tally, again = gr.Button("Show the tally", size="sm"), gr.Button("Vote again", size="sm")
        every = gr.Checkbox(label="votes of all comparisons", min_width=200)
        save = gr.Button("Export as preference data", size="sm", variant="primary")
    told = gr.HTML(elem_classes="voting", apply_default_css=False)
    take = gr.DownloadButton("Download", size="sm", visible=False)

    chosen = [first, first_step, second, second_step]
    shown = [*chosen, score, body]
    parts = [*shown, ballot, duel, ordering, after, told, take]
    looks = [*chosen, view, score, order]

    def begin(view: str, order: str, request: gr.Request) -> list[Any]:
        asked, runs = dict(request.query_params), site.names()
        one = site.chosen(request)
        other = asked.get("other") or asked.get("others", "").partition(",")[0]
        seen = one, _number(asked.get("step")), other if other in runs else one, _number(asked.get("other_step"))
        return [*everything(*seen, view, None, order), gr.update(interactive=True)]

    def everything(one: Any, step: Any, other: Any, other_step: Any, view: str, name: Any, order: str) -> list[Any]:
        """All parts after a choice of the person."""
        if one is None:
            return [*(gr.update(choices=[], value=None) for _ in range(5)), NO_RUNS, None, "", *_rows(False), "", HIDDEN]
        left, right = _sides(site, one, step, other, other_step)
        pairs = _pairs(left, right)
        now, parts = _seen(site, left, right, pairs, view, name, order), _voting(site, left, right, pairs, view)
        values = [left.name, left.step, right.name, right.step]
        return [*({**update, "value": value} for update, value in zip(now, values, strict=False)), *now[4:], *parts]

    def look(one: Any, step: Any, other: Any, other_step: Any, view: str, name: Any, order: str) -> Any:
        """The parts that change when a run goes on; what the person has chosen stays."""
        if not {one, other} <= {*site.names()}:  # none is chosen yet, or it was deleted
            return tuple(gr.skip() for _ in shown)
        left, right = _sides(site, one, step, other, other_step)
        return tuple(_seen(site, left, right, _pairs(left, right), view, name, order))

    live(look, looks, shown)
    root = gr.context.Context.root_block
    assert root is not None
    root.load(begin, [view, order], [*parts, view], **QUIET)
    for part in (*chosen, view):
        part.input(everything, looks, parts, **QUIET).then(None, chosen, None, js=ADDRESS)
    for part in (score, order):
        part.input(look, looks, shown, **QUIET)

    def press(given: blind.Ballot | None, event: gr.EventData) -> tuple[Any, ...]:
        if given is None:
            return gr.skip(), gr.skip(), gr.skip()
        sides = blind.sides(site, given)
        pairs = {pair.key: pair for pair in _pairs(*sides)}
        now = blind.press(site, given, str(getattr(event, "token", "")), str(getattr(event, "choice", "")), pairs)
        done = blind.tallied(site, *sides, list(pairs.values())) if now.key is None else "" if now != given else gr.skip()
        return now, blind.shown(now, pairs), done

    def show_tally(given: blind.Ballot | None) -> str:
        sides = blind.sides(site, _present(given))
        return blind.tallied(site, *sides, _pairs(*sides))

    def start_again(given: blind.Ballot | None) -> tuple[Any, ...]:
        sides = blind.sides(site, _present(given))
        pairs = differing(_pairs(*sides))
        now = blind.ballot(site, *sides, pairs, again=True)
        return now, blind.shown(now, {pair.key: pair for pair in pairs}), ""

    def export(given: blind.Ballot | None, every: bool) -> Iterator[tuple[Any, Any]]:
        sides = blind.sides(site, _present(given))
        cast = votes.read(site.root)
        kind = "text" if sides[0].kind == "text" else "image"
        try:
            made = preferences.export(site.root, cast if every else votes.between(cast, *sides), kind)
        except StudioError as error:
            raise refusal(error, "Nothing to export") from error
        with tempfile.TemporaryDirectory() as scratch:  # gradio copies the file before it asks for more
            file = preferences.packed(made, kind, Path(scratch))
            told = preferences.told(made, kind, sides[1].view.file("recipe.yaml"))
            yield told, gr.update(value=str(file), label=f"Download {file.name}", visible=True)

    duel.select(press, ballot, [ballot, duel, told], **VOTING)
    tally.click(show_tally, ballot, told, **VOTING)
    again.click(start_again, ballot, [ballot, duel, told], **VOTING)
    save.click(export, [ballot, every], [told, take], **VOTING)


HIDDEN = gr.update(visible=False)
NO_RUNS = (
    '<div class="empty"><h2>No runs yet</h2><p>Start one on the page <a href="./launch">Launch</a>; two of them, or two steps of '
    "one, are compared here.</p></div>"
)


def _sides(site: Site, one: Any, step: Any, other: Any, other_step: Any) -> tuple[Side, Side]:
    """The two sides that were asked for; of one run its base and its newest samples when no step was asked for."""
    return Side.of(site.run(one), step, first=one == other), Side.of(site.run(other), other_step)


def _pairs(first: Side, second: Side) -> list[Pair]:
    return match(first.records(), second.records())


def _seen(site: Site, first: Side, second: Side, pairs: list[Pair], view: str, name: Any, order: str) -> list[Any]:
    """What can be chosen, and what is to be seen side by side."""
    runs, known = site.names(), names(pairs)
    name = name if name in known else next(iter(known), None)
    try:
        told = report(first, second, pairs, name, order) if view == BESIDE else ""
    except StudioError as error:  # a link among the samples leads out of the run
        told = f'<div class="empty"><h2>These cannot be shown</h2><p>{escape(str(error))}</p></div>'
    titles = [(known_name.replace(HELD_OUT, "held out: ").replace(GUARD, "guard: "), known_name) for known_name in known]
    return [
        gr.update(choices=runs),
        gr.update(choices=_steps(first)),
        gr.update(choices=runs),
        gr.update(choices=_steps(second)),
        gr.update(choices=titles, value=name),
        told,
    ]


def _steps(side: Side) -> list[tuple[str, int]]:
    return [(f"{step} (base)" if step == 0 else str(step), step) for step in side.view.sample_steps()]


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() and len(text) < 12 else None


def _rows(open_: bool) -> tuple[Any, Any]:
    """Whether the choice of an order is to be seen, and whether the buttons under a vote."""
    return gr.update(visible=not open_), gr.update(visible=open_)


def _voting(site: Site, first: Side, second: Side, pairs: list[Pair], view: str) -> list[Any]:
    """A new ballot, what it shows first, which rows belong to it, and no tally."""
    if view != VOTE:
        return [None, "", *_rows(False), "", HIDDEN]
    pairs = differing(pairs) if (first.name, first.step) != (second.name, second.step) else []
    if not pairs:
        told = "Both sides are the same. Choose another step or run." if _pairs(first, second) else unmatched(first, second)
        return [None, f'<div class="empty"><h2>Nothing to vote on</h2><p>{escape(told)}</p></div>', *_rows(False), "", HIDDEN]
    now = blind.ballot(site, first, second, pairs)
    done = blind.tallied(site, first, second, pairs) if now.key is None else ""
    return [now, blind.shown(now, {pair.key: pair for pair in pairs}), *_rows(True), done, HIDDEN]


def _present(given: blind.Ballot | None) -> blind.Ballot:
    if given is None:
        raise refusal("Choose two sides with samples of the same prompts first.", "No vote is open")
    return given
