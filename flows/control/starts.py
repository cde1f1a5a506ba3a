"""Random numbers of numbered copies: a copy's are the same however the copies are split over processes."""

from __future__ import annotations

import torch
from torch import Tensor

from studio.seeds import row_seed


def uniform(seed: int, time: int, first: int, count: int, width: int) -> Tensor:
    """Numbers in [0, 1) for the episodes that copies `first` to `first + count` begin at step `time`.  [count, width]

    Drawn for all copies up to the last one, so that a copy's numbers depend on the seed, the time and its own number only.
    """
    own = torch.Generator().manual_seed(row_seed(seed, "start", time))
    return torch.rand(first + count, width, generator=own)[first:]


def normal(seed: int, time: int, first: int, count: int, width: int) -> Tensor:
    """The same from N(0, 1), as quantiles of uniform numbers: what torch.randn gives a row depends on how many there are."""
    half_a_grid_step = 2.0**-25  # float32 numbers in [0, 1) are multiples of 2^-24; 0 has no quantile
    return torch.special.ndtri(uniform(seed, time, first, count, width).double() + half_a_grid_step).float()
