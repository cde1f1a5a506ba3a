"""A velocity whose activations are not kept: its backward pass runs it again, with gradient for the tensors that it reads.

torch.utils.checkpoint builds the graph in the forward pass and throws its tensors away one by one; here the forward pass builds
none, which is as fast as sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def recomputed(velocity: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor, through: Sequence[Tensor]) -> Tensor:
    """velocity(x, sigma), differentiable in x and in `through`; deterministic: nothing is drawn again as it was.

    A parameter that is not named in `through` gets no gradient.
    """
    return _Recomputed.apply(velocity, sigma, x, *through)  # type: ignore[return-value]


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, velocity: Any, sigma: Tensor, x: Tensor, *through: Tensor) -> Tensor:
        kind = x.device.type
        ctx.velocity, ctx.autocast = velocity, (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        ctx.save_for_backward(sigma, x, *through)
        return velocity(x, sigma)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:  # type: ignore[override]
        sigma, x, *through = ctx.saved_tensors
        kind, dtype, enabled = ctx.autocast  # the engine may run this in a thread of its own
        with torch.enable_grad(), torch.autocast(kind, dtype=dtype, enabled=enabled):
            again = x.detach().requires_grad_(ctx.needs_input_grad[2])
            made = ctx.velocity(again, sigma)
        inputs = list(zip((again, *through), ctx.needs_input_grad[2:], strict=True))
        found = iter(torch.autograd.grad(made, [each for each, needed in inputs if needed], slope, allow_unused=True))
        return None, None, *(next(found) if needed else None for _, needed in inputs)
