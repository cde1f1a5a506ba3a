"""ReinFlow's objective: PPO with one ratio per chain of steps and a bonus for the noise of the steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from studio.core import GAE, Clip, Objective, ValueLoss, active, by_decision, entropy


@dataclass(frozen=True)
class ReinFlow:
    """ReinFlow (arXiv:2505.22094).  Use it with policy `reinflow`, whose likelihoods are per step and dimension, as ε wants.

    Without its optional penalty on the distance from a trained flow: there is none to stay close to.
    """

    clip: Annotated[float, Field(gt=0)] = 0.01  # ε
    entropy: Annotated[float, Field(ge=0)] = 0.03  # of the entropy per step and dimension
    gamma: float = 0.99  # discount
    lam: float = 0.95  # λ of GAE
    value: float = 0.5  # strength of ½·(v - R)²

    def objective(self) -> Objective:
        return Objective(
            GAE(self.gamma, self.lam, whiten=True),
            surrogate=Clip(self.clip, self.clip),
            weighting=by_decision,
            regularizers=active((-self.entropy, entropy)),
            critic=ValueLoss(self.value),
        )
