"""MixGRPO: the objective trains a sliding window of noisy steps; the window itself is `sampler.window`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from studio.core import Clip, GroupRelative, Objective, active
from studio.types import Evaluation, Rollout


def squared_log_ratio(new: Evaluation, rollout: Rollout, log_ratio: Tensor) -> Tensor:
    """½(log r)² -> [B, T]: keeps the update near the sampling policy."""
    return log_ratio**2 / 2


@dataclass(frozen=True)
class MixGRPO:
    """MixGRPO (arXiv:2507.21802): group advantages, clip 1e-4, optional ½(log r)² penalty. Use with sampler.window.move=slide."""

    clip: Annotated[float, Field(gt=0)] = 1e-4
    kl: Annotated[float, Field(ge=0)] = 0.0
    advantage_clip: Annotated[float, Field(gt=0)] = 5.0

    def objective(self) -> Objective:
        return Objective(
            GroupRelative(scale="group", ddof=1, eps=1e-8, clip=self.advantage_clip),
            surrogate=Clip(self.clip, self.clip),
            regularizers=active((self.kl, squared_log_ratio)),
        )
