"""Clipped tokens keep a bounded gradient, and fully correct answers are also learned by likelihood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from studio.core import GroupRelative, KeepGradientClip, Objective, active, by_decision
from studio.core.advantage import row_reward
from studio.core.declare import needs
from studio.shapes import expect
from studio.types import Evaluation, Rollout


@needs("logp")
@dataclass(frozen=True)
class CorrectLikelihood:
    """-log π_new of the decisions of fully correct rows, 0 elsewhere -> [B, T].

    The weights are those of all live decisions, so that parts add up. The release divides by the correct tokens of each
    micro-batch instead, which depends on the cut.
    """

    full: float = 1.0  # smallest reward of a fully correct row

    @property
    def __name__(self) -> str:
        return "correct_likelihood"

    def __call__(self, new: Evaluation, rollout: Rollout, log_ratio: Tensor) -> Tensor:
        rows, steps = rollout.mask.shape
        logp = expect(new.logp, "B T", name="CorrectLikelihood: new.logp", B=rows, T=steps)
        reward, _ = row_reward(rollout, "CorrectLikelihood")
        correct = (reward.float() >= self.full).to(logp.device)[:, None]  # in the precision that rewards have
        return torch.where(correct, -logp, 0.0)


@dataclass(frozen=True)
class GPPO:
    """GPPO (Klear-Reasoner, arXiv:2508.07629).  Value of clip-higher PPO; a held decision's gradient is A·bound, not 0.

    loss = -A·min-or-max(r, bound)·r/sg(r) + nll·(-log π of fully correct answers); every token equal, no KL.
    The release keeps dual clip at 10 on top, leaves out groups whose rewards agree, and masks overlong answers below 32k
    tokens: here `cap`, the choice of prompts, and the policy's mask.
    """

    low: float = 0.2  # ε_low
    high: float = 0.28  # ε_high
    beta_low: float = 1.0  # β₁, factor where held below; CE-GPPO (arXiv:2509.20712) 0.75
    beta_high: float = 1.0  # β₂, factor where held above
    cap: float | None = None  # dual clip: largest ratio that counts where A < 0; the release sets 10
    nll: Annotated[float, Field(ge=0)] = 0.1  # strength of the likelihood of fully correct answers; the release's
    full: float = 1.0  # smallest reward of a fully correct answer
    eps: float = 1e-6  # added to the group's standard deviation, as in verl

    def objective(self) -> Objective:
        return Objective(
            GroupRelative(ddof=1, eps=self.eps),
            surrogate=KeepGradientClip(self.low, self.high, self.cap, self.beta_low, self.beta_high),
            weighting=by_decision,
            regularizers=active((self.nll, CorrectLikelihood(self.full))),
        )
