"""One run from close by: its curves, alone or over those of others, its recipe, its events and its log."""

from __future__ import annotations

from contextlib import suppress
from hashlib import blake2b
from typing import Any

import gradio as gr

from studio.chart import LIMIT
from studio.errors import StudioError
from ui import control
from ui.closeup import PARTS, Closeup
from ui.head import absent
from ui.say import done, refusal
from ui.shell import CONTROL, QUIET, header, live
from ui.site import Site

ACTIONS = {"stop": "Stop", "save": "Save now", "sample": "Sample now", "resume": "Resume"}
WEIGHT, MOST = 0.6, 0.99  # of smoothing: until someone chooses another, and at most
ADDRESS = "(run, others, smooth) => { window.studio.address({run, others: others.join(','), smooth}); }"


def build(site: Site) -> None:
    """Lay out the page."""
    header("run")
    closeup, shown = Closeup(site.root), gr.State({})
    with gr.Row(elem_classes="tools"):
        run = gr.Dropdown([], label="Run", scale=3)
        others = gr.Dropdown([], label="Overlay", multiselect=True, max_choices=LIMIT - 1, scale=4)
        weight = gr.Slider(0, MOST, value=WEIGHT, step=0.01, label="Smoothing", scale=2, buttons=[])
    parts = [gr.HTML(apply_default_css=False, elem_classes="run-part")]
    with gr.Row(elem_classes=["actions", "few"]):
        buttons = {what: gr.Button(title, size="sm", interactive=False) for what, title in ACTIONS.items()}
    parts += [gr.HTML(apply_default_css=False, elem_classes="run-part") for _ in PARTS[1:]]

    def refresh(shown: dict[int, bytes], run: str | None, others: list[str] | None, weight: float) -> tuple[Any, ...]:
        """All parts, of which those that the browser has already are left out."""
        found = _parts(site, closeup, run, others or [], _share(weight))
        told = {i: blake2b(repr(part).encode(), digest_size=16).digest() for i, part in enumerate(found)}
        return told, *(gr.skip() if shown.get(i) == told[i] else part for i, part in enumerate(found))

    def opened(request: gr.Request) -> tuple[Any, ...]:
        query, names, name = dict(request.query_params), site.names(), site.chosen(request)
        over = [other for other in dict.fromkeys(query.get("others", "").split(",")) if other in names and other != name]
        over, smooth = over[: LIMIT - 1], _share(query.get("smooth"))
        told = refresh({}, name, over, smooth)[: -len(choices)]  # which also come with what is chosen
        return gr.update(choices=names, value=name), gr.update(choices=names, value=over), smooth, *told

    choices, asked = [run, others], [run, others, weight]
    told = [shown, *parts, *buttons.values(), *choices]
    live(refresh, [shown, *asked], told)
    gr.context.Context.root_block.load(opened, None, [*asked, *told[: -len(choices)]], **QUIET)  # type: ignore[union-attr]
    for change in (run.change, others.change, weight.change):
        change(refresh, [shown, *asked], told, trigger_mode="always_last", **QUIET)
        change(None, asked, None, js=ADDRESS, **QUIET)
    for what, button in buttons.items():
        button.click(_acting(site, what), run, None, **CONTROL)


def _parts(site: Site, closeup: Closeup, run: str | None, others: list[str], weight: float) -> list[Any]:
    """HTML of every part, whether each button applies, and twice the names to choose from."""
    names = site.names()
    known = list(dict.fromkeys((*names, *filter(None, (run, *others)))))  # a choice of a run that has gone is still a choice
    choices = [gr.update(choices=known)] * 2
    if not run and names:  # the page has not been told yet which one its address names
        return [gr.skip()] * (len(PARTS) + len(ACTIONS) + len(choices))
    try:
        html, may = closeup.parts(str(run or ""), others, weight)
    except StudioError:  # removed while it was looked at, or no run at all
        html, may = dict.fromkeys(PARTS, "") | {"head": absent(run, names)}, set()
    return [*(html[name] for name in PARTS), *(gr.update(interactive=what in may) for what in ACTIONS), *choices]


def _share(weight: Any) -> float:
    """A smoothing that came from a browser; the usual one for what is none."""
    with suppress(TypeError, ValueError):
        if 0 <= float(weight) < 1:
            return min(float(weight), MOST)
    return WEIGHT


def _acting(site: Site, what: str):
    def act(name: str | None) -> None:
        view = site.run(name)
        try:
            done(control.resume(view) if what == "resume" else control.ask(view, what))
        except StudioError as error:
            raise refusal(error, f"{ACTIONS[what]}: not now") from error

    return act
