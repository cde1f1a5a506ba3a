"""The clipped objective with a critic: the common ground of all others."""

from __future__ import annotations

from dataclasses import dataclass

from studio.core import GAE, Clip, Objective, ValueLoss, active, by_decision, entropy


@dataclass(frozen=True)
class PPO:
    """PPO (arXiv:1707.06347).  GAE advantages, whitened; clipped ratio; squared value error; optional entropy bonus.

    For text, gamma=1 and kl=0.05 with value_clip=0.2 are usual (TRL).
    """

    clip: float = 0.2  # ε, section 6.1 of the paper
    cap: float | None = None  # dual clip: largest ratio that counts where A < 0; verl uses 3
    gamma: float = 0.99  # discount per decision, table 3 of the paper
    lam: float = 0.95  # λ of GAE, ibid.
    whiten: bool = True  # advantages to mean 0 and deviation 1 over the batch; common practice, not in the paper
    value: float = 1.0  # strength of ½·(v - R)²
    value_clip: float | None = None  # largest useful change of the value; TRL and verl for text: 0.2
    entropy: float = 0.0  # strength of the bonus; the paper uses 0.01 for Atari, none for control
    kl: float = 0.0  # strength of the k1 KL inside the reward

    def objective(self) -> Objective:
        return Objective(
            GAE(self.gamma, self.lam, self.whiten, self.kl),
            surrogate=Clip(self.clip, self.clip, self.cap),
            weighting=by_decision,
            regularizers=active((-self.entropy, entropy)),
            critic=ValueLoss(self.value, self.value_clip),
        )
