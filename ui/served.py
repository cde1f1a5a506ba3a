"""Pictures of runs in the browser, served where they lie: folders of pictures and nothing else of a run."""

from __future__ import annotations

from html import escape
from pathlib import Path
from urllib.parse import quote

import gradio as gr

from studio.run_view import RunView

_served: set[Path] = set()


def address(view: RunView, file: Path) -> str:
    """The address of a file in the samples folder of a run, for `src`."""
    return served(view.file("samples").resolve(), file)


def served(folder: Path, file: Path) -> str:
    """The address of a file in a folder of pictures, for `src`."""
    if folder not in _served:
        gr.set_static_paths([folder])  # for good: gradio cannot take it back
        _served.add(folder)
    return escape(f"./gradio_api/file={quote(str(file.resolve()))}")
