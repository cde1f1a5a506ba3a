"""The range in which a guard raises no alarm: the untouched base model, and how far its samples spread."""

from __future__ import annotations

import statistics
from typing import Any

from studio.chart import is_number, number
from studio.errors import StudioError
from studio.run_view import RunView
from ui.curves import Curves
from ui.plot import Band

SIGMAS = 3.0  # of a recipe that does not say
LEAST = 2  # samples that a spread is taken from


def bands(view: RunView, curves: Curves, recipe: dict[str, Any]) -> dict[str, Band]:
    """`sample/NAME` -> mean at step 0 ± `watch.sigmas` standard deviations of the samples kept of step 0.

    The alarm itself takes the deviation over all held-out prompts, of which the run keeps the first `watch.samples`.
    """
    try:
        records = view.samples(0)
    except StudioError:
        return {}
    guards: dict[str, list[float]] = {}
    for record in records:
        found = record.get("guards")
        for name, value in found.items() if isinstance(found, dict) else ():
            if is_number(value):
                guards.setdefault(str(name), []).append(value)
    watch = recipe.get("watch")
    sigmas = watch.get("sigmas") if isinstance(watch, dict) else None
    sigmas = float(sigmas) if is_number(sigmas) else SIGMAS
    return {
        f"sample/{n}": _band(values, sigmas, _base(curves, f"sample/{n}")) for n, values in guards.items() if len(values) >= LEAST
    }


def _base(curves: Curves, metric: str) -> float | None:
    """The mean over all prompts at step 0."""
    steps, values = curves.series(metric)
    return float(values[0]) if len(steps) and steps[0] == 0 else None


def _band(values: list[float], sigmas: float, base: float | None) -> Band:
    mean, spread = statistics.fmean(values) if base is None else base, statistics.pstdev(values)
    low, high = mean - sigmas * spread, mean + sigmas * spread
    told = f"Alarm outside {number(low)} to {number(high)}: step 0 ± {sigmas:g} standard deviations of {len(values)} samples."
    return Band(low, high, told)
