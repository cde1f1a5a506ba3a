"""Messages in the corner of a page. A browser reads them as HTML, so that what they quote of runs and files is escaped here."""

from __future__ import annotations

from html import escape

import gradio as gr


def done(text: str) -> None:
    """What has been done."""
    gr.Info(escape(text))


def warned(text: str, title: str) -> None:
    """What did not work, without ending the event; it stays until it is closed."""
    gr.Warning(escape(text), title=title, duration=None)


def refusal(text: object, title: str) -> gr.Error:
    """To be raised: what was wrong and what to do, without a traceback in the log."""
    return gr.Error(escape(str(text)), title=title, print_exception=False)
