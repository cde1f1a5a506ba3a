"""Flow-DPPO: no clip on the ratio; a decision is held back once the policy has moved far and would move further."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from flows.regularizer import FORMS, KL, event_mean
from studio.core import GroupRelative, Objective, active
from studio.core.declare import needs
from studio.core.surrogate import Clipped
from studio.shapes import expect
from studio.types import Evaluation, Rollout


@needs("mean", "std")
@dataclass(frozen=True)
class DivergenceMask:
    """r·A, without gradient where the step's KL is at least `limit` and the update would raise it.

    KL = mean_E(μ_new - μ_old)² / (2 s²);  held where KL ≥ limit and (ℓ > 0, A > 0 or ℓ < 0, A < 0)  -> [B, T]
    Flow-DPPO (arXiv:2606.11025).
    """

    limit: float = 1e-5

    def seen(self, new: Evaluation, rollout: Rollout) -> _Held:
        now = expect(new.mean, "B T *E", name="DivergenceMask: mean").detach()
        moved = event_mean((now - expect(rollout.old.mean, "B T *E", name="DivergenceMask: old mean")) ** 2)
        return _Held(moved / (2 * expect(rollout.old.std, "B T", name="DivergenceMask: std") ** 2) >= self.limit)

    def __call__(self, log_ratio: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
        raise TypeError("DivergenceMask looks at the steps: call seen(new, rollout) first, as policy_loss does.")


@dataclass(frozen=True)
class _Held:
    far: Tensor  # [B, T] bool

    def __call__(self, log_ratio: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
        above, below = self.clipped(log_ratio, advantage)
        return advantage * torch.where(above | below, log_ratio.detach(), log_ratio).exp()

    def clipped(self, log_ratio: Tensor, advantage: Tensor) -> Clipped:
        return Clipped(self.far & (log_ratio > 0) & (advantage > 0), self.far & (log_ratio < 0) & (advantage < 0))


@dataclass(frozen=True)
class FlowDPPO:
    """Flow-DPPO (arXiv:2606.11025): a divergence limit per step instead of a clip."""

    limit: Annotated[float, Field(gt=0)] = 1e-5  # of the step's KL, a mean over dimensions; 1e-6 in one port
    kl: Annotated[float, Field(ge=0)] = 0.0
    kl_form: KL = "velocity"
    scale: Literal["global", "group"] = "global"
    advantage_clip: Annotated[float, Field(gt=0)] = 5.0

    def objective(self) -> Objective:
        return Objective(
            GroupRelative(scale=self.scale, clip=self.advantage_clip),
            surrogate=DivergenceMask(self.limit),
            regularizers=active((self.kl, FORMS[self.kl_form])),
        )
