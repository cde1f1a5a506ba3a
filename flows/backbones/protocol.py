"""What a text-to-image model must offer: three functions and its grid; nothing about training."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

Condition = dict[str, Tensor]  # every entry [N, ...], one row per sample


class Backbone(Protocol):
    """A model in the conventions of diffusers' flows: sigma 1 is noise, the velocity is e - x0 (`flows.diffusion` for others).

    Optional: `top`, the largest sigma it was trained on, if below 1; `start(noise, sigma)`, x at the grid's first sigma.
    """

    name: str
    network: nn.Module  # what is trained; may be replaced by its distributed wrapper
    latent_shape: tuple[int, ...]
    lora_targets: tuple[str, ...]  # as published for this model
    pipeline: Any  # the diffusers pipeline, for saving

    def encode(self, texts: list[str]) -> Condition: ...
    def velocity(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor: ...
    def decode(self, latents: Tensor) -> Tensor: ...  # images [N, 3, H, W] float32 in [0, 1]
    def sigmas(self, steps: int) -> Tensor: ...  # [steps + 1] of the pipeline's own scheduler
