"""The other samples of a group as baseline, and the whole sample as one action."""

from __future__ import annotations

from dataclasses import dataclass

from studio.core import Clip, LeaveOneOut, Objective, total_ratio


@dataclass(frozen=True)
class RLOO:
    """RLOO (arXiv:2402.14740).  A_b = r_b - mean_{j≠b} r_j with the KL inside the reward; ratio of the whole sample."""

    kl: float = 0.05  # β, KL inside the reward; TRL's default
    clip: float = 0.2  # TRL's; the paper takes one update per batch, where the clip never acts

    def objective(self) -> Objective:
        return Objective(LeaveOneOut(self.kl), ratio=total_ratio, surrogate=Clip(self.clip, self.clip))
