"""Published models without their weights: constructed at full size from their configs, to measure speed and memory.

The figures of `backbones/blueprints.json` are facts of the models' published config files; the tiny variants are for tests.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from flows.backbones.protocol import Condition


@dataclass(frozen=True)
class Blueprint:
    """What a model's config files say; class names are those of diffusers."""

    hub: list[str]  # model ids of the weights
    pipeline: str
    network: str
    scheduler: str
    config: dict[str, Any]  # of the network
    schedule: dict[str, Any]  # of the scheduler
    vae: dict[str, Any]
    text: dict[str, int]  # clip_tokens, width and pooled width of the prompt embeddings
    encoder_parameters: int  # of all text encoders together

    @property
    def part(self) -> str:
        """The network's name within its pipeline."""
        return "unet" if self.network.startswith("UNet") else "transformer"

    def text_tokens(self, text_length: int) -> int:
        """Length of a prompt embedding: the CLIP part and, but for SDXL, the T5 part."""
        return self.text["clip_tokens"] + (0 if self.part == "unet" else text_length)


@cache
def blueprints() -> dict[str, Blueprint]:
    """All known models by short name."""
    source = (files("flows.backbones") / "blueprints.json").read_text(encoding="utf-8")
    return {name: Blueprint(**entry) for name, entry in json.loads(source).items()}


def find(name: str) -> Blueprint | None:
    """The blueprint of a short name or a Hub id; None for models that are not in the file."""
    known = blueprints()
    return known.get(name) or next((entry for entry in known.values() if name in entry.hub), None)


def on_meta(blueprint: Blueprint) -> nn.Module:
    """The network with shapes and without memory: enough to count parameters, operations and activations."""
    import diffusers
    import torch

    with torch.device("meta"):
        return getattr(diffusers, blueprint.network)(**blueprint.config)


def random_pipeline(blueprint: Blueprint, *, device: str, dtype: torch.dtype, seed: int) -> Any:
    """The pipeline with random weights and without text encoders; network in `dtype`, autoencoder in float32.

    On the device "meta" it has shapes only.
    """
    import diffusers
    import torch

    with torch.device("meta"):
        vae: Any = diffusers.AutoencoderKL(**blueprint.vae)
    network: Any = on_meta(blueprint).to(dtype)
    if device != "meta":
        network = materialize(network, device=device, dtype=dtype, seed=seed)
        vae = materialize(vae, device=device, dtype=torch.float32, seed=seed + 1)
    scheduler = getattr(diffusers, blueprint.scheduler)(**blueprint.schedule)
    pipeline = getattr(diffusers, blueprint.pipeline)
    absent = {f"{kind}{i}": None for kind in ("text_encoder", "tokenizer") for i in ("", "_2", "_3")}
    accepted = pipeline._get_signature_keys(pipeline)[0]
    parts = {blueprint.part: network, "vae": vae}
    return pipeline(scheduler=scheduler, **parts, **{name: None for name in absent if name in accepted})


def materialize(model: nn.Module, *, device: str, dtype: torch.dtype, seed: int) -> nn.Module:
    """Weights of N(0, 1/fan_in), biases 0, norm gains 1, drawn on the device: large models take seconds, not minutes."""
    import torch

    draws = torch.Generator(device).manual_seed(seed)
    model = model.to(dtype).to_empty(device=device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 1 / math.sqrt(parameter[0].numel()), generator=draws)
            else:
                parameter.fill_(float(name.endswith("weight")))
        for buffer in model.buffers():  # a position table that construction on the meta device has left empty
            buffer.normal_(0, 0.5, generator=draws)
    return model


@dataclass(frozen=True)
class RandomText:
    """Stands for text encoders: normal embeddings of the right shape that depend on the text alone."""

    blueprint: Blueprint
    text_length: int
    dtype: torch.dtype

    def __call__(self, texts: list[str]) -> Condition:
        """embeds [N, L, D] and pooled [N, D'] on the CPU."""
        import torch

        shapes = {
            "embeds": (self.blueprint.text_tokens(self.text_length), self.blueprint.text["width"]),
            "pooled": (self.blueprint.text["pooled"],),
        }
        return {name: torch.stack([self._draw(text, name, shape) for text in texts]) for name, shape in shapes.items()}

    def _draw(self, text: str, name: str, shape: tuple[int, ...]) -> Tensor:
        import torch

        seed = int.from_bytes(hashlib.sha256(f"{name}/{text}".encode()).digest()[:6], "big")
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.dtype)
