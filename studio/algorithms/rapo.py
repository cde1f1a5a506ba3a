"""Forward KL to a reference that is softened where the answer was wrong: explore beyond it, but only there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from studio.core import Clip, GroupRelative, Objective, active, entropy
from studio.core.advantage import row_reward
from studio.core.declare import needs
from studio.core.tempered import at_temperature, known
from studio.shapes import expect
from studio.types import Evaluation, Rollout

Gradient = Literal["exact", "through_k"]
WIDE = 10.0  # largest |log w|


@needs("logp", "ref", "tempered")
@dataclass(frozen=True)
class ForwardKL:
    """KL(π̂ || π_new) from decisions of the old policy, π̂ the reference at temperature 1, or `soft` where the row failed.

    k = w·log w - w + 1 >= 0,  w = π̂/π_new,  times sg(r) -> [B, T].  RAPO (arXiv:2510.03865).
    The value is k.  The gradient with respect to log π_new is 1 - w for `exact`, whose expectation is that of the KL, and
    -w·log w for `through_k`, that of k on fixed decisions, which misses how they are drawn.
    """

    soft: float  # temperature of the reference where the reward is not above `correct`
    correct: float
    gradient: Gradient = "exact"

    def __post_init__(self) -> None:
        known(self.soft, "RAPO: soft")

    @property
    def __name__(self) -> str:
        return "forward_kl"

    def __call__(self, new: Evaluation, rollout: Rollout, log_ratio: Tensor) -> Tensor:
        rows, steps = rollout.mask.shape
        logp = expect(new.logp, "B T", name="ForwardKL: new.logp", B=rows, T=steps).float()
        log_w = (self.target(rollout).float() - logp).clamp(-WIDE, WIDE)
        excess = log_w.exp() * log_w - log_w.expm1()
        if self.gradient == "exact":
            excess = excess.detach() - log_w.detach().expm1() * (logp - logp.detach())
        return log_ratio.detach().exp() * excess

    def target(self, rollout: Rollout) -> Tensor:
        """log π̂ of the decisions -> [B, T]."""
        ref = Evaluation() if rollout.ref is None else rollout.ref
        plain = expect(ref.logp, "B T", name="ForwardKL: ref.logp", hint="Evaluate the reference first.", B=len(rollout.mask))
        reward, _ = row_reward(rollout, "ForwardKL")
        passed = (reward.float() > self.correct).to(plain.device)[:, None]
        return torch.where(passed, plain, at_temperature(ref, self.soft, "ForwardKL: ref"))


@dataclass(frozen=True)
class RAPO:
    """RAPO, rewards-aware (arXiv:2510.03865).  Clipped GRPO - kl·KL(π̂ || π) + entropy·H(π), equal weight per sample.

    π̂ ∝ π_ref^φ(r). A *reconstruction*: φ is 1 where the reward is above `correct` and 1/soft elsewhere, each decision has
    a normalizer of its own, and no constant of φ, α, β was found. `soft` is one of the temperatures that policies record.
    """

    clip: float = 0.2  # clip distance on both sides
    kl: Annotated[float, Field(ge=0)] = 1e-3  # α, strength of the forward KL
    entropy: Annotated[float, Field(ge=0)] = 1e-3  # β, strength of the entropy bonus
    soft: float = 2.0  # temperature of the reference where the answer failed: φ(0) = 1/2; 1 = the plain reference
    correct: float = 0.5  # φ = 1 where the reward is above
    fkl_grad: Gradient = "exact"  # through_k differentiates the estimate itself; which of them the paper uses was not found
    eps: float = 1e-4  # added to the group's standard deviation

    def objective(self) -> Objective:
        forward = ForwardKL(self.soft, self.correct, self.fkl_grad)
        return Objective(
            GroupRelative(ddof=1, eps=self.eps),
            surrogate=Clip(self.clip, self.clip),
            regularizers=active((self.kl, forward), (-self.entropy, entropy)),
        )
