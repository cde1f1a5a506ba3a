"""PPO without a critic: returns whitened over the whole batch."""

from __future__ import annotations

from dataclasses import dataclass

from studio.core import BatchWhitened, Clip, Objective, by_decision


@dataclass(frozen=True)
class ReinforcePP:
    """REINFORCE++ (arXiv:2501.03262).  Return to go with the KL inside the reward, whitened over the batch; clip."""

    clip: float = 0.2  # clip distance on both sides
    kl: float = 0.001  # strength of the k1 KL inside the reward; verl's default
    gamma: float = 1.0  # discount per decision
    baseline: bool = False  # REINFORCE++-baseline: center rewards in their group before whitening

    def objective(self) -> Objective:
        return Objective(
            BatchWhitened(self.gamma, self.kl, self.baseline),
            surrogate=Clip(self.clip, self.clip),
            weighting=by_decision,
        )
