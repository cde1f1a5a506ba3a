"""Advantage weighted matching: the flow-matching loss of a sample stands in for its log-likelihood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from flows.regularizer import velocity
from studio.core import Clip, GroupRelative, Objective, active
from studio.core.declare import needs
from studio.shapes import expect
from studio.types import Evaluation, Rollout

TINY = 1e-10


@needs("fit", "sigma")
@dataclass(frozen=True)
class MatchingRatio:
    """ℓ = g(fit_old) - g(fit_new),  fit = mean_E(v - u)² at the same point and noise  -> [B, T].

    AWM (arXiv:2509.25050).  g is the identity, or `ghuber`:  g(x) = σ/p·((x + 1e-10)^p - 1e-10^p).
    Where exactly the published code applies ghuber is a *reconstruction*; here it is inside the ratio, for old and new.
    """

    weight: Literal["none", "ghuber"] = "ghuber"
    power: float = 0.25  # p

    def __call__(self, new: Evaluation, rollout: Rollout) -> Tensor:
        sigma = expect(rollout.old.sigma, "B T", name="AWM: sigma")
        after, before = (expect(said.fit, "B T", name="AWM: fit").float() for said in (new, rollout.old))
        return self._bent(before, sigma) - self._bent(after, sigma)

    def _bent(self, fit: Tensor, sigma: Tensor) -> Tensor:
        if self.weight == "none":
            return fit
        return sigma / self.power * ((fit + TINY) ** self.power - TINY**self.power)


@dataclass(frozen=True)
class AWM:
    """AWM (arXiv:2509.25050): PPO on matching errors. Use with policy `match`.

    The paper's KL is to an average of the weights; here it is to the frozen start, and off by default.
    """

    clip: Annotated[float, Field(gt=0)] = 1e-5
    weight: Literal["none", "ghuber"] = "ghuber"
    power: Annotated[float, Field(gt=0, le=1)] = 0.25
    kl: Annotated[float, Field(ge=0)] = 0.0
    scale: Literal["global", "group"] = "global"
    advantage_clip: Annotated[float, Field(gt=0)] = 5.0

    def objective(self) -> Objective:
        return Objective(
            GroupRelative(scale=self.scale, clip=self.advantage_clip),
            ratio=MatchingRatio(self.weight, self.power),
            surrogate=Clip(self.clip, self.clip),
            regularizers=active((self.kl, velocity)),
        )
