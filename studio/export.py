"""`studio export`: a run's weights in a folder that other programs load, with its card. Writes nowhere else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from studio.errors import ConfigError, ExportError, RunError
from studio.files import as_json, disk, read_json, replace
from studio.recipe import Recipe, trained
from studio.run import RunView

MARK = "export.json"  # what lies in an export folder and where it comes from
PARTIAL = ".partial"  # an export in the making, inside its folder


@dataclass(frozen=True)
class Export:
    """What to take out of a run, and in which form."""

    format: Literal["lora", "pipeline", "pruned-depth", "pruned-dense", "pruned-compact", "torchscript", "text"] = "lora"
    weights: Literal["ema", "live"] = "ema"  # the averaged weights that were evaluated, or those the optimizer left
    step: int | None = None  # of a complete checkpoint; None = the newest
    out: Path | None = None  # None = RUN/export/<format>
    keys: Literal["diffusers", "kohya"] = "diffusers"  # kohya adds a file with underscored keys
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the trained part of a whole pipeline


def export_run(view: RunView, options: Export) -> dict[str, Any]:
    """Write the folder -> the facts in its export.json, and `folder`."""
    from flows.export import write_lora, write_pipeline
    from flows.load import locate
    from studio.card import copy_pairs, write_card
    from studio.license import base_license

    if options.format.startswith("pruned-"):
        from studio.export_pruned import export_pruned

        return export_pruned(view, options)
    recipe = trained(view.recipe, view.name)
    block = recipe.policy.options
    if recipe.env is not None or options.format == "torchscript":
        return _control(view, recipe, options)
    if block.reads == "text":
        return _text(view, recipe, options)
    if block.reads != "image" or options.format == "text":
        raise ConfigError(f"export: expected a run of an image policy, got {recipe.policy.name!r}. It has no such form.")
    if options.format == "lora" and block.model.train != "lora":
        raise ConfigError(
            f"export: expected a run that trains LoRA adapters, got {view.name!r}, which trains all weights. Use --format pipeline."
        )
    if block.model.random:
        got = f"random weights ({block.model.random})"
        raise ConfigError(f"export: expected a run of a stored model, got {got}. There is nothing to keep.")
    checkpoint = view.checkpoint(options.step)
    folder = options.out if options.out is not None else view.file(f"export/{options.format}")
    with staged(folder) as partial:
        policy = block.build(recipe.seed)
        load_weights(policy, checkpoint, options.weights)
        if options.format == "lora":
            written = write_lora(policy, partial, underscored=options.keys == "kohya")
        else:
            written = write_pipeline(policy, partial, options.dtype)
        facts = {
            "run": view.name,
            "step": int(checkpoint.name),
            "format": options.format,
            "weights": options.weights,
            "base": block.model.id,
            "pipeline": written.pipeline,
            "component": written.component,
            "error": written.error,
            "effect": written.effect,
        }
        pairs = copy_pairs(view, facts["step"], partial)
        place = locate(block.model.id)
        own = place if Path(place).is_dir() else None
        license = base_license(block.model.id, own, revision=block.model.revision)
        write_card(view, recipe, facts, license, pairs, partial)
        contents = sorted(path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file())
        replace(partial / MARK, as_json({**facts, "files": contents}, indent=1) + "\n")
    return {**facts, "folder": str(folder)}


def _text(view: RunView, recipe: Recipe, options: Export) -> dict[str, Any]:
    """A language model for transformers and PEFT."""
    from studio.export_text import write_card, write_text
    from studio.license import base_license
    from studio.text.load import locate

    block = recipe.policy.options
    if options.format not in ("lora", "text") or (options.format == "lora" and block.model.train != "lora"):
        raise ConfigError(
            f"export: expected --format text, or lora for a run that trains adapters, got {options.format!r} for {view.name!r}, "
            f"which trains {'adapters' if block.model.train == 'lora' else 'all weights'}. Change --format."
        )
    checkpoint = view.checkpoint(options.step)
    folder = options.out if options.out is not None else view.file(f"export/{options.format}")
    with staged(folder) as partial:
        policy = block.build(recipe.seed)
        load_weights(policy, checkpoint, options.weights)
        written = write_text(policy, partial, form=options.format, dtype=options.dtype)
        facts = {
            "run": view.name,
            "step": int(checkpoint.name),
            "format": options.format,
            "weights": options.weights,
            "base": block.model.id,
            "architecture": written.architecture,
            "error": written.error,
            "effect": written.effect,
        }
        place = locate(block.model.id)
        license = base_license(block.model.id, place if Path(place).is_dir() else None, revision=block.model.revision)
        write_card(view, recipe, facts, license, partial)
        contents = sorted(path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file())
        replace(partial / MARK, as_json({**facts, "files": contents}, indent=1) + "\n")
    return {**facts, "folder": str(folder)}


def _control(view: RunView, recipe: Recipe, options: Export) -> dict[str, Any]:
    """A control policy as one TorchScript file."""
    from flows.control.deploy import write_policy
    from studio.parts import build_parts

    if recipe.env is None or options.format != "torchscript":
        raise ConfigError(
            "export: expected --format torchscript for a control policy and another one for an image policy, got "
            f"{options.format!r} for {recipe.policy.name!r}. Change --format."
        )
    checkpoint = view.checkpoint(options.step)
    folder = options.out if options.out is not None else view.file("export/torchscript")
    with staged(folder) as partial:
        parts = build_parts(recipe)
        load_weights(parts.policy, checkpoint, options.weights)
        parts.env.load(checkpoint / "weights")  # type: ignore[union-attr]
        parts.env.close()  # type: ignore[union-attr]
        written = write_policy(parts.policy, parts.env, partial)
        facts = {"run": view.name, "step": int(checkpoint.name), "format": options.format, "weights": options.weights, **written}
        contents = sorted(path.name for path in partial.iterdir())
        replace(partial / MARK, as_json({**facts, "files": contents}, indent=1) + "\n")
    return {**facts, "folder": str(folder)}


def load_weights(policy: Any, checkpoint: Path, which: str) -> None:
    """The averaged weights of a checkpoint, or the trained ones of its state."""
    from studio.state import WEIGHTS, load_trained

    if which == "live":
        load_trained(checkpoint, policy)
    else:
        policy.load(checkpoint / WEIGHTS)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yields an empty folder inside `folder`; on leaving, its files replace those of an earlier export.

    An error inside leaves what was there. A folder with anything else in it is refused.
    """
    earlier = _earlier(folder)
    partial = folder / PARTIAL
    was_there = folder.is_dir()
    try:
        with disk(folder):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            for name in earlier:
                (folder / name).unlink(missing_ok=True)
            for path in sorted(partial.rglob("*")):
                if path.is_file():
                    target = folder / path.relative_to(partial)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(path, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if not was_there and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _earlier(folder: Path) -> list[str]:
    """Files of an earlier export in this folder, as its mark lists them."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: expected a folder for the export, got a file. Give another --out.")
    mark = folder / MARK
    if not mark.is_file():
        if folder.is_dir() and any(path.name != PARTIAL for path in folder.iterdir()):
            raise RunError(f"{folder}: expected an empty or new folder, got one with other files. Give another --out.")
        return []
    names = [MARK, *read_json(mark).get("files", [])]
    if not all((folder / name).resolve().is_relative_to(folder.resolve()) for name in names):
        raise ExportError(f"{mark}: expected files of this folder, got one that lies outside. Remove the folder and export again.")
    return names
