"""What a language model says of tokens that were chosen, without ever holding [tokens, vocabulary] in float32."""

from __future__ import annotations

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
    pass: memory is that of one piece, whatever N. One pass gives all three answers.
    """
    logp, entropy, other = _Head.apply(hidden, weight, bias, token, temperature, tempered, max(1, budget // len(weight)))  # type: ignore[misc]
    return Said(logp, entropy, other if tempered else None)


def said_of(logits: Tensor, token: Tensor, *, tempered: bool = False) -> Said:
    """The same from logits [N, V] at hand, already divided by the temperature."""
    logits = logits.float()
    lse = logits.logsumexp(-1)
    chosen = logits.gather(-1, token[:, None])[:, 0]
    entropy = lse - (torch.exp(logits - lse[:, None]) * logits).sum(-1)
    return Said(chosen - lse, entropy, _tempered(logits, chosen) if tempered else None)


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, token: Tensor, temperature: float, tempered: bool, size: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        pieces = [slice(at, at + size) for at in range(0, len(hidden), size)]
        said = [said_of(_logits(hidden[p], weight, bias, temperature), token[p], tempered=tempered) for p in pieces]
        logp, entropy = (torch.cat([getattr(s, name) for s in said]) for name in ("logp", "entropy"))
        other = torch.cat([s.tempered for s in said]) if tempered else logp.new_zeros(0)  # type: ignore[misc]
        ctx.save_for_backward(hidden, weight, bias, token, entropy)
        ctx.temperature, ctx.pieces, ctx.tempered = temperature, pieces, tempered
        ctx.dtype = torch.get_autocast_dtype(hidden.device.type) if torch.is_autocast_enabled(hidden.device.type) else None
        return logp, entropy, other

    @staticmethod
    def backward(ctx: Any, to_logp: Tensor, to_entropy: Tensor, to_tempered: Tensor) -> Any:  # type: ignore[override]
        hidden, weight, bias, token, entropy = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        cast = ctx.dtype or hidden.dtype
        thin, matrix = hidden.to(cast), weight.to(cast)
        to_hidden = torch.empty_like(hidden) if wanted[0] else None
        to_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if wanted[1] else None
        to_bias = torch.zeros(bias.shape, dtype=torch.float32, device=bias.device) if bias is not None and wanted[2] else None
        for p in ctx.pieces:
            logits = _logits(thin[p], matrix, bias, ctx.temperature)
            slope = _slope(logits, token[p], entropy[p], to_logp[p], to_entropy[p], to_tempered[p] if ctx.tempered else None)
            slope = slope / ctx.temperature
            if to_hidden is not None:
                to_hidden[p] = (slope.to(cast) @ matrix).to(hidden.dtype)
            if to_weight is not None:
                to_weight += slope.to(cast).T @ thin[p]
            if to_bias is not None:
                to_bias += slope.sum(0)
        return (
            to_hidden,
            None if to_weight is None else to_weight.to(weight.dtype),
            None if to_bias is None else to_bias.to(bias.dtype),
            None,
            None,
            None,
            None,
        )


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    logits = F.linear(hidden, weight, None if bias is None else bias.to(weight.dtype)).float()
    return logits if temperature == 1 else logits / temperature


def _tempered(logits: Tensor, chosen: Tensor) -> Tensor:
    return torch.stack([chosen / t - (logits / t).logsumexp(-1) for t in TEMPERATURES], -1)


def _slope(
    logits: Tensor, token: Tensor, entropy: Tensor, to_logp: Tensor, to_entropy: Tensor, to_tempered: Tensor | None
) -> Tensor:
    """d/d logits [n, V]:  g·(1[token] - p) - g_H·p·(log p + H) + Σ_k g_k·(1[token] - p_k)/T_k."""
    logp = logits.log_softmax(-1)
    p = logp.exp()
    slope = -p * (to_logp[:, None] + to_entropy[:, None] * (logp + entropy[:, None]))
    at_token = to_logp.clone()
    for k, t in enumerate(TEMPERATURES if to_tempered is not None else ()):
        g = to_tempered[:, k] / t  # type: ignore[index]
        slope -= g[:, None] * (logits / t).softmax(-1)
        at_token += g
    return slope.scatter_add_(1, token[:, None], at_token[:, None])
