"""Samples of a run's model with their prompts: PNG files or texts; of a control policy one moving picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from studio.recipe import Recipe, trained
from studio.run import RunView
from studio.seeds import row_seed
from studio.state import final_weights
from studio.types import Prompts


def draw(runs: Path, name: str, prompts: list[str], *, count: int, seed: int, base: bool) -> Path:
    """`count` samples, walking through the prompts again and again -> the folder they lie in."""
    view = RunView.find(runs, name)
    recipe = trained(view.recipe, view.name)
    if recipe.env is not None:
        return _film(view, recipe, seed=seed, base=base)
    assert recipe.prompts is not None
    policy = recipe.policy.options.build(recipe.seed)
    if not base:
        policy.load(final_weights(view.folder))
    known = Prompts(prompts, prompts, [{} for _ in prompts]) if prompts else recipe.prompts.options.held_out(count)
    rows = known.take([i % len(known) for i in range(count)])
    seeds = [row_seed(seed, text, i // len(known)) for i, text in enumerate(rows.text)]
    samples = policy.draw(rows, seeds)
    folder = view.folder / "export" / ("samples-base" if base else "samples")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "samples.jsonl").open("w", encoding="utf-8") as lines:
        for row, (text, sample) in enumerate(zip(rows.text, samples, strict=True)):
            name = _write(folder / f"{row:04d}", sample)
            lines.write(json.dumps({"path": name, "prompt": text, "seed": seeds[row]}) + "\n")
    return folder


def _write(stem: Path, sample: Any) -> str:
    """A picture [3, H, W] as PNG or a text as it is -> the file's name."""
    if isinstance(sample, str):
        stem.with_suffix(".txt").write_text(sample, encoding="utf-8")
        return stem.with_suffix(".txt").name
    from PIL import Image

    pixels = (sample.permute(1, 2, 0) * 255).round().byte().cpu().numpy()
    Image.fromarray(pixels).save(stem.with_suffix(".png"))
    return stem.with_suffix(".png").name


def _film(view: RunView, recipe: Recipe, *, seed: int, base: bool) -> Path:
    """A moving picture of what a control policy does."""
    from studio.parts import build_parts

    parts = build_parts(recipe)
    assert parts.env is not None
    if not base:
        weights = final_weights(view.folder)
        parts.policy.load(weights)  # type: ignore[attr-defined]
        parts.env.load(weights)
    parts.env.close()
    return parts.env.film(parts.policy, view.folder / "export" / f"rollouts{'-base' if base else ''}.gif", seed)
