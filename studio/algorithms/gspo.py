"""Sequence-level importance ratios: one ratio per sample instead of one per decision."""

from __future__ import annotations

from dataclasses import dataclass

from studio.core import Clip, GroupRelative, Objective, sample_ratio


@dataclass(frozen=True)
class GSPO:
    """GSPO (arXiv:2507.18071).  s_b = exp(mean_t log_ratio[b, t]); clip s_b; every decision of a row shares it."""

    low: float = 3e-4  # lower clip distance, section 5 of the paper
    high: float = 4e-4  # upper clip distance, ibid.
    eps: float = 1e-4  # added to the group's standard deviation

    def objective(self) -> Objective:
        return Objective(GroupRelative(ddof=1, eps=self.eps), ratio=sample_ratio, surrogate=Clip(self.low, self.high))
