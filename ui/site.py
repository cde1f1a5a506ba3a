"""What every page knows: the folder of runs, and how a name that came from a browser becomes a run of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr

from studio.errors import StudioError
from studio.run_view import RunView
from ui.index import Index
from ui.say import refusal


@dataclass
class Site:
    """The runs folder that this interface shows; nothing outside it is read or written."""

    root: Path
    index: Index = field(init=False)

    def __post_init__(self) -> None:
        self.root = self.root.resolve()
        self.index = Index(self.root)

    def run(self, name: str | None) -> RunView:
        """The run that a browser named; a message in the browser for any other name."""
        try:
            return RunView.find(self.root, str(name or ""))
        except StudioError as error:
            raise refusal(error, "No such run") from error

    def names(self) -> list[str]:
        """All runs, newest first."""
        return [row.name for row in self.index.rows()]

    def chosen(self, request: gr.Request) -> str | None:
        """The run in the page's address; the newest when there is none."""
        names, asked = self.names(), dict(request.query_params).get("run")
        return asked if asked in names else next(iter(names), None)
