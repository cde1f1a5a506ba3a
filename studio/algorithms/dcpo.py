"""Correct answers are also drawn toward a warmer or a cooler policy, as its entropy asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from studio.core import Clip, GroupRelative, Objective, by_decision
from studio.core.advantage import row_reward
from studio.core.declare import needs
from studio.core.masked import masked_mean
from studio.core.tempered import at_temperature, known
from studio.shapes import expect
from studio.types import Rollout


@needs("logp", "tempered")
@dataclass
class DistributionCredit:
    """Group z-scores mixed with how much likelier a correct decision is at another temperature -> [B, T].

    (1 - a)·A_b + a·y_b·q,  q = π_old(T)/π_old,  y_b = 1 where r_b > correct,  T = hot if H <= goal, else cold
    a = a₀/(1 + a₀),  a₀ = min(|goal - H|, reach)/mean(y), 0 where no row is correct.

    H is the mean of -log π_new over all decisions of the last iteration's optimizer steps, 0 before the first: the mean of
    -log π_old less the measured mean of ℓ.
    """

    base: GroupRelative
    goal: float
    reach: float
    hot: float
    cold: float
    correct: float
    entropy: float = 0.0  # H
    moved: float = 0.0  # Σ w·ℓ since the last iteration
    weight: float = 0.0  # Σ w

    def __post_init__(self) -> None:
        known(self.hot, "DCPO: hot")
        known(self.cold, "DCPO: cold")

    def __call__(self, rollout: Rollout) -> Tensor:
        reward, present = row_reward(rollout, "DistributionCredit")
        right = (present & (reward.float() > self.correct)).to(rollout.mask.device)
        mix = self.mix((right.sum() / present.sum().clamp(min=1)).item())
        toward = torch.where(right[:, None] & rollout.mask, self.likelier(rollout), 0.0)
        return (1 - mix) * self.base(rollout) + mix * toward

    def mix(self, correct: float) -> float:
        """a, from the share of rows that are correct."""
        if correct == 0:
            return 0.0
        ratio = min(abs(self.goal - self.entropy), self.reach) / correct
        return ratio / (1 + ratio)

    def likelier(self, rollout: Rollout) -> Tensor:
        """q of live decisions, 1 elsewhere -> [B, T]."""
        warmth = self.hot if self.entropy <= self.goal else self.cold
        tempered = at_temperature(rollout.old, warmth, "DistributionCredit: old")
        logp = expect(rollout.old.logp, "B T", name="DistributionCredit: old.logp", B=len(rollout.mask))
        return torch.where(rollout.mask, tempered - logp, 0.0).exp()

    def measure(self, log_ratio: Tensor, advantage: Tensor, weight: Tensor) -> Tensor:
        return torch.stack([(weight * log_ratio).sum(), weight.sum()])

    def learn(self, measured: Tensor) -> None:
        moved, weight = measured.tolist()
        self.moved, self.weight = self.moved + moved, self.weight + weight

    def told(self) -> dict[str, float]:
        return {"sample/entropy_gauge": self.entropy}

    def update(self, rollout: Rollout) -> None:
        """The iteration is over: H of its optimizer steps."""
        mask = rollout.mask if rollout.present is None else rollout.mask & rollout.present.to(rollout.mask.device)[:, None]
        logp = expect(rollout.old.logp, "B T", name="DistributionCredit: old.logp", B=len(mask))
        self.entropy = -masked_mean(logp, mask).item() - (self.moved / self.weight if self.weight > 0 else 0.0)
        self.moved = self.weight = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"entropy": self.entropy, "moved": self.moved, "weight": self.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.entropy, self.moved, self.weight = state["entropy"], state["moved"], state["weight"]


@dataclass(frozen=True)
class DCPO:
    """DCPO, distribution-centric ("Distribution-Centric Policy Optimization Dominates Exploration-Exploitation Trade-off").

    A' = (1 - a)·A + a·1[correct]·π_old(T)/π_old in PPO's clip with dual clip; every token equal, no KL. From the released
    code, which divides by zero where no answer is correct; here such a batch has a = 0.
    """

    entropy: Annotated[float, Field(ge=0)] = 0.5  # H₀, nats per decision, where the policy is held; the README's best is 0.25
    reach: Annotated[float, Field(ge=0)] = 0.1  # largest |H₀ - H| that counts
    hot: float = 1.2  # temperature of the target while the entropy is at most H₀
    cold: float = 0.8  # temperature of the target above it
    correct: float = 0.05  # an answer is correct where its reward is above
    clip: float = 0.2  # clip distance on both sides
    cap: float | None = 3.0  # dual clip: largest ratio that counts where A < 0
    eps: float = 1e-6  # added to the group's standard deviation, as in verl

    def objective(self) -> Objective:
        base = GroupRelative(ddof=1, eps=self.eps)
        return Objective(
            DistributionCredit(base, self.entropy, self.reach, self.hot, self.cold, self.correct),
            surrogate=Clip(self.clip, self.clip, self.cap),
            weighting=by_decision,
        )
