"""The ratio and the surrogate of one objective with the advantages of a critic: for environments, which have no groups."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated

from studio.algorithms.ppo import PPO
from studio.annotation import Component, Kind
from studio.core import GAE, Objective, ValueLoss, by_decision


@dataclass(frozen=True)
class ActorCritic:
    """Another objective's ratio, surrogate and regularizers with GAE (arXiv:1506.02438) and a critic.  `of` names it.

    Its own advantage and gate go, as they compare the samples of a prompt; every decision weighs alike.
    """

    of: Annotated[Component, Kind("algorithm")] = field(default_factory=lambda: Component("ppo", PPO()))
    gamma: float = 0.99  # discount per decision
    lam: float = 0.95  # λ of GAE
    whiten: bool = True  # advantages to mean 0 and deviation 1 over the batch
    value: float = 1.0  # strength of ½·(v - R)²
    value_clip: float | None = None  # largest useful change of the value

    def objective(self) -> Objective:
        return replace(
            self.of.options.objective(),
            advantage=GAE(self.gamma, self.lam, self.whiten),
            gate=None,
            weighting=by_decision,
            critic=ValueLoss(self.value, self.value_clip),
        )
