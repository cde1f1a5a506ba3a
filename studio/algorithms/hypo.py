"""Offline preferences with an online KL: pairs say what is better, own samples how far the policy has strayed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from studio.core import Objective, active, by_sample, total_ratio
from studio.core.advantage import drift_from_ref, spread
from studio.core.declare import needs
from studio.core.masked import group_stats
from studio.core.preference import PairLoss, by_pair
from studio.types import Rollout


@needs("logp", "ref", "given")
@dataclass(frozen=True)
class OnlineKL:
    """Minus a sample's log ratio to the reference, against the other samples of the prompt; 0 at given rows.

    κ_i = Σ_t(log π_old - log π_ref),  A_i = -strength·(κ_i - mean_{j≠i} κ_j)  -> [B, T].  One sample of a prompt: 0.
    """

    strength: float = 1.0

    def __call__(self, rollout: Rollout) -> Tensor:
        kappa = drift_from_ref(rollout).sum(dim=1)
        sampled = _sampled(rollout) & rollout.mask.any(dim=1)
        stats = group_stats(kappa, rollout.group, sampled)
        others = stats.size / (stats.size - 1).clamp(min=1) * (kappa - stats.mean)
        return spread(torch.where(sampled, -self.strength * others, 0.0), rollout)


def half_and_half(rollout: Rollout) -> Tensor:
    """Half of the weight for the pairs, `by_pair`, and half for the samples, `by_sample` -> [B, T]."""
    own = by_sample(replace(rollout, mask=rollout.mask & _sampled(rollout)[:, None]))
    return (by_pair(rollout) + own) / 2


def reinforce(log_ratio: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
    """A·ℓ -> [B, T].  As on-policy, ratio 1: for one optimizer step per rollout."""
    return advantage * log_ratio


def _sampled(rollout: Rollout) -> Tensor:
    none = torch.zeros(len(rollout.mask), dtype=torch.bool, device=rollout.mask.device)
    return none if rollout.given is None else ~rollout.given


@dataclass(frozen=True)
class HyPO:
    """Hybrid preference optimization (arXiv:2406.01462).  DPO on pairs plus kl·(reverse KL, on samples of the prompts).

    The KL's gradient is REINFORCE with a leave-one-out baseline on whole rows: -(kl/k)·Σ_i A_i·Σ_t log π, k samples a prompt.
    A *reconstruction*: kl was not found in the paper, and 2 samples a prompt with one step per rollout are assumed. Not the
    DPO with a one-sided reference of the same name.
    """

    beta: Annotated[float, Field(gt=0)] = 0.1  # β; 0.05 for summaries
    kl: Annotated[float, Field(ge=0)] = 1e-3  # λ; the middle of 1e-4 to 1e-2

    scored: ClassVar[bool] = False

    def objective(self) -> Objective:
        return Objective(  # each half of the weight counts twice
            OnlineKL(2 * self.kl),
            ratio=total_ratio,
            surrogate=reinforce,
            weighting=half_and_half,
            regularizers=active((2.0, PairLoss("sigmoid", self.beta))),
        )
