"""Layers that keep their inputs only and are run again in the backward pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def recompute_layers(lm: Any) -> list[Any]:
    """Prepare a model of transformers for it -> its layers, which recompute while they are `awake`."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return [layer for layer in lm.modules() if isinstance(layer, GradientCheckpointingLayer)]


def awake(layers: Iterable[Any], wanted: bool) -> None:
    """transformers recomputes in training mode only, and without a cache; what a layer consists of stays in evaluation mode."""
    for layer in layers:
        layer.training = wanted
