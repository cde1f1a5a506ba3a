"""Two of the many tricks: group means with the whole batch's deviation, and every token equal."""

from __future__ import annotations

from dataclasses import dataclass

from studio.core import Clip, GroupRelative, Objective, by_decision


@dataclass(frozen=True)
class LitePPO:
    """Lite PPO, "Tricks or Traps" (arXiv:2508.08221).  A_b = (r_b - mean_g) / (std_batch + eps); plain clip, no KL.

    std_batch is of all raw rewards of the batch, so a group whose rewards nearly agree is not blown up.
    """

    clip: float = 0.2  # clip distance on both sides, PPO's
    eps: float = 1e-6  # added to the batch's standard deviation, as in ROLL; TRL 1e-4

    def objective(self) -> Objective:
        return Objective(
            GroupRelative(scale="global", ddof=1, eps=self.eps),
            surrogate=Clip(self.clip, self.clip),
            weighting=by_decision,
        )
