"""What a run's samples look like over its steps, and what training made of the samples of a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import gradio as gr

from studio.errors import StudioError
from studio.run_view import RunView
from ui import films, groups, tiles, tokens
from ui.sample_view import GROUPS, HELD_OUT, NEWEST, Asked, Shown, gone, show
from ui.say import warned
from ui.shell import QUIET, header, link, live
from ui.site import Site
from ui.tile_grid import title

OTHER_RUN = """(run) => {
  const address = new URL(location);
  address.search = '?' + new URLSearchParams({run});
  location.assign(address);
}"""
OTHER_VIEW = """(view) => {
  const address = new URL(location);
  address.searchParams.set('view', view === 'Training groups' ? 'groups' : 'held-out');
  history.replaceState(null, '', address);
}"""
DRAWING: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "films", "concurrency_limit": 1}


def build(site: Site) -> None:
    """Lay out the page."""
    header("samples")
    shelf, chosen, page, number = tiles.Shelf(), gr.State(None), gr.State(0), gr.State(None)
    with gr.Row(elem_classes="tools"):
        run = gr.Dropdown([], label="Run", scale=3)
        view = gr.Radio([HELD_OUT, GROUPS], value=HELD_OUT, label="View", scale=2, min_width=320)
    with gr.Row(elem_classes="tools") as held_out:
        words = gr.Textbox(label="Filter", placeholder="words, or scores: scene<0.5 change.scene<0", scale=3, min_width=320)
        name = gr.Dropdown([], label="Score on the tiles", scale=2)
        order = gr.Dropdown([tiles.AS_EVALUATED, *tiles.ORDERS], value=tiles.AS_EVALUATED, label="Order", scale=2)
        how = gr.Dropdown([tiles.SPREAD, tiles.NEWEST, tiles.EVERY], value=tiles.SPREAD, label="Steps", scale=1, min_width=120)
    with gr.Row(elem_classes="tools", visible=False) as rollout:
        step = gr.Dropdown([("newest", NEWEST)], value=NEWEST, label="Step", scale=1)
        rank = gr.Dropdown(list(groups.ORDERS), value=groups.BY_ADVANTAGE, label="Order", scale=2)
        color = gr.Radio(list(tokens.COLORS), value=tokens.ADVANTAGE, label="Color of tokens", visible=False, scale=2)
    with gr.Row(elem_classes="samples"):
        body = gr.HTML(js_on_load=_script("grid"), elem_classes="wall", apply_default_css=False)
        panel = gr.HTML(js_on_load=_script("panel"), elem_classes="beside", apply_default_css=False)
    with gr.Row(visible=False, elem_classes="actions") as drawing:
        draw = gr.Button("Draw rollouts", size="sm", variant="primary", scale=0, min_width=160)

    asked = [run, view, words, name, order, how, step, rank, color, chosen, page, number]
    shown = [run, name, step, color, held_out, words, order, rollout, drawing, body, panel]

    def look(run: str | None, *given: Any) -> tuple[Any, ...]:
        return tuple(gr.skip() for _ in shown) if run is None else _parts(site, shelf, run, Asked(*given))

    def begin(request: gr.Request) -> list[Any]:
        query, run = dict(request.query_params), site.chosen(request)
        view = GROUPS if query.get("view") == "groups" else HELD_OUT
        opened = _opened(query.get("sample"), query.get("step"))
        step = _number(query.get("step")) if view == GROUPS else None
        parts = (
            NO_RUNS if run is None else _parts(site, shelf, run, Asked(view, step=NEWEST if step is None else step, chosen=opened))
        )
        return [gr.update(choices=site.names(), value=run), view, opened, *parts[1:]]

    live(look, asked, shown)
    root = gr.context.Context.root_block
    assert root is not None
    root.load(begin, None, [run, view, chosen, *shown[1:]], **QUIET)
    run.input(None, run, None, js=OTHER_RUN, **QUIET)
    view.input(look, asked, shown, **QUIET).then(None, view, None, js=OTHER_VIEW)
    for part in (words, name, order, how):  # another list begins with its first page
        part.input(lambda *given: [0, *look(*given[:-2], 0, given[-1])], asked, [page, *shown], trigger_mode="always_last", **QUIET)
    for part in (step, rank, color):
        part.input(look, asked, shown, **QUIET)

    def select(event: gr.EventData, *given: Any) -> list[Any]:
        *before, chosen, page, number = given
        key, step, turned, group, close = (getattr(event, name, None) for name in ("key", "step", "page", "group", "close"))
        chosen = None if close else _opened(key, step) or chosen
        page = turned if isinstance(turned, int) else page
        number = group if isinstance(group, int) else number
        return [chosen, page, number, *look(*before, chosen, page, number)[-2:]]

    for part in (body, panel):
        part.select(select, asked, [chosen, page, number, body, panel], **QUIET)

    def drawn(*given: Any) -> Iterator[tuple[Any, Any]]:
        yield films.WAIT, gr.update(interactive=False)
        try:
            films.draw(site.run(given[0]))
        except StudioError as error:
            warned(str(error), "The environment was not drawn")
        yield look(*given)[-2], gr.update(interactive=True)

    draw.click(drawn, asked, [body, draw], show_progress="hidden", **DRAWING)


NO_RUNS: tuple[Any, ...] = (
    *(gr.skip() for _ in range(4)),
    *(gr.update(visible=False) for _ in range(5)),
    f'<div class="empty"><h2>No runs yet</h2><p>Start one on the page <a href="{link("launch")}">Launch</a>; its samples appear '
    "here.</p></div>",
    "",
)


def _script(name: str) -> str:
    return (files("ui") / "assets" / f"samples-{name}.js").read_text("utf-8")


def _parts(site: Site, shelf: tiles.Shelf, run: str, asked: Asked) -> tuple[Any, ...]:
    """What is shown of a run, for every component."""
    try:
        now = show(shelf, RunView.find(site.root, run), asked)
    except StudioError as error:
        now = gone(str(error))
    return (gr.update(choices=site.names()), *_scores(now), *_visible(now, asked), now.body, now.panel)


def _scores(now: Shown) -> tuple[Any, Any, Any]:
    """Choices of the score, of the step of groups, and whether tokens can be colored."""
    chosen, known = next(iter(now.names), None), now.names[1:]
    scores = gr.update(choices=[(title(name), name) for name in known], value=chosen) if known else gr.skip()
    steps = [("newest", NEWEST), *((f"step {each:,}", each) for each in reversed(now.steps))]
    return scores, gr.update(choices=steps) if now.steps else gr.skip(), gr.update(visible=now.spelled)


def _visible(now: Shown, asked: Asked) -> tuple[Any, ...]:
    """Score and steps, two filters, choices of groups, and the button that draws films."""
    there = now.columns, now.filters, now.filters, asked.view == GROUPS and bool(now.steps), now.drawing
    return tuple(gr.update(visible=visible) for visible in there)


def _opened(key: Any, step: Any) -> dict[str, Any] | None:
    """The sample that a browser named; None for anything else."""
    step = step if isinstance(step, int) else _number(step)
    return {"key": key, "step": step} if isinstance(key, str) and len(key) <= 16 and step is not None else None


def _number(text: Any) -> int | None:
    return int(text) if isinstance(text, str) and text.isdecimal() and len(text) < 12 else None
