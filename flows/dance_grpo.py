"""DanceGRPO: group-standardized advantages on a constant-noise SDE; the sampler block carries kernel and step subset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from studio.core import Clip, GroupRelative, Objective


@dataclass(frozen=True)
class DanceGRPO:
    """DanceGRPO (arXiv:2505.07818): group mean and sample std, clip 1e-4, no KL. Use with sampler.kernel=dance_sde, level 0.3."""

    clip: Annotated[float, Field(gt=0)] = 1e-4
    advantage_clip: Annotated[float, Field(gt=0)] = 5.0

    def objective(self) -> Objective:
        return Objective(
            GroupRelative(scale="group", ddof=1, eps=1e-8, clip=self.advantage_clip),
            surrogate=Clip(self.clip, self.clip),
        )
