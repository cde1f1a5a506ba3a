"""Laid out by and by."""

from __future__ import annotations

import gradio as gr

from ui.shell import header
from ui.site import Site


def build(site: Site) -> None:
    """Lay out the page."""
    header("run")
    gr.HTML("<div class='empty'>not yet</div>")
