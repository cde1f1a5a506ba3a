"""Pruning: what was paid for how much smaller, what one run removed, and the way to a new run, a healed one, an export."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from studio.errors import StudioError
from studio.run_view import RunView
from ui import prune_queue, pruned
from ui.job import refused
from ui.prune_queue import METHODS, STEPS, TARGETS
from ui.pruned import ERROR, SIZES, Pruned, Summaries
from ui.recipes import bundled
from ui.say import done
from ui.shell import CONTROL, QUIET, header, link, live
from ui.site import Site

NONE = (
    '<div class="empty"><h2>No prune runs yet</h2><p>Start one above, or in a terminal: '
    "<code>studio prune shapes/end-to-end</code>.</p></div>"
)
# A point and a name in the table lead to the part about their run, which is not there yet when the page opens.
ARRIVE = """
watch('value', () => {
  if (location.hash !== '#chosen' || element.dataset.seen || !element.querySelector('#chosen')) return;
  element.dataset.seen = 'yes';
  requestAnimationFrame(() => element.scrollIntoView());
});
"""


def build(site: Site) -> None:
    """Lay out the page."""
    header("prune")
    chosen, summaries = gr.State(None), Summaries(site)
    with gr.Accordion("Start a prune run", open=False):
        named = [name for name, found in bundled().items() if found.kind == "prune"]
        with gr.Row(elem_classes="tools setup"):
            recipe = gr.Dropdown(named, value="shapes/end-to-end", label="Recipe", scale=3)
            measure = gr.Dropdown(
                [(f"share of {told}", key) for key, told in TARGETS.items()], value="params", label="Keep", scale=2
            )
            share = gr.Slider(0.1, 1.0, value=0.8, step=0.05, label="as much as", scale=3)
            queue = gr.Button("Start", variant="primary", size="sm", min_width=110)
        told = gr.HTML(_told("shapes/end-to-end"), elem_classes="prunes", apply_default_css=False)
    with gr.Row(elem_classes="tools"):
        quality = gr.Dropdown([ERROR], value=ERROR, label="Quality", scale=1)
        size = gr.Dropdown([(told, key) for key, told in SIZES.items()], value="params_kept", label="Size", scale=1)
        model = gr.Dropdown(["all"], value="all", label="Model", scale=1)
    overview = gr.HTML(elem_classes="prunes", apply_default_css=False)
    about = gr.HTML(js_on_load=ARRIVE, elem_classes="prunes", apply_default_css=False)
    with gr.Accordion("Heal: train what is left", open=False, visible=False) as heal:
        healers = gr.HTML(elem_classes="prunes", apply_default_css=False)
        with gr.Row(elem_classes="tools setup"):
            method = gr.Dropdown([(told, key) for key, told in METHODS.items()], value="distill", label="By", scale=4)
            steps = gr.Number(100, precision=0, minimum=1, maximum=STEPS, label="Steps", scale=1)
            begin_healing = gr.Button("Start healing", size="sm", scale=1)
    removal = gr.HTML(elem_classes="prunes", apply_default_css=False)

    looks, shown = [chosen, quality, size, model], [quality, model, overview, about, heal, healers, removal]

    def look(chosen: str | None, quality: str, size: str, model: str) -> tuple[Any, ...]:
        if chosen is None:
            return tuple(gr.skip() for _ in shown)
        runs = summaries.runs()
        models = list(dict.fromkeys(run.row.model for run in runs))
        kept = [run for run in runs if model == run.row.model or model not in models]
        upwards = pruned.qualities(kept)
        known = quality if quality in upwards else ERROR
        choices = gr.update(choices=upwards, value=known), gr.update(choices=["all", *models])
        if not runs:
            return (*choices, NONE, "", gr.update(visible=False), "", "")
        main = f"{pruned.charts(kept, size, known, chosen)}{pruned.table(kept, chosen)}"
        return (*choices, main, *_one(site, chosen))

    def begin(request: gr.Request, quality: str, size: str, model: str) -> tuple[Any, ...]:
        name = _chosen(summaries.runs(), dict(request.query_params).get("run"))
        return name, *look(name, quality, size, model)

    live(look, looks, shown)
    root = gr.context.Context.root_block
    assert root is not None
    root.load(begin, looks[1:], [chosen, *shown], **QUIET)
    for part in (quality, size, model):
        part.input(look, looks, shown, **QUIET)
    recipe.input(_told, recipe, told, **QUIET)

    def start(recipe: str, measure: str, share: Any) -> None:
        with refused("Nothing was started"):
            _queued(prune_queue.prune(site.root, recipe, measure, share))

    queue.click(start, [recipe, measure, share], None, **CONTROL)

    def start_healing(name: str | None, method: str, steps: Any) -> str:
        view = site.run(name)
        with refused("Nothing was started"):
            _queued(prune_queue.heal(view, method, steps))
        return _healers(site, view)

    begin_healing.click(start_healing, [chosen, method, steps], healers, **CONTROL)


def _queued(name: str) -> None:
    done(f"{name} is in the queue of the page Launch.")


def _told(recipe: str) -> str:
    """What a recipe is for, and the way to its whole form."""
    found = bundled().get(recipe)
    if found is None:
        return ""
    return f'<p class="soft">{escape(found.told)}. <a href="{link("launch", recipe=recipe)}">All its settings</a></p>'


def _chosen(runs: list[Pruned], asked: str | None) -> str:
    """The run in the page's address; else the newest with figures, the newest at all, or none."""
    names = [run.row.name for run in runs]
    newest = sorted(runs, key=lambda run: (not run.figures, -run.row.started))
    return asked if asked in names else newest[0].row.name if newest else ""


def _one(site: Site, name: str) -> tuple[Any, ...]:
    """The parts about the chosen run."""
    try:
        view = RunView.find(site.root, name)
        heals = view.file("pruned/pruning.json").is_file()
        head, gone = _head(view, heals), pruned.removal(view) + pruned.pictures(view)
        return head, gr.update(visible=heals), _healers(site, view), gone
    except StudioError:  # deleted meanwhile
        return "", gr.update(visible=False), "", ""


def _head(view: RunView, exports: bool) -> str:
    name = view.folder.name
    links = [("Run", "run"), ("Samples", "samples")] + ([("Export", "export")] if exports else [])
    shown = "".join(f'<a class="button quiet" href="{link(address, run=name)}">{title}</a>' for title, address in links)
    gone = "" if exports else '<p class="soft">There is no pruned network in its folder, so it cannot be healed or exported.</p>'
    return f'<div class="of-run" id="chosen"><h2>{escape(name)}</h2><nav aria-label="This run">{shown}</nav></div>{gone}'


def _healers(site: Site, view: RunView) -> str:
    """What healing does, and the runs that do it for this one."""
    names = prune_queue.healed_by(view, site.names())
    listed = ", ".join(f'<a href="{link("run", run=name)}">{escape(name)}</a>' for name in names)
    waiting = f'See the <a href="{link("launch")}">queue</a>.'
    told = "Trains adapters in the pruned network from where this run left it, as a run of its own, which can be exported."
    return f'<p class="soft">{told} {f"So far: {listed}. " if listed else ""}{waiting}</p>'
