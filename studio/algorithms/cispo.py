"""Clip the importance weight, not the update: every token keeps a gradient."""

from __future__ import annotations

from dataclasses import dataclass

from studio.core import GroupRelative, Objective, StopClip, by_decision


@dataclass(frozen=True)
class CISPO:
    """CISPO (MiniMax-M1, arXiv:2506.13585).  Maximizes sg(clip(r, floor, bound))·A·log π, every token equal, no KL."""

    bound: float = 5.0  # largest weight, the bound itself; the paper tunes it without a number, TRL suggests 5
    floor: float = 0.0  # smallest weight; the paper has none, verl uses 1 - 0.2
    eps: float = 1e-4  # added to the group's standard deviation

    def objective(self) -> Objective:
        return Objective(GroupRelative(ddof=1, eps=self.eps), surrogate=StopClip(self.bound, self.floor), weighting=by_decision)
