"""Before and after: the base and the trained weights of a run on the same held-out prompts from the same seeds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from studio.parts import build_parts
from studio.recipe import Recipe, trained
from studio.run import RunView
from studio.scoring import Scorer
from studio.state import final_weights
from studio.watch import Evaluated, evaluate

EVALUATION_SEED = 1_000_003  # apart from training, so that no evaluated picture was ever seen by the loop


def compare(folder: Path, prompts: int = 256, report: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """`{"prompts", "step", "before", "after", "guard_sigmas"}`; each side holds the mean of every reward and of every guard."""
    view = RunView.open(folder)
    recipe = trained(view.recipe, view.name)
    weights = final_weights(folder)
    if recipe.env is not None:
        return _episodes(recipe, weights, prompts, report)
    assert recipe.prompts is not None
    policy = recipe.policy.options.build(recipe.seed)
    test = recipe.prompts.options.held_out(prompts)
    rewards, held_out = Scorer(recipe.rewards), Scorer(recipe.held_out)
    report(f"drawing {len(test)} held-out prompts with the base weights")
    before = evaluate(policy, test, rewards, held_out, EVALUATION_SEED)
    policy.load(weights)
    report(f"drawing them again, same seeds, with {weights.parent.name}/{weights.name}")
    after = evaluate(policy, test, rewards, held_out, EVALUATION_SEED)
    sigmas = {
        name: (after.guards[name].mean() - part.mean()).item() / max(part.std().item(), 1e-12)
        for name, part in before.guards.items()
    }
    return {
        "prompts": len(test),
        "step": int(weights.parent.name),
        "before": side(before),
        "after": side(after),
        "guard_sigmas": sigmas,
    }


def _episodes(recipe: Recipe, weights: Path, episodes: int, report: Callable[[str], None]) -> dict[str, Any]:
    """The same of a control policy over whole episodes, in every way that it can act."""
    parts = build_parts(recipe)
    assert parts.env is not None
    sides = []
    for name in ("before", "after"):
        if name == "after":
            parts.policy.load(weights)  # type: ignore[attr-defined]
            parts.env.load(weights)
        report(f"playing {episodes} episodes with the {'base' if name == 'before' else 'trained'} weights, same seeds")
        sides.append(parts.env.measure(parts.policy, episodes, EVALUATION_SEED))
    parts.env.close()
    before, after = ({**numbers, "guards": {}} for numbers in sides)
    return {"episodes": episodes, "step": int(weights.parent.name), "before": before, "after": after, "guard_sigmas": {}}


def side(seen: Evaluated) -> dict[str, Any]:
    return {**seen.means(), "guards": seen.guard_means()}


def table(summary: dict[str, Any]):
    """The summary as a rich table: before, after, change; guards in base standard deviations."""
    from rich.table import Table

    count = f"{summary['prompts']} held-out prompts" if "prompts" in summary else f"{summary['episodes']} episodes"
    grid = Table(title=f"{count}, same seeds")
    for column in ("", "before", "after", "change"):
        grid.add_column(column, justify="left" if not column else "right")
    before, after = summary["before"], summary["after"]
    for name in before:
        if name != "guards":
            grid.add_row(name, f"{before[name]:.3f}", f"{after[name]:.3f}", f"{after[name] - before[name]:+.3f}")
    grid.add_section()
    for name, value in before["guards"].items():
        sigma = summary["guard_sigmas"][name]
        grid.add_row(f"guard: {name}", f"{value:.3f}", f"{after['guards'][name]:.3f}", f"{sigma:+.2f} σ")
    return grid
