"""Which attention kernel a network uses: asked for or chosen, tried by one real call, said once."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from studio.errors import MissingError

Attention = Literal["auto", "native", "flash", "xformers"]
CLOSE = 0.1  # root mean square difference from native, relative: half precision stays far below, a broken kernel does not


def set_attention(network: Any, wanted: Attention, call: Callable[[], Tensor]) -> str:
    """Switch the network to a kernel that answers `call` as the native one does -> the kernel's name.

    auto: flash-attention where the network can use it and it works, else native, which is torch's own choice of kernel.
    A kernel that was asked for by name and does not work is a MissingError.  The recipe alone decides: neither the variable
    DIFFUSERS_ATTN_BACKEND nor the kernel of another network in this process does.
    """
    if _dispatches(network):
        _switch(network, "native")
    if wanted == "native" or (wanted == "auto" and not (_on_gpu(network) and _dispatches(network))):
        return "native"
    chosen = "flash" if wanted == "auto" else wanted
    problem = try_kernel(network, chosen, call)
    if problem is None:
        _say(f"attention: {chosen}")
        return chosen
    if wanted == "auto":
        _say(f"attention: native ({chosen} did not work: {problem})")
        return "native"
    raise MissingError(
        f"recipe.model.attention: expected {chosen} to answer one forward of {type(network).__name__}, got: {problem}. "
        f"Install a build of {chosen} for this torch and GPU, or set model.attention=native."
    )


def try_kernel(network: Any, kernel: str, call: Callable[[], Tensor]) -> str | None:
    """Switch and call once -> None, or what went wrong, with the network switched back."""
    with torch.no_grad():
        expected = call().float()
        try:
            _switch(network, kernel)
            difference = (call().float() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
            problem = None if difference <= CLOSE else f"answers differ from native by {difference:.2g}"
        except Exception as error:  # whatever a kernel raises for a missing package, wrong GPU, dtype or head size
            problem = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    if problem is not None:
        _switch(network, "native")
    return problem


def blank_condition(network: nn.Module, rows: int, tokens: int) -> dict[str, Tensor]:
    """Zero prompt embeddings of the widths in the network's config: embeds [rows, tokens, D], pooled [rows, D']."""
    config: Any = network.config
    pooled = config.get("pooled_projection_dim")
    if pooled is None:  # SDXL adds six time numbers to the pooled embedding
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    like = next(network.parameters())
    width = config.get("joint_attention_dim") or config.cross_attention_dim
    return {"embeds": like.new_zeros(rows, tokens, width), "pooled": like.new_zeros(rows, pooled)}


def _on_gpu(network: nn.Module) -> bool:
    return next(network.parameters()).device.type == "cuda"


def _dispatches(network: nn.Module) -> bool:
    """Whether diffusers' attention dispatcher reaches this network; SD3 and the U-Nets call torch's kernel themselves."""
    return "Flux" in type(network).__name__


def _switch(network: Any, kernel: str) -> None:
    if _dispatches(network):
        log = logging.getLogger("diffusers.models.modeling_utils")
        log.disabled = True  # it warns at every call that this is experimental
        try:
            network.set_attention_backend(kernel)
        finally:
            log.disabled = False
    elif kernel == "xformers":
        network.enable_xformers_memory_efficient_attention()
    elif kernel == "flash":
        raise RuntimeError("this network has no such switch, and native already uses torch's flash kernel where it can")
    else:
        network.disable_xformers_memory_efficient_attention()


@cache
def _say(text: str) -> None:
    """Once per process, and in the main one only."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)
