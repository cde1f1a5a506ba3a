"""The stages of a prune run as text: what remained at each, what it cost, what it was worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHARES = {"params": "parameters", "flops": "FLOPs", "seconds": "time"}  # key of a stage -> title
NONE = "–"  # not measured at this stage


def columns(summary: Mapping[str, Any]) -> list[str]:
    """Titles of the columns after the stage's name."""
    return [*SHARES.values(), "latent error", *summary["stages"][0]["rewards"]]


def rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Per stage its name and a cell per column; costs as shares of the first stage, the dense network."""
    first = summary["stages"][0]
    found = []
    for stage in summary["stages"]:
        costs = [_share(stage.get(key), first.get(key)) for key in SHARES]
        rewards = [_number(stage["rewards"].get(name), 3) for name in first["rewards"]]
        found.append([stage["name"], *costs, _number(stage["latent_error"], 4), *rewards])
    return found


def table(summary: Mapping[str, Any]):
    """The stages for a terminal."""
    from rich.table import Table

    grid = Table(title=f"{summary['prompts']} held-out prompts, same seeds; shares of the dense network", title_justify="left")
    for column in ("", *columns(summary)):
        grid.add_column(column, justify="right" if column else "left", no_wrap=True)
    for cells in rows(summary):
        grid.add_row(*cells)
    return grid


def _share(value: float | None, whole: float | None) -> str:
    return NONE if value is None or not whole else f"{value / whole:.3f}"


def _number(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:.{digits}f}"
