"""The network of a recipe before it is loaded: shapes without memory, from a blueprint or from the configs of a local folder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from flows.blueprint import find, on_meta, random_pipeline
from flows.load import Model, snapshot, wrap

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from pruning.recipe import PruneRecipe


def network_of(model: Model) -> nn.Module | None:
    """The denoiser on the meta device; None when nothing on this machine says what it looks like."""
    blueprint = find(model.name)
    return on_meta(blueprint) if blueprint else _from_folder(model)


def _from_folder(model: Model) -> nn.Module | None:
    """By the config of the pipeline's denoiser; None for classes that are not of diffusers."""
    import diffusers
    import torch

    folder = snapshot(model)
    if folder is None or not (folder / "model_index.json").is_file():
        return None
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    part = next((part for part in ("transformer", "unet") if part in index), None)
    kind = getattr(diffusers, index[part][1], None) if part else None
    if kind is None or not (folder / str(part) / "config.json").is_file():
        return None
    config = json.loads((folder / str(part) / "config.json").read_text(encoding="utf-8"))
    if "pruning" in config:  # narrower than its config says
        return None
    with torch.device("meta"):
        return kind.from_config(config)


def backbone_of(model: Model) -> Any:
    """The backbone of a model with a blueprint, in the recipe's dtype on the meta device."""
    import torch
    from diffusers.utils import logging

    logging.set_verbosity_error()
    blueprint = find(model.name)
    assert blueprint is not None
    pipeline = random_pipeline(blueprint, device="meta", dtype=getattr(torch, model.dtype), seed=0)
    backbone = wrap(pipeline, model)
    backbone.network.requires_grad_(False)
    return backbone


def one_row(backbone: Any, model: Model, *, gradients: bool = False) -> Callable[[], Any]:
    """A call of the velocity of one row on the meta device, with gradients for its input or not."""
    import torch

    from flows.attention import blank_condition

    blueprint = find(model.name)
    assert blueprint is not None
    x = torch.empty(1, *backbone.latent_shape, device="meta", requires_grad=gradients)
    condition = blank_condition(backbone.network, 1, blueprint.text_tokens(model.text_length))
    return lambda: backbone.velocity(x, torch.empty(1, device="meta"), condition)


def check_network(recipe: PruneRecipe) -> dict[str, Any]:
    """Facts about the sites; ConfigError for patterns that match none and targets that cannot be reached.

    Nothing for a model whose shapes are unknown here. A target that counts operations needs a blueprint, which says how long
    prompts are.
    """
    network = network_of(recipe.model)
    if network is None:
        return {}
    groups = recipe.sites.of(network)
    facts: dict[str, Any] = {"units that may go": f"{sum(group.units for group in groups)} in {len(groups)} modules"}
    if recipe.target.measure != "params" and find(recipe.model.name) is None:
        return facts
    from pruning.build import budget

    def forward() -> Callable[[], Any]:
        backbone = backbone_of(recipe.model)
        backbone.network = network
        return one_row(backbone, recipe.model)

    made = budget(groups, network, forward, recipe.target, recipe.allocation, recipe.scope(), per_cost=False)
    return facts | {"smallest possible share": f"{made.least():.3f}"}
