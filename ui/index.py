"""What the table of runs says of each: state, progress, newest rewards, a small curve; unchanged files are not read again."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.config import load_yaml
from studio.errors import StudioError
from studio.page import named
from studio.run_view import RunView, list_runs
from ui.sparse import last_records, spread_records

POINTS = 24  # of a small curve
HEADLINE = ("reward/mean", "reward/return", "reward/eval.return", "prune/error", "loss/total")  # the first that a run has


@dataclass(frozen=True)
class Row:
    """One run in the table."""

    name: str
    kind: str  # image, control, text or prune
    method: str  # algorithm or criterion
    model: str
    label: str  # the state to show
    state: str
    step: int
    total: int | None
    eta_s: float | None
    seconds_per_step: float | None
    started: float
    reason: str
    headline: str  # metric of the curve
    curve: tuple[tuple[float, float], ...]
    latest: dict[str, float]  # newest value of every reward

    @property
    def share(self) -> float:
        return min(1.0, self.step / self.total) if self.total else 0.0


class Index:
    """The runs of a folder; remembers what files said until they change."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._curves: dict[Path, tuple[Any, str, tuple, dict[str, float]]] = {}
        self._recipes: dict[Path, tuple[Any, dict[str, Any]]] = {}

    def rows(self) -> list[Row]:
        """All runs, newest first."""
        views = list_runs(self.root)
        known = {view.folder for view in views}
        for cache in (self._curves, self._recipes):
            for gone in cache.keys() - known:
                cache.pop(gone, None)
        return [row for view in views if (row := self._row(view)) is not None]

    def _row(self, view: RunView) -> Row | None:
        try:
            status, recipe = view.status, self._recipe(view)
            headline, curve, latest = self._curve(view)
        except StudioError:  # being deleted, or half a folder
            return None
        return Row(
            name=view.folder.name,
            kind=kind_of(recipe),
            method=named(recipe.get("criterion") or recipe.get("algorithm")),
            model=named(recipe.get("policy") or recipe.get("model")),
            label=str(status["label"]),
            state=str(status["state"]),
            step=int(status.get("step") or 0),
            total=status.get("total_steps"),
            eta_s=status.get("eta_s"),
            seconds_per_step=status.get("seconds_per_step"),
            started=float(status.get("started") or 0),
            reason=str(status.get("reason") or ""),
            headline=headline,
            curve=curve,
            latest=latest,
        )

    def _recipe(self, view: RunView) -> dict[str, Any]:
        path = view.file("recipe.yaml")
        stamp = _stamp(path)
        if self._recipes.get(view.folder, ("",))[0] != stamp:
            self._recipes[view.folder] = (stamp, load_yaml(path) if path.is_file() else {})
        return self._recipes[view.folder][1]

    def _curve(self, view: RunView) -> tuple[str, tuple, dict[str, float]]:
        path = view.file("metrics.jsonl")
        stamp = _stamp(path)
        if self._curves.get(view.folder, ("",))[0] != stamp:
            tail = last_records(path)
            latest = {k: v for record in tail for k, v in record.items() if v is not None and k not in ("t", "step")}
            headline = next((name for name in HEADLINE if name in latest), "")
            seen = {r["step"]: r[headline] for r in (*spread_records(path, POINTS), *tail[-1:]) if r.get(headline) is not None}
            rewards = {k.removeprefix("reward/"): v for k, v in latest.items() if k.startswith("reward/")}
            self._curves[view.folder] = (stamp, headline, tuple(sorted(seen.items())), rewards)
        return self._curves[view.folder][1:]


def kind_of(recipe: dict[str, Any]) -> str:
    """Which of the four branches a recipe belongs to."""
    policy = recipe.get("policy")
    name = policy.get("name") if isinstance(policy, dict) else policy
    if "criterion" in recipe:
        return "prune"
    return "control" if recipe.get("env") else "text" if str(name) in ("text", "masked_text") else "image"


def duration(seconds: float | None) -> str:
    """42 s, 3 min 10 s, 2 h 05 min, 3 d 4 h; a dash for none."""
    if seconds is None or seconds < 0:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min" if whole < 86400 else f"{whole // 86400} d {whole % 86400 // 3600} h"


def ago(then: float) -> str:
    return f"{duration(time.time() - then)} ago" if then else "–"


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size
