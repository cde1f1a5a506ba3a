"""Flow-GRPO: PPO's clipped surrogate on the plain ratio of denoising steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from flows.regularizer import FORMS, KL
from studio.core import Clip, GroupRelative, Objective, active


@dataclass(frozen=True)
class FlowGRPO:
    """Flow-GRPO (arXiv:2505.05470).  r = exp(log π_new - log π_old), clip r to 1 ± c; log π is a mean over dimensions."""

    clip: Annotated[float, Field(gt=0)] = 1e-4  # published config
    kl: Annotated[float, Field(ge=0)] = 0.04  # beta of the GenEval and OCR tasks
    kl_form: KL = "flow_grpo"
    scale: Literal["global", "group"] = "global"  # standard deviation over all rewards of the iteration
    advantage_clip: Annotated[float, Field(gt=0)] = 5.0

    def objective(self) -> Objective:
        return Objective(
            GroupRelative(scale=self.scale, clip=self.advantage_clip),
            surrogate=Clip(self.clip, self.clip),
            regularizers=active((self.kl, FORMS[self.kl_form])),
        )
