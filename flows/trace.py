"""What one forward of a network costs, traced on the meta device: bytes kept for the backward pass, and operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

# what gradient checkpointing recomputes as a whole
BLOCKS = {"JointTransformerBlock", "FluxTransformerBlock", "FluxSingleTransformerBlock", "BasicTransformerBlock", "ResnetBlock2D"}


@dataclass(frozen=True)
class Trace:
    """The cost of one forward."""

    kept: int  # bytes that autograd keeps, beyond the weights
    largest: int  # bytes of the block that keeps most
    flops: float  # 2 per multiplication and addition; a backward pass through frozen weights costs as much again


def trace(network: nn.Module, forward: Callable[[], Any]) -> Trace:
    """Run `forward` once and count; attention as a fused kernel does it, which keeps q, k, v and the answer."""
    weights = {p.untyped_storage()._cdata for p in network.parameters()}
    seen: dict[int, Any] = {}  # the storages stay alive, or an address could come twice
    begun: dict[nn.Module, int] = {}
    total = largest = 0

    def keep(x: Tensor) -> Tensor:
        nonlocal total
        storage = x.untyped_storage()
        if storage._cdata not in weights and storage._cdata not in seen:
            seen[storage._cdata] = storage
            total += storage.nbytes()
        return x

    def enter(module: nn.Module, _: Any) -> None:
        begun[module] = total

    def leave(module: nn.Module, *_: Any) -> None:
        nonlocal largest
        largest = max(largest, total - begun[module])

    blocks = [module for module in network.modules() if type(module).__name__ in BLOCKS]
    hooks = [hook for b in blocks for hook in (b.register_forward_pre_hook(enter), b.register_forward_hook(leave))]
    try:
        with (
            FlopCounterMode(display=False) as counter,
            torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
            _fused_attention() as attention,
        ):
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    return Trace(total, largest, float(counter.get_total_flops() + sum(attention)))


class _Fused(torch.autograd.Function):
    """Shapes of fused attention: keeps its three inputs and its answer, not the L x L matrix of the meta device's fallback."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        answer = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, answer)
        return answer

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError("trace: only the forward is traced.")


@contextmanager
def _fused_attention() -> Iterator[list[int]]:
    """torch's attention replaced by its shapes; yields the operations of each call, 4·L_q·L_k·D a head."""
    original, operations = nn.functional.scaled_dot_product_attention, []

    def attend(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        operations.append(4 * query.numel() * key.shape[-2])
        return _Fused.apply(query, key, value)  # type: ignore[return-value]

    nn.functional.scaled_dot_product_attention = attend
    try:
        yield operations
    finally:
        nn.functional.scaled_dot_product_attention = original
