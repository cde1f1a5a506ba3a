"""The small head that two published rewards put on an embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def linear_head(width: int) -> nn.Sequential:
    """width-1024-128-64-16-1 with dropout 0.2, 0.2, 0.1 and no activation: [B, width] -> [B, 1].

    Five linear layers without activation are one affine map; the published weights still come in five.  Linear layers
    have the positions 0, 2, 4, 6, 7, as in the published files of LAION's aesthetic predictor and of ImageReward.
    """
    from torch import nn

    return nn.Sequential(
        nn.Linear(width, 1024),
        nn.Dropout(0.2),
        nn.Linear(1024, 128),
        nn.Dropout(0.2),
        nn.Linear(128, 64),
        nn.Dropout(0.1),
        nn.Linear(64, 16),
        nn.Linear(16, 1),
    )
