"""Choosing a recipe, changing it in a form, checking and starting it; the queue of what is to start."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import gradio as gr

from ui import waiting
from ui.desk import Desk
from ui.shell import CONTROL, QUIET, header, live
from ui.site import Site

ASKED: dict[str, Any] = {**QUIET, "trigger_mode": "multiple"}  # the form itself asks one question at a time


def build(site: Site) -> None:
    """Lay out the page."""
    desk = Desk(site)
    header("launch")
    queue = _html("queue", elem_classes=["wide", "queue-part"])
    top = _html("picker")
    with gr.Row(elem_classes="launch"):
        with gr.Column(scale=3, min_width=320):
            form = _html("form")
        with gr.Column(scale=2, min_width=320, elem_classes="side"):
            start = _html("start")
            check = _html("check")
            result = _html("result")
    page = gr.context.Context.root_block
    assert isinstance(page, gr.Blocks)
    opened = page.load(desk.open, None, [top, form, start, check, result], **QUIET)
    opened.then(desk.form, None, form, **QUIET)
    opened.then(desk.first_check, None, check, **QUIET)
    live(lambda: waiting.table(desk.queue), [], [queue])
    form.swap(desk.changed_form, None, form, **ASKED)
    form.edit(desk.result, None, result, **ASKED)
    form.edit(desk.check, None, check, **ASKED)
    start.submit(desk.start, None, [start, queue], **CONTROL)
    queue.select(desk.act, None, queue, **CONTROL)


def _html(name: str, **given: Any) -> gr.HTML:
    """A part of the page with its script."""
    script = (files("ui") / "assets" / f"launch-{name}.js").read_text("utf-8")
    return gr.HTML(js_on_load=script, apply_default_css=False, **given)
