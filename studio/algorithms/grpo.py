"""Group-relative advantages instead of a critic."""

from __future__ import annotations

from dataclasses import dataclass

from studio.core import Clip, GroupRelative, Objective, active, kl_low_variance


@dataclass(frozen=True)
class GRPO:
    """GRPO (arXiv:2402.03300).  A_b = (r_b - mean_g) / (std_g + eps); clipped ratio per decision; k3 KL in the loss."""

    clip: float = 0.2  # ε, clip distance on both sides; not stated in the paper, 0.2 in TRL and verl
    kl: float = 0.04  # β, DeepSeekMath; DeepSeek-R1 used 0.001, TRL defaults to 0
    eps: float = 1e-4  # added to the group's standard deviation, as in TRL; verl 1e-6

    def objective(self) -> Objective:
        return Objective(
            GroupRelative(ddof=1, eps=self.eps),
            surrogate=Clip(self.clip, self.clip),
            regularizers=active((self.kl, kl_low_variance)),
        )
