"""Everything that the page of a run shows, drawn anew only where a file has changed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from studio.chart import LIMIT
from studio.config import load_yaml
from studio.errors import StudioError
from studio.run_view import ACTIVE, RunView
from ui.bands import bands
from ui.charts import Shown
from ui.curves import Reader
from ui.details import events_section, grave, log_section, recipe_section
from ui.head import early, head
from ui.sections import TITLES, sections

PARTS = ("head", *TITLES, "events", "log", "recipe")  # from top to bottom
PICTURES = 16  # sets of curves that stay drawn, for browsers that look at the same


class Closeup:
    """Runs of a folder from close by; remembers the newest curves and pictures."""

    def __init__(self, root: Path) -> None:
        self._root, self._reader, self._lock = root, Reader(), Lock()
        self._drawn: OrderedDict[Any, dict[str, str]] = OrderedDict()

    def parts(self, run: str, others: Sequence[str], weight: float) -> tuple[dict[str, str], set[str]]:
        """HTML of every part, and what may be asked of the run: stop, save, sample, resume.

        `others` are laid over its curves; those that are no runs are passed over. RunError when the run itself is none.
        """
        view = RunView.find(self._root, run)
        views = [view, *self._present(others, view)][:LIMIT]
        shown = [Shown(each.folder.name, self._reader.read(each)) for each in views]
        recipes = {each.folder.name: _recipe(each) for each in views}
        events, state = _events(view, _stamp(view.file("events.jsonl"))), view.status["state"]
        active, recipe = state in ACTIVE, recipes[view.folder.name]
        html = {
            "head": head(view, recipe, shown, grave(events)) + ("" if shown[0].curves.names else early(active)),
            **self._curves(view, recipe, shown, weight),
            "events": events_section(events),
            "log": log_section(view, shut=not active and state not in ("failed", "lost")),
            "recipe": recipe_section(view, recipes),
        }
        return html, {"stop", "save", "sample"} if active else {"resume"} - ({"resume"} if state == "finished" else set())

    def _present(self, others: Sequence[str], view: RunView) -> list[RunView]:
        found = []
        for name in dict.fromkeys(map(str, others)):
            with suppress(StudioError):
                found.append(RunView.find(self._root, name))
        return [each for each in found if each.folder != view.folder]

    def _curves(self, view: RunView, recipe: dict[str, Any], shown: list[Shown], weight: float) -> dict[str, str]:
        key = (weight, *((run.name, run.curves.cursor) for run in shown))
        with self._lock:
            if key in self._drawn:
                self._drawn.move_to_end(key)
                return self._drawn[key]
        first = replace(shown[0], bands=bands(view, shown[0].curves, recipe))
        drawn = sections([first, *shown[1:]], weight)
        with self._lock:
            self._drawn[key] = drawn
            while len(self._drawn) > PICTURES:
                self._drawn.popitem(last=False)
        return drawn


def _stamp(path: Path) -> tuple[int, int]:
    """Tells two versions of a file apart."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_mtime_ns, stat.st_size


def _recipe(view: RunView) -> dict[str, Any]:
    path = view.file("recipe.yaml")
    return _loaded(path, _stamp(path)) if path.is_file() else {}


@lru_cache(maxsize=64)
def _loaded(path: Path, _version: tuple[int, int]) -> dict[str, Any]:
    return load_yaml(path)


@lru_cache(maxsize=64)
def _events(view: RunView, _version: tuple[int, int]) -> list[dict[str, Any]]:
    return view.events()
