"""Starting a prune run: its folder, and its stages in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pruning.network import check_network
from pruning.recipe import PruneRecipe
from studio.config import apply_overrides, build, dump, parse_yaml
from studio.errors import ConfigError
from studio.launch import accounted, reopen
from studio.progress import Progress
from studio.recipe import recipe_source
from studio.run import Run


def load_prune_recipe(name: str, overrides: list[str]) -> tuple[PruneRecipe, str]:
    """A bundled prune recipe by name or a YAML file by path, with overrides -> (recipe, its source text)."""
    data, source = prune_data(name, overrides)
    return build(PruneRecipe, data), source


def prune_data(name: str, overrides: list[str]) -> tuple[dict[str, Any], str]:
    """The same before it is validated -> (plain blocks, source text)."""
    source = recipe_source(name, "prune")
    data = apply_overrides(parse_yaml(source, name), overrides)
    given = [override.partition("=")[0] for override in overrides]
    if "target" in data and any(key.startswith("target.") for key in given):  # another measure replaces the recipe's
        data["target"] = {key: value for key, value in data["target"].items() if f"target.{key}" in given}
    return data, source


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
    check_held_out(recipe)
    check_network(recipe)
    steps = recipe.learn.steps if recipe.learned else 0
    run = Run.create(runs, run_name, dump(recipe), source, total_steps=steps, command=sys.argv)
    for text in warnings:
        run.event("warning", message=text)
    return run, recipe


def check_held_out(recipe: PruneRecipe) -> None:
    """ConfigError when there is nothing to measure on, or a reward cannot judge a prompt."""
    from studio.scoring import check_prompts

    test = recipe.prompts.options.held_out(recipe.evaluate)
    if not len(test):
        raise ConfigError(
            "recipe.prompts: expected held-out prompts to measure on, got none. Name a file with prompts.test, or set "
            "prompts.select.test_fraction."
        )
    check_prompts({name: block.options for name, block in {**recipe.protect, **recipe.rewards}.items()}, test)


def start_prune(run: Run, recipe: PruneRecipe, *, progress: str, log_every: int, say: Callable[[str], None]) -> int:
    """All stages -> exit code."""

    def body() -> None:
        from pruning.run import prune

        with Progress(recipe.learn.steps, style=progress, every=log_every) as report:
            prune(recipe, run, tell=say, report=report)

    return accounted(run, body)
