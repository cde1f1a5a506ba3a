"""How decisions add up: weights [B, T] over the global batch, computed once; a loss is a weighted sum, never a mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from studio.types import Rollout


def by_sample(rollout: Rollout) -> Tensor:
    """Every live row counts the same, and its decisions share it.  w = 1 / (rows·length_b) -> [B, T], sum 1."""
    length = rollout.mask.sum(dim=1, keepdim=True)
    rows = (length > 0).sum().clamp(min=1)
    return rollout.mask / (rows * length.clamp(min=1)).float()


def by_decision(rollout: Rollout) -> Tensor:
    """Every live decision counts the same, so long rows count more.  w = 1 / Σ mask -> [B, T], sum 1."""
    return rollout.mask / rollout.mask.sum().clamp(min=1).float()


@dataclass(frozen=True)
class ByLength:
    """Every live decision counts the same, whatever the lengths in this batch.  w = 1 / (rows·length) -> [B, T].

    Dr. GRPO (arXiv:2503.20783).  By design the sum is below 1 when rows are shorter than `length`.
    """

    length: int | None = None  # the longest a row can get; None = the longest live row of the batch

    def __call__(self, rollout: Rollout) -> Tensor:
        lengths = rollout.mask.sum(dim=1)
        length = lengths.max().clamp(min=1) if self.length is None else torch.tensor(self.length, device=lengths.device)
        return rollout.mask / ((lengths > 0).sum().clamp(min=1) * length).float()
