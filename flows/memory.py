"""How much memory a recipe needs on a GPU, before a model is loaded.

The network is built from its blueprint on the meta device, with the recipe's adapters, and one row goes forward: what autograd
keeps is counted tensor by tensor (`flows.trace`). Then, in bytes on one GPU:

    weights      b·N + 4·n     N parameters of b bytes; n trained ones, float32 as all that belongs to them (full: 4·N, and
                               2·N for their half-precision copies under autocast)
    gradients    4·n           and as much again for the buckets of DDP
    optimizer    8·n           Adam's two moments
    average      4·n           with train.ema
    reference    4·n           the initial weights, for full training with a KL; adapters need none
    activations  A·R + P·R     R rows of a replay = samples of a part × trained steps (1 with train.split_steps) × 2 under
                               guidance; A kept a row; P the largest block, when checkpointing recomputes one at a time
    record       16·D·S        S trained steps of the rollout, of each D numbers: x, mean, noise, reference mean
    autoencoder  4·V + 5000·X  V parameters, X pixels decoded at once
    encoders     b·E           when model.offload_encoders=off
    workspace    1 GB          context and libraries

FSDP2 divides the first five by the number of GPUs. Not counted: fragmentation, reward models, and what a kernel needs for itself.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import prod
from typing import Any

from flows.backbones.sd3 import DECODED_PIXELS
from flows.blueprint import Blueprint, find, random_pipeline
from flows.load import Model, wrap
from flows.sampler import Sampler

GB = 1e9
WORKSPACE = 1e9
DECODE_BYTES = 5000  # a pixel in float32: a few tensors of 256 channels at full size, the widest place of all these autoencoders
_known: dict[str, Footprint] = {}  # by model block; a trace takes a second or two


@dataclass(frozen=True)
class Footprint:
    """What the network and one row of its forward need."""

    parameters: int  # N, without adapters
    trained: int  # n
    autoencoder: int  # V
    kept: int  # A, bytes
    block: int  # P, bytes; 0 without checkpointing
    flops: float  # of one forward
    event: int  # D, numbers in one latent
    pixels: int  # in one picture


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU, by use."""

    weights: float
    gradients: float
    optimizer: float
    average: float
    reference: float
    activations: float
    record: float
    autoencoder: float
    encoders: float
    workspace: float = WORKSPACE

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        parts = ((field.name, getattr(self, field.name)) for field in fields(self))
        return f"{self.total / GB:.1f} GB = " + " + ".join(f"{name} {size / GB:.1f}" for name, size in parts if size >= 0.05 * GB)


def estimate(
    model: Model,
    sampler: Sampler,
    *,
    samples: int,
    part: int,
    average: bool,
    reference: bool,
    half: bool = False,
    split_steps: bool = False,
    gpus: int = 1,
    sharded: bool = False,
) -> Memory | None:
    """Memory of one GPU that handles `samples` per iteration, `part` of them at a time; None for a model without blueprint."""
    blueprint = find(model.name)
    if blueprint is None:
        return None
    cost = footprint(model, blueprint, half)
    full, width = model.train == "full", 4 if model.dtype == "float32" else 2
    split = gpus if sharded else 1
    steps = len(sampler.window.steps(sampler.steps, 0, 0))
    replayed = part * (1 if split_steps else steps) * (2 if sampler.guidance > 1 else 1)
    trained = 4.0 * cost.trained
    return Memory(
        weights=(0 if full else cost.parameters * width) / split + trained / split + (2.0 * cost.trained if full and half else 0),
        gradients=trained / split + (trained if gpus > 1 and not sharded else 0),
        optimizer=2 * trained / split,
        average=average * trained / split,
        reference=(full and reference) * trained / split,
        activations=float((cost.kept + cost.block) * replayed),
        record=16.0 * cost.event * samples * steps,
        autoencoder=4.0 * cost.autoencoder + DECODE_BYTES * min(DECODED_PIXELS, part * cost.pixels),
        encoders=float(blueprint.encoder_parameters * width) if model.offload_encoders == "off" and not model.random else 0.0,
    )


def footprint(model: Model, blueprint: Blueprint, half: bool = False) -> Footprint:
    """Build the network without memory as the recipe has it, and trace one row of one forward; `half` = under autocast."""
    key = f"{model} {half}"
    if key not in _known:
        _known[key] = _measure(model, blueprint, half)
    return _known[key]


def _measure(model: Model, blueprint: Blueprint, half: bool) -> Footprint:
    import torch
    from diffusers.utils import logging

    from flows.adapter import attach_lora
    from flows.attention import blank_condition
    from flows.trace import trace

    logging.set_verbosity_error()
    dtype = torch.bfloat16 if half else torch.float32 if model.train == "full" else getattr(torch, model.dtype)
    backbone = wrap(random_pipeline(blueprint, device="meta", dtype=dtype, seed=0), model)
    network: Any = backbone.network
    parameters = sum(p.numel() for p in network.parameters())
    if model.train == "lora":
        attach_lora(network, tuple(model.lora.targets) or backbone.lora_targets, rank=model.lora.rank, alpha=model.lora.alpha)
    x, sigma = (torch.empty(1, *shape, device="meta") for shape in (backbone.latent_shape, ()))
    condition = blank_condition(network, 1, blueprint.text_tokens(model.text_length))
    whole = trace(network, lambda: backbone.velocity(x, sigma, condition))
    kept, block = whole.kept, 0
    if model.gradient_checkpointing:
        network.enable_gradient_checkpointing()
        kept, block = trace(network, lambda: backbone.velocity(x, sigma, condition)).kept, whole.largest
    return Footprint(
        parameters=parameters,
        trained=sum(p.numel() for p in network.parameters() if p.requires_grad),
        autoencoder=sum(p.numel() for p in backbone.pipeline.vae.parameters()),
        kept=kept,
        block=block,
        flops=whole.flops,
        event=prod(backbone.latent_shape),
        pixels=backbone.resolution**2,
    )
