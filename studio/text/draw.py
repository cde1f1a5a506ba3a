"""One token of a vocabulary from one random number."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 256  # tokens that are skipped at once


def draw(logits: Tensor, uniform: Tensor, *, greedy: bool = False, weight: Tensor | None = None) -> Tensor:
    """Token drawn from softmax(logits) [N, V] by one number u [N] in [0, 1) each, or the likeliest -> [N] int64.

    weight [N, V] is proportional to the softmax, where it is known.
    """
    if greedy:
        return logits.argmax(-1)
    return inverse_cdf(logits.softmax(-1) if weight is None else weight, uniform)


def inverse_cdf(weight: Tensor, uniform: Tensor) -> Tensor:
    """The first index whose cumulated weight exceeds u times the row's total -> [N] int64; never one of weight 0.

    weight [N, V] at least 0 and not all 0, uniform [N] in [0, 1).  First the block of `BLOCK` indices is found, then the index in
    it: cumulating one block, and the blocks' sums, takes a fraction of the time of cumulating a vocabulary.
    """
    size = weight.shape[1]
    whole = size // BLOCK
    sums = weight[:, : whole * BLOCK].unflatten(1, (whole, BLOCK)).sum(-1)
    if whole * BLOCK < size:
        sums = torch.cat([sums, weight[:, whole * BLOCK :].sum(-1, keepdim=True)], 1)
    upto = sums.cumsum(1)
    wanted = uniform[:, None] * upto[:, -1:]
    block = _first_above(sums, upto, wanted)
    column = block * BLOCK + torch.arange(BLOCK, device=weight.device)
    inner = torch.where(column < size, weight.gather(1, column.clamp(max=size - 1)), 0)
    rest = wanted - (upto - sums).gather(1, block)
    return (block * BLOCK + _first_above(inner, inner.cumsum(1), rest))[:, 0]


def _first_above(weight: Tensor, upto: Tensor, wanted: Tensor) -> Tensor:
    """First index of positive weight whose cumulated weight `upto` exceeds `wanted` [N, 1]; the last where none does -> [N, 1]."""
    upto = torch.where(weight > 0, upto, -torch.inf)  # sums round: they may grow where nothing is added, and `wanted` be below 0
    return ((upto > wanted) | (upto == upto.amax(1, keepdim=True))).byte().argmax(1, keepdim=True)
