"""Distance of the trained denoiser from the frozen reference, in the three forms that are in use."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from studio.core.declare import needs
from studio.shapes import expect
from studio.types import Evaluation, Rollout

KL = Literal["exact", "flow_grpo", "velocity"]


@needs("mean", "std", "ref")
def exact(new: Evaluation, rollout: Rollout, log_ratio: Tensor) -> Tensor:
    """KL of two Gaussian steps with equal std:  mean_E(μ - μ_ref)² / (2 s²)  -> [B, T].  Flow-GRPO (arXiv:2505.05470)."""
    now, std = expect(new.mean, "B T *E", name="kl: mean"), expect(new.std, "B T", name="kl: std")
    return event_mean((now - _of_ref(rollout, "mean")) ** 2) / (2 * std**2)


@needs("mean", "std", "dt", "ref")
def flow_grpo(new: Evaluation, rollout: Rollout, log_ratio: Tensor) -> Tensor:
    """The published code's form, divided by 2g² instead of 2g²h: the exact KL times the step length h  -> [B, T]."""
    return exact(new, rollout, log_ratio) * expect(rollout.old.dt, "B T", name="kl: dt")


@needs("velocity", "ref")
def velocity(new: Evaluation, rollout: Rollout, log_ratio: Tensor) -> Tensor:
    """mean_E (v - v_ref)²  -> [B, T]; equal weight at every noise level."""
    return event_mean((expect(new.velocity, "B T *E", name="kl: velocity") - _of_ref(rollout, "velocity")) ** 2)


FORMS = {"exact": exact, "flow_grpo": flow_grpo, "velocity": velocity}


def event_mean(x: Tensor) -> Tensor:
    """Mean over the event dimensions, [B, T, *E] -> [B, T]."""
    return x.flatten(2).mean(2)


def _of_ref(rollout: Rollout, field: str) -> Tensor:
    return expect(getattr(rollout.ref, field, None), "B T *E", name=f"kl: reference {field}")
