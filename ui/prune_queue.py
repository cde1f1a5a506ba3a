"""Prune runs, and the training of what one has left, put into the queue of runs that are to start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studio.chart import is_number
from studio.config import to_yaml
from studio.errors import ConfigError, RunError
from studio.files import replace
from studio.layout import check_name
from studio.run_view import RunView
from ui.queue import Entry, Queue
from ui.recipes import bundled

TARGETS = {"params": "parameters", "flops": "FLOPs", "latency": "time"}  # what a target is a share of
METHODS = {
    "distill": "Distillation: the velocities of the dense model on its own trajectories",
    "reward": "GRPO-Guard on the rewards of the prune recipe",
}
GROUP = 8  # samples per prompt of healing by reward, as within a prune run
STEPS = 100_000  # at most


def prune(root: Path, recipe: str, measure: str, share: Any) -> str:
    """Put a prune run of a bundled recipe with another target into the queue -> the name of the run that it becomes."""
    known = [name for name, found in bundled().items() if found.kind == "prune"]
    if recipe not in known:
        raise ConfigError(f"prune: expected a recipe of {', '.join(known)}, got {recipe!r}. Choose one of them.")
    if measure not in TARGETS or not is_number(share) or not 0 < share <= 1:
        raise ConfigError(f"prune: expected a share of {', '.join(TARGETS)} above 0, at most 1, got {measure!r} {share!r}.")
    name = free_name(root, f"{recipe.replace('/', '-')}-{share:g}")
    Queue(root).add(Entry(check_name(name), "prune", recipe, (f"target.{measure}={share:g}",)))
    return name


def heal(view: RunView, method: str, steps: Any) -> str:
    """Put the healing of a prune run into the queue -> the name of the run that it becomes."""
    root, pruned = view.folder.parent, view.file("pruned")
    if not (pruned / "pruning.json").is_file():
        raise RunError(f"{view.name}: expected a finished prune run with its network, got none. Wait for its end, or resume it.")
    if not is_number(steps) or not 1 <= steps <= STEPS or steps != int(steps):
        raise ConfigError(f"heal: expected 1 to {STEPS} steps, got {steps!r}. Give a whole number.")
    recipe = recipe_for(view.recipe, pruned, method, int(steps))
    name = free_name(root, healing_of(view))
    (root / ".launch").mkdir(exist_ok=True)
    replace(root / ".launch" / f"{name}.yaml", f"# Healing of {view.folder.name}: {METHODS[method]}\n{to_yaml(recipe)}")
    Queue(root).add(Entry(check_name(name), "train", f".launch/{name}.yaml"))
    return name


def healing_of(view: RunView) -> str:
    """How the names of runs begin that heal this one."""
    return f"{view.folder.name[:100]}-heal"


def healed_by(view: RunView, names: list[str]) -> list[str]:
    """Of the runs in a folder, those that heal this one, in their order."""
    own = [name for name in names if name.startswith(f"{healing_of(view)}-") and name.rpartition("-")[2].isdecimal()]
    return sorted(own, key=lambda name: int(name.rpartition("-")[2]))


def free_name(root: Path, start: str) -> str:
    """`start` with the first number from 1 that is no run's name and not in the queue."""
    taken = {path.name for path in root.iterdir()} | {entry.name for entry in Queue(root).entries()}
    return next(name for k in range(1, len(taken) + 2) if (name := f"{start}-{k}") not in taken)


def recipe_for(recipe: Mapping[str, Any], pruned: Path, method: str, steps: int) -> dict[str, Any]:
    """A recipe of `studio train` for the network in `pruned`, with the settings that the prune recipe has for healing."""
    model, heal = recipe.get("model"), recipe.get("heal") or {}
    drawn = {"sampler": recipe["sampler"]} if "sampler" in recipe else {}
    if not isinstance(model, dict) or not isinstance(heal, dict) or "prompts" not in recipe:
        raise ConfigError("heal: expected a recipe with model and prompts, got another. It is not that of a prune run.")
    if method not in METHODS:
        raise ConfigError(f"heal: expected a method of {', '.join(METHODS)}, got {method!r}. Choose one of them.")
    if not recipe.get("rewards") and method == "reward":
        raise ConfigError("heal: expected a prune recipe with rewards, got one without. Choose distillation.")
    kept = {key: heal[key] for key in ("train", "lora") if key in heal}
    group = GROUP if method == "reward" else 1
    train = {key: heal[key] for key in ("learning_rate", "mixed_precision", "checkpointing_steps") if key in heal}
    train |= {"steps": steps, "group_size": group, "groups_per_step": max(1, heal.get("rows", 16) // group), "adam_epsilon": 1e-6}
    if model.get("dtype", "float32") != "float32" or train.get("mixed_precision", "no") != "no":
        train["ratio_tolerance"] = 1e-2  # |log ratio| of a first replay in half precision
    return {
        "policy": {"name": "denoise", "model": {**model, **kept, "pruned": str(pruned)}, **drawn},
        "algorithm": {"name": "distill", "teacher": model, **drawn}
        if method == "distill"
        else {"name": "grpo_guard", "clip": 1e-5, "scale": "group"},
        "prompts": recipe["prompts"],
        "rewards": recipe.get("rewards") or {},
        "train": train,
        "watch": {"every": max(1, steps // 4), "prompts": recipe.get("evaluate", 64), "samples": 24},
        "seed": recipe.get("seed", 0),
    }
