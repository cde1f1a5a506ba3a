"""Means, deviations and whitening over what takes part: masked decisions, and rows of one group. All in float64."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

TINY = torch.finfo(torch.float64).tiny  # keeps 0 / 0 at 0 when eps is 0


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """mean(x | mask), 0 when nothing takes part.  x, mask [...] -> scalar float64."""
    count = mask.sum().clamp(min=1)
    return torch.where(mask, x.double(), 0.0).sum() / count


def masked_var(x: Tensor, mask: Tensor, ddof: int = 0) -> Tensor:
    """Σ (x - mean)² / (n - ddof) over mask, 0 when n ≤ ddof.  x, mask [...] -> scalar float64."""
    off = torch.where(mask, x.double() - masked_mean(x, mask), 0.0)
    return off.square().sum() / (mask.sum() - ddof).clamp(min=1)


def masked_std(x: Tensor, mask: Tensor, ddof: int = 0) -> Tensor:
    """√ masked_var."""
    return masked_var(x, mask, ddof).sqrt()


def whiten(x: Tensor, mask: Tensor, ddof: int = 0, eps: float = 1e-8) -> Tensor:
    """(x - mean) / √(var + eps) over mask; 0 elsewhere.  x, mask [...] -> [...] float64."""
    off = torch.where(mask, x.double() - masked_mean(x, mask), 0.0)
    return off / (masked_var(x, mask, ddof) + eps).clamp(min=TINY).sqrt()


class Groups(NamedTuple):
    """Statistics of each row's group over the rows that are present. Ids need not be contiguous or equally frequent."""

    mean: Tensor  # [B] float64
    std: Tensor  # [B] float64
    size: Tensor  # [B] int64, present rows of the group
    low: Tensor  # [B] float64, smallest present value; +inf in a group without rows
    high: Tensor  # [B] float64, largest present value; -inf in a group without rows


def group_stats(x: Tensor, group: Tensor, present: Tensor, ddof: int = 0) -> Groups:
    """Per-group mean, standard deviation, count and range, given to every row of the group.  x, group, present [B].

    A group with at most `ddof` present rows has std 0.
    """
    ids, index = torch.unique(group.to(x.device), return_inverse=True)
    value = torch.where(present, x.double(), 0.0)
    zero = value.new_zeros(len(ids))
    count = zero.long().index_add(0, index, present.long())
    mean = zero.index_add(0, index, value) / count.clamp(min=1)
    off = torch.where(present, value - mean[index], 0.0)
    std = (zero.index_add(0, index, off.square()) / (count - ddof).clamp(min=1)).sqrt()
    low = torch.full_like(zero, torch.inf).scatter_reduce(0, index, torch.where(present, value, torch.inf), "amin")
    high = torch.full_like(zero, -torch.inf).scatter_reduce(0, index, torch.where(present, value, -torch.inf), "amax")
    return Groups(mean[index], std[index], count[index], low[index], high[index])
