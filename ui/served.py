"""Pictures of runs in the browser, served where they lie: the samples folder of a run and nothing else of it."""

from __future__ import annotations

from html import escape
from pathlib import Path
from urllib.parse import quote

import gradio as gr

from studio.run_view import RunView

_served: set[Path] = set()


def address(view: RunView, file: Path) -> str:
    """The address of a file in the samples folder of a run, for `src`."""
    folder = view.file("samples").resolve()
    if folder not in _served:
        gr.set_static_paths([folder])  # for good: gradio cannot take it back
        _served.add(folder)
    return escape(f"./gradio_api/file={quote(str(file.resolve()))}")
