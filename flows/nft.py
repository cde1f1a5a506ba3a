"""DiffusionNFT: reinforcement on the forward process, without an SDE, likelihoods or a ratio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from flows.regularizer import event_mean, velocity
from studio.core import GroupRelative, Objective, active, no_ratio
from studio.core.declare import needs
from studio.shapes import expect
from studio.types import Evaluation, Rollout

Kind = Literal["both", "positive", "negative", "one", "sign"]


@needs("velocity", "target", "sigma")
@dataclass(frozen=True)
class ForwardProcess:
    """Pull an implicit good policy to the sample and an implicit bad one away from it, by how good the sample was.

    v⁺ = βv + (1-β)v_old,  v⁻ = (1+β)v_old - βv,  e± = σ(v± - u),  u = noise - sample, so e± = x̂₀± - x₀ up to sign
    gain = -(c/β)·[q·mean_E(e⁺²)/W⁺ + (1-q)·mean_E(e⁻²)/W⁻],  W± = max(mean_E|e±|, floor) without gradient
    q = clip(A, ±c)/(2c) + ½  -> [B, T].  DiffusionNFT (arXiv:2509.16117).

    Kinds replace A first: `both` keeps it, `positive` is max(A, 0), `negative` min(A, 0).  `one` (A > 0) and `sign` are a
    *reconstruction* from their names: q = 1 or 0, and q = 1, ½ or 0.  Public training code with modes of such names sets A to
    1 or 0, or to its sign, before the division by 2c instead: q = ½ + 1/(2c) or ½, and q = ½ ± 1/(2c) or ½.
    """

    beta: float = 1.0
    advantage_clip: float = 5.0  # c
    kind: Kind = "both"
    floor: float = 1e-5

    def seen(self, new: Evaluation, rollout: Rollout) -> _Pulled:
        now, before = (expect(said.velocity, "B T *E", name="NFT: velocity") for said in (new, rollout.old))
        target = expect(rollout.old.target, "B T *E", name="NFT: target")
        sigma = expect(rollout.old.sigma, "B T", name="NFT: sigma")
        good = self.beta * now + (1 - self.beta) * before
        bad = (1 + self.beta) * before - self.beta * now
        return _Pulled(self, *(self._error(sigma.reshape(sigma.shape + (1,) * (v.ndim - 2)) * (v - target)) for v in (good, bad)))

    def share(self, advantage: Tensor) -> Tensor:
        """q in [0, 1]: how much a sample counts as good."""
        c = self.advantage_clip
        a = {
            "both": advantage,
            "positive": advantage.clamp(min=0),
            "negative": advantage.clamp(max=0),
            "one": torch.where(advantage > 0, c, -c),
            "sign": c * advantage.sign(),
        }[self.kind]
        return a.clamp(-c, c) / (2 * c) + 0.5

    def __call__(self, log_ratio: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
        raise TypeError("ForwardProcess looks at velocities: call seen(new, rollout) first, as policy_loss does.")

    def _error(self, e: Tensor) -> Tensor:
        return event_mean(e**2) / event_mean(e.detach().abs()).clamp(min=self.floor)


@dataclass(frozen=True)
class _Pulled:
    settings: ForwardProcess
    good: Tensor  # [B, T]
    bad: Tensor  # [B, T]

    def __call__(self, log_ratio: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
        q = self.settings.share(advantage)
        return -self.settings.advantage_clip / self.settings.beta * (q * self.good + (1 - q) * self.bad)


@dataclass(frozen=True)
class DiffusionNFT:
    """DiffusionNFT (arXiv:2509.16117). Use with policy `match` and train.behavior, which holds the sampling weights back."""

    beta: Annotated[float, Field(gt=0)] = 1.0  # 0.1 for OCR and several rewards
    kl: Annotated[float, Field(ge=0)] = 1e-4  # strength of mean_E(v - v_ref)²
    kind: Kind = "both"  # variants of q; one and sign are reconstructions
    scale: Literal["global", "group"] = "global"
    advantage_clip: Annotated[float, Field(gt=0)] = 5.0

    def objective(self) -> Objective:
        return Objective(
            GroupRelative(scale=self.scale, clip=self.advantage_clip),
            ratio=no_ratio,
            surrogate=ForwardProcess(self.beta, self.advantage_clip, self.kind),
            regularizers=active((self.kl, velocity)),
        )
