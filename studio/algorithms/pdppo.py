"""Two critics, of the state and of what a decision made of it before chance moved on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from studio.core import GAE, Clip, Objective, active, by_decision, entropy
from studio.core.advantage import decision_reward, generalized_advantage
from studio.core.declare import needs
from studio.core.masked import whiten
from studio.shapes import expect
from studio.types import Credit, Evaluation, Rollout

Normalize = Literal["return", "advantage", "none"]


@needs("value", "post")
@dataclass(frozen=True)
class PostDecision:
    """The return against the smaller of both critics, or blended with what the second one says the decision was worth.

    A = G - min(V, Vx) = max(G - V, G - Vx);  with `blend` k:  A = (1-k)·(G - V) + k·(Vx - V)  -> [B, T]
    PDPPO (arXiv:2504.05150).  G is the return to go; `return` whitens it over the batch, the critics then learn it so, and
    nothing is added at the end of a row.  With an exact Vx, G - Vx carries no signal about the decision and the maximum only
    lifts negative advantages; Vx - V is the signal, without the noise of what came after (our analysis, not the paper's).
    Vx contains what the decision paid: for a critic of the state it led to, -cost + Vx(s).
    """

    gamma: float = 0.99
    blend: float | None = None
    normalize: Normalize = "return"

    def __call__(self, rollout: Rollout) -> Tensor:
        target = self.target(rollout).double()
        value, post = (torch.where(rollout.mask, x.double(), 0.0) for x in _critics(rollout.old, rollout))
        if self.blend is None:
            advantage = target - torch.minimum(value, post)
        else:
            advantage = (1 - self.blend) * (target - value) + self.blend * (post - value)
        advantage = torch.where(rollout.mask, advantage, 0.0)
        return (whiten(advantage, rollout.mask) if self.normalize == "advantage" else advantage).float()

    def target(self, rollout: Rollout) -> Tensor:
        """G, what both critics should have said, [B, T]."""
        if self.normalize != "return":
            return GAE(self.gamma, 1.0).target(rollout)
        reward = decision_reward(rollout, "PDPPO")
        total = generalized_advantage(reward, torch.zeros_like(reward), rollout.mask, self.gamma, 1.0, ends=rollout.ends)
        return whiten(total, rollout.mask).float()


@needs("value", "post")
@dataclass(frozen=True)
class TwoValueLoss:
    """½·(min(v, vx) - G)², or `each`: ½·(v - G)² + ½·(vx - G)²  -> [B, T].  The first trains the smaller critic only."""

    each: bool = False
    strength: float = 1.0

    def __call__(self, new: Evaluation, rollout: Rollout, credit: Credit) -> Tensor:
        rows, steps = rollout.mask.shape
        target = expect(credit.target, "B T", name="PDPPO: credit.target", hint="Use PostDecision.", B=rows, T=steps)
        value, post = _critics(new, rollout)
        if self.each:
            return self.strength * ((value - target).square() + (post - target).square()) / 2
        return self.strength * (torch.minimum(value, post) - target).square() / 2


def _critics(said: Evaluation, rollout: Rollout) -> tuple[Tensor, Tensor]:
    rows, steps = rollout.mask.shape
    return (
        expect(said.value, "B T", name="PDPPO: value", hint="The policy must provide it.", B=rows, T=steps).float(),
        expect(said.post, "B T", name="PDPPO: post", hint="The policy must provide it.", B=rows, T=steps).float(),
    )


@dataclass(frozen=True)
class PDPPO:
    """Post-decision PPO (arXiv:2504.05150).  Defaults are the first of two forms in its code; which made its tables is not said.

    The other form splits rewards into a deterministic and a random part, which rollouts do not carry. Not found to beat PPO in
    a small rebuild; blend 0.5 learned faster at first.
    """

    clip: Annotated[float, Field(gt=0)] = 0.2
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.99  # 0.9 to 0.99 in the code
    blend: Annotated[float, Field(ge=0, le=1)] | None = None  # k, weight of Vx - V; None = the published maximum
    normalize: Normalize = "return"  # whiten returns over the batch; the code's first form; advantage: as PPO does
    each: bool = False  # train both critics, always so with blend; the code trains the smaller of the two
    value: Annotated[float, Field(ge=0)] = 1.0  # strength of ½·(v - G)²
    entropy: Annotated[float, Field(ge=0)] = 0.012  # strength of the bonus

    def objective(self) -> Objective:
        return Objective(
            PostDecision(self.gamma, self.blend, self.normalize),
            surrogate=Clip(self.clip, self.clip),
            weighting=by_decision,
            regularizers=active((-self.entropy, entropy)),
            critic=TwoValueLoss(self.each or self.blend is not None, self.value),
        )
