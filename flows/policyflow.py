"""PolicyFlow's objective: PPO with the Brownian regularizer that keeps a flow policy spread (arXiv:2602.01156)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from studio.core import GAE, Clip, Fading, Objective, ValueLoss, active, by_decision, entropy
from studio.core.declare import needs
from studio.shapes import expect
from studio.types import Evaluation, Rollout


@needs("residual")
def brownian(new: Evaluation, rollout: Rollout, log_ratio: Tensor) -> Tensor:
    """mean over the action's numbers of η², η the velocity's distance from that of heat -> [B, T]."""
    residual = expect(new.residual, "B T *E", name="brownian: new.residual", B=len(rollout.mask))
    return residual.square().flatten(2).mean(2)


@dataclass(frozen=True)
class PolicyFlow:
    """PolicyFlow (arXiv:2602.01156).  Defaults are the released code's; `brownian` is per number, d times less than in the paper.

    The value loss takes the worse of the plain and the clipped change, so that it keeps its gradient; the released one does not.
    """

    clip: Annotated[float, Field(gt=0)] = 0.2  # ε
    gamma: float = 0.99  # discount
    lam: float = 0.95  # λ of GAE
    value: float = 2.0  # strength of ½·(v - R)²: 2 is w_v = 1 on the plain square
    value_clip: float | None = 0.2  # largest useful change of the value
    entropy: Annotated[float, Field(ge=0)] = 0.001  # w_g, of the exploration noise
    brownian: Annotated[float, Field(ge=0)] = 0.25  # w_b; published from 0.0002 to 0.006 for actions in [-1, 1], 0.25 for ±5
    brownian_fade: Annotated[int, Field(ge=1)] | None = None  # iterations over which w_b falls linearly to 0; None = it stays

    def objective(self) -> Objective:
        spreading = brownian if self.brownian_fade is None else Fading(brownian, self.brownian_fade)
        return Objective(
            GAE(self.gamma, self.lam, whiten=True),
            surrogate=Clip(self.clip, self.clip),
            weighting=by_decision,
            regularizers=active((-self.entropy, entropy), (self.brownian, spreading)),
            critic=ValueLoss(self.value, self.value_clip),
        )
