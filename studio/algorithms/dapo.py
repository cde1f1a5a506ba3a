"""More room upward than downward, every token equal, and only groups that disagree."""

from __future__ import annotations

from dataclasses import dataclass

from studio.core import Clip, GroupRelative, Objective, by_decision, informative_groups


@dataclass(frozen=True)
class DAPO:
    """DAPO (arXiv:2503.14476).  Clip-higher, weights by decision, no KL, groups of equal rewards left out.

    The paper samples again until enough groups differ; here such groups get weight 0. Its soft penalty for overlong
    answers is a reward, and its mask of truncated answers is the policy's.
    """

    low: float = 0.2  # ε_low
    high: float = 0.28  # ε_high
    eps: float = 1e-4  # added to the group's standard deviation

    def objective(self) -> Objective:
        return Objective(
            GroupRelative(ddof=1, eps=self.eps),
            gate=informative_groups,
            surrogate=Clip(self.low, self.high),
            weighting=by_decision,
        )
