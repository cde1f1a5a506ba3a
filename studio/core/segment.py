"""Parts of a row, as `rollout.segment` numbers them from 0: reasoning steps, turns, budgets."""

from __future__ import annotations

import torch
from torch import Tensor

from studio.shapes import expect
from studio.types import Rollout


def segment_of(rollout: Rollout) -> Tensor:
    """The part each decision belongs to; one part per row where the rollout names none.  -> [B, T] int64, 0 where dead."""
    rows, steps = rollout.mask.shape
    if rollout.segment is None:
        return torch.zeros(rows, steps, dtype=torch.int64, device=rollout.mask.device)
    return expect(rollout.segment, "B T", name="segment", B=rows, T=steps).masked_fill(~rollout.mask, 0)


def segment_sum(x: Tensor, segment: Tensor, mask: Tensor, count: int | None = None) -> Tensor:
    """Sum over the live decisions of each part.  x, segment, mask [B, T] -> [B, S], S = `count` or parts in the longest row."""
    count = count or (int(segment.max()) + 1 if segment.numel() else 1)
    return x.new_zeros(len(x), count).scatter_add_(1, segment, torch.where(mask, x, 0))


def has_segment(segment: Tensor, mask: Tensor, count: int | None = None) -> Tensor:
    """Whether a row has live decisions in a part.  [B, T] -> [B, S] bool."""
    return segment_sum(torch.ones_like(segment), segment, mask, count) > 0


def over_segments(x: Tensor, rollout: Rollout, segment: Tensor) -> Tensor:
    """A number per part, given to each of its decisions.  x [B, S] -> [B, T] float32, 0 where dead."""
    return torch.where(rollout.mask, x.to(rollout.mask.device).gather(1, segment), 0.0).float()
