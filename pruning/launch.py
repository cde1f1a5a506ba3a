"""Starting a prune run: its folder, its stages in this process, its table and report."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pruning.recipe import PruneRecipe
from studio.config import apply_overrides, build, dump, parse_yaml
from studio.errors import ConfigError
from studio.launch import accounted, reopen
from studio.progress import Progress
from studio.recipe import recipe_source
from studio.run import Run, RunView


def load_prune_recipe(name: str, overrides: list[str]) -> tuple[PruneRecipe, str]:
    """A bundled prune recipe by name or a YAML file by path, with overrides -> (recipe, its source text)."""
    source = recipe_source(name, "prune")
    data = apply_overrides(parse_yaml(source, name), overrides)
    given = [override.partition("=")[0] for override in overrides]
    if "target" in data and any(key.startswith("target.") for key in given):  # another measure replaces the recipe's
        data["target"] = {key: value for key, value in data["target"].items() if f"target.{key}" in given}
    return build(PruneRecipe, data), source


def open_prune(
    name: str | None, overrides: list[str], *, runs: Path, run_name: str | None, resume: bool
) -> tuple[Run, PruneRecipe]:
    """A new run folder, or one to continue; everything that can be refused is refused here."""
    if resume:
        return reopen(PruneRecipe, name, overrides, runs, run_name, work="prune")
    if name is None:
        raise ConfigError("studio prune: expected a recipe, got none. Name one of `studio list recipes` or a YAML file.")
    recipe, source = load_prune_recipe(name, overrides)
    warnings = recipe.check()
    steps = recipe.learn.steps if recipe.learned else 0
    run = Run.create(runs, run_name, dump(recipe), source, total_steps=steps, command=sys.argv)
    for text in warnings:
        run.event("warning", message=text)
    return run, recipe


def start_prune(run: Run, recipe: PruneRecipe, *, progress: str, log_every: int, say: Callable[[str], None]) -> int:
    """All stages, the table and the report -> exit code."""

    def body() -> None:
        from pruning.run import prune

        with Progress(recipe.learn.steps, style=progress, every=log_every) as report:
            state = prune(recipe, run, tell=say, report=report)
        if state == "finished":
            conclude(run)

    return accounted(run, body)


def conclude(run: Run) -> None:
    """The report, and the table on stdout."""
    from rich.console import Console

    from studio.report import write_report

    page = write_report(run.folder)
    Console().print(table(RunView.open(run.folder).summary or {}))
    print(f"report  {page}")


def table(summary: dict[str, Any]):
    """One row per stage: what remains, what it costs, what it is worth."""
    from rich.table import Table

    stages = summary["stages"]
    first = stages[0]
    grid = Table(title=f"{summary['prompts']} held-out prompts, same seeds; shares of the dense network")
    rewards = list(first["rewards"])
    for column in ("", "parameters", "FLOPs", "time", "latent error", *rewards):
        grid.add_column(column, justify="left" if not column else "right")
    for stage in stages:
        shares = [_share(stage, first, key) for key in ("params", "flops", "seconds")]
        grid.add_row(stage["name"], *shares, f"{stage['latent_error']:.4f}", *(f"{stage['rewards'][r]:.3f}" for r in rewards))
    return grid


def _share(stage: dict[str, Any], first: dict[str, Any], key: str) -> str:
    return "" if stage[key] is None else f"{stage[key] / first[key]:.3f}"
