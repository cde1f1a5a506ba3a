"""GRPO-Guard: a ratio without its systematic shift, and a gate that gives every denoising step the same gradient scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from flows.regularizer import FORMS, KL, event_mean
from studio.core import Clip, GroupRelative, Objective, active
from studio.core.declare import needs
from studio.shapes import expect
from studio.types import Evaluation, Rollout


@needs("mean", "noise")
def regulated_ratio(new: Evaluation, rollout: Rollout) -> Tensor:
    """Log ratio of a Gaussian step with its systematic negative shift removed, times the step's std.

    ℓ = mean_E[(μ_new - μ_old)·ε],  ε the noise that made the step  -> [B, T]
    GRPO-Guard (arXiv:2510.22319) in direct form: equal to s·(log r + mean_E(μ_new - μ_old)²/2s²), without its cancellation, and
    valid for every family whose step is μ + s·ε. Assumes that new and old share the std.
    """
    now = expect(new.mean, "B T *E", name="regulated_ratio: mean")
    before = expect(rollout.old.mean, "B T *E", name="regulated_ratio: old mean")
    return event_mean((now - before) * expect(rollout.old.noise, "B T *E", name="regulated_ratio: noise"))


@needs("dt")
def inverse_dt(rollout: Rollout, advantage: Tensor) -> Tensor:
    """1/h per step: the paper's reweighting; leaves the sensitivity |dμ/dv|/h."""
    return 1 / expect(rollout.old.dt, "B T", name="inverse_dt: dt")


@needs("jacobian")
def inverse_jacobian(rollout: Rollout, advantage: Tensor) -> Tensor:
    """1/|dμ/dv| per step: the gradient with respect to the velocity is the same for equal noise, for every family.

    Derived here, not in the paper; up to a constant the same as 1/h for interior flow_sde steps.
    """
    return 1 / expect(rollout.old.jacobian, "B T", name="inverse_jacobian: jacobian")


GATES = {"inv_dt": inverse_dt, "inv_jacobian": inverse_jacobian, "none": None}


@dataclass(frozen=True)
class GRPOGuard:
    """GRPO-Guard (arXiv:2510.22319): RatioNorm and per-step reweighting on top of Flow-GRPO."""

    clip: Annotated[float, Field(gt=0)] = 2e-6  # third-party configs at 512 px: 2e-6 to 4e-6; grows as 1/√D for smaller latents
    reweight: Literal["inv_dt", "inv_jacobian", "none"] = "inv_dt"  # the paper's; prefer inv_jacobian off flow_sde
    kl: Annotated[float, Field(ge=0)] = 0.0
    kl_form: KL = "velocity"
    scale: Literal["global", "group"] = "global"
    advantage_clip: Annotated[float, Field(gt=0)] = 5.0

    def objective(self) -> Objective:
        return Objective(
            GroupRelative(scale=self.scale, clip=self.advantage_clip),
            gate=GATES[self.reweight],
            ratio=regulated_ratio,
            surrogate=Clip(self.clip, self.clip),
            regularizers=active((self.kl, FORMS[self.kl_form])),
        )
