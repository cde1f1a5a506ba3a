"""What a language model says of tokens that were chosen, without ever holding [tokens, vocabulary] in float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from studio.core.tempered import TEMPERATURES

BUDGET = 2**24  # logits that exist at a time; 64 MB in float32


class Said(NamedTuple):
    """Of N tokens, float32."""

    logp: Tensor  # [N] natural log, at the sampling temperature
    entropy: Tensor  # [N] nats, of the distribution the token was drawn from
    tempered: Tensor | None  # [N, 3] logp at TEMPERATURES times the sampling temperature


def token_logp(
    hidden: Tensor,
    weight: Tensor,
    token: Tensor,
    bias: Tensor | None = None,
    *,
    temperature: float = 1.0,
    tempered: bool = False,
    budget: int = BUDGET,
) -> Said:
    """log softmax(h·Wᵀ + b)/temperature of each token, and the entropy, differentiable in h, W and b.

    hidden [N, D], weight [V, D], token [N] int64, bias [V].  Logits are made `budget` at a time, and once more in the backward
    pass: memory is that of one piece, whatever N. One pass gives all three answers; the backward pass skips those without gradient.
    """
    return Said(*_Head.apply(hidden, weight, bias, token, temperature, tempered, max(1, budget // len(weight))))  # type: ignore[misc]


class Softmax:
    """softmax of logits [N, V] float32, which it overwrites: one exponential to draw a token by and for all that is said of it."""

    def __init__(self, logits: Tensor, room: Tensor | None = None) -> None:
        self.top = logits.amax(-1)
        self.logits = logits.sub_(self.top[:, None])
        self.weight = torch.exp(self.logits, out=room)  # [N, V] probabilities times `total`
        self.total = self.weight.sum(-1)

    def say(self, token: Tensor, *, tempered: bool = False) -> Said:
        """Of one token a row [N], without gradients.  Overwrites `weight`."""
        log_total = self.total.log()
        chosen = self.logits.gather(-1, token[:, None])[:, 0]
        entropy = log_total - self.weight.mul_(self.logits).sum(-1) / self.total
        return Said(chosen - log_total, entropy, self._tempered(chosen) if tempered else None)

    def _tempered(self, chosen: Tensor) -> Tensor:
        log_totals = [torch.div(self.logits, t, out=self.weight).exp_().sum(-1).log() for t in TEMPERATURES]
        return torch.stack([chosen / t - log_total for t, log_total in zip(TEMPERATURES, log_totals, strict=True)], -1)


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, token: Tensor, temperature: float, tempered: bool, size: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.temperature, ctx.size = temperature, size
        device = hidden.device.type
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        said, scale = [], []
        for piece, logits, room in _pieces(hidden.to(ctx.dtype), weight.to(ctx.dtype), bias, temperature, size):
            softmax = Softmax(logits, room)
            said.append(softmax.say(token[piece], tempered=tempered))
            scale.append((softmax.top, softmax.total))
        logp, entropy = (torch.cat([getattr(s, name) for s in said]) for name in ("logp", "entropy"))
        top, total = map(torch.cat, zip(*scale, strict=True))
        ctx.save_for_backward(hidden, weight, bias, token, top, total, entropy)
        return logp, entropy, torch.cat([s.tempered for s in said]) if tempered else None  # type: ignore[misc]

    @staticmethod
    def backward(ctx: Any, *grad: Tensor | None) -> Any:
        hidden, weight, bias, token, *scale = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        thin, matrix = hidden.to(ctx.dtype), weight.to(ctx.dtype)
        to_hidden = torch.empty_like(hidden) if wanted[0] else None
        to_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if wanted[1] else None
        to_bias = torch.zeros(bias.shape, dtype=torch.float32, device=bias.device) if bias is not None and wanted[2] else None
        for piece, logits, room in _pieces(thin, matrix, bias, ctx.temperature, ctx.size):
            pull = [None if g is None else g[piece] / ctx.temperature for g in grad]
            slope = _slope(logits, room, token[piece], *(known[piece] for known in scale), *pull)
            if to_bias is not None:
                to_bias += slope.sum(0)
            slope = slope.to(ctx.dtype)
            if to_hidden is not None:
                to_hidden[piece] = slope @ matrix
            if to_weight is not None and ctx.dtype == torch.float32:
                to_weight.addmm_(slope.T, thin[piece])
            elif to_weight is not None:
                to_weight += slope.T @ thin[piece]
        return (
            to_hidden,
            None if to_weight is None else to_weight.to(weight.dtype),
            None if to_bias is None else to_bias.to(bias.dtype),
            None,
            None,
            None,
            None,
        )


def _pieces(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, size: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Logits [n, V] float32 of `size` tokens at a time and as much room; the next piece overwrites both.

    Fresh memory is slower to get than to fill.
    """
    both = torch.empty(2, min(size, len(hidden)), len(weight), dtype=torch.float32, device=hidden.device)
    for at in range(0, len(hidden), size):
        piece = slice(at, min(at + size, len(hidden)))
        logits, room = both[:, : piece.stop - at]
        if hidden.dtype == torch.float32 and bias is None:
            torch.mm(hidden[piece], weight.T, out=logits)
        else:
            logits.copy_(F.linear(hidden[piece], weight, None if bias is None else bias.to(weight.dtype)))
        yield piece, logits if temperature == 1 else logits.div_(temperature), room


def _slope(
    logits: Tensor,
    room: Tensor,
    token: Tensor,
    top: Tensor,
    total: Tensor,
    entropy: Tensor,
    to_logp: Tensor | None,
    to_entropy: Tensor | None,
    to_tempered: Tensor | None,
) -> Tensor:
    """d/d logits [n, V], in their place:  g·(1[token] - p) - g_H·p·(log p + H) + Σ_k g_k·(1[token] - p_k)/T_k."""
    logits -= top[:, None]
    at_token = torch.zeros_like(total) if to_logp is None else to_logp.clone()
    factor = -(at_token / total)[:, None]
    rest = None
    if to_tempered is not None:
        rest = torch.zeros_like(logits)
        for k, t in enumerate(TEMPERATURES):
            g = to_tempered[:, k] / t
            weight = torch.div(logits, t, out=room).exp_()
            rest -= weight.mul_((g / weight.sum(-1))[:, None])
            at_token += g
    if to_entropy is not None:
        g = to_entropy / total
        factor = torch.mul(logits, -g[:, None], out=room).add_(factor - (g * (entropy - total.log()))[:, None])
    slope = logits.exp_().mul_(factor)
    if rest is not None:
        slope += rest
    return slope.scatter_add_(1, token[:, None], at_token[:, None])
