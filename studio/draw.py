"""Pictures from a run's model, as PNG files with their captions; of a control policy one moving picture."""

from __future__ import annotations

import json
from pathlib import Path

from studio.recipe import Recipe, trained
from studio.run import RunView
from studio.seeds import row_seed
from studio.state import final_weights


def draw(runs: Path, name: str, prompts: list[str], *, count: int, seed: int, base: bool) -> Path:
    """`count` pictures, walking through the prompts again and again -> the folder they lie in."""
    from PIL import Image

    view = RunView.find(runs, name)
    recipe = trained(view.recipe, view.name)
    if recipe.env is not None:
        return _film(view, recipe, seed=seed, base=base)
    assert recipe.prompts is not None
    policy = recipe.policy.options.build(recipe.seed)
    if not base:
        policy.load(final_weights(view.folder))
    known = prompts or recipe.prompts.options.held_out(count).text
    texts = [known[i % len(known)] for i in range(count)]
    seeds = [row_seed(seed, text, i // len(known)) for i, text in enumerate(texts)]
    images = policy.images(texts, seeds)
    folder = view.folder / "export" / ("samples-base" if base else "samples")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "samples.jsonl").open("w", encoding="utf-8") as lines:
        for row, (text, image) in enumerate(zip(texts, images, strict=True)):
            pixels = (image.permute(1, 2, 0) * 255).round().byte().cpu().numpy()
            Image.fromarray(pixels).save(folder / f"{row:04d}.png")
            lines.write(json.dumps({"path": f"{row:04d}.png", "prompt": text, "seed": seeds[row]}) + "\n")
    return folder


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
