"""PPO from states that good answers pass through: answers begin with tokens of a reference and go on by themselves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from studio.core import GAE, Clip, Objective, ValueLoss, by_decision
from studio.core.advantage import decision_reward
from studio.core.masked import masked_mean, whiten
from studio.types import Rollout


@dataclass(frozen=True)
class ScaledRewardGAE:
    """GAE of rewards on a common scale.  r ← (r - mean)/√(var + 1e-8) + mean over the live decisions, KL included -> [B, T]."""

    gae: GAE  # its kl goes into the rewards before they are scaled

    @property
    def needs(self) -> frozenset[str]:
        return self.gae.needs

    def __call__(self, rollout: Rollout) -> Tensor:
        return replace(self.gae, kl=0.0)(self._scaled(rollout))

    def target(self, rollout: Rollout) -> Tensor:
        """What the critic should have said, [B, T]."""
        return replace(self.gae, kl=0.0).target(self._scaled(rollout))

    def _scaled(self, rollout: Rollout) -> Rollout:
        reward = decision_reward(rollout, "DR-PO", kl=self.gae.kl)
        scaled = whiten(reward, rollout.mask, ddof=1) + masked_mean(reward, rollout.mask)
        return replace(rollout, reward=torch.where(rollout.mask, scaled, 0.0))


@dataclass(frozen=True)
class DRPO:
    """Dataset reset policy optimization (arXiv:2404.08495).  PPO with the KL inside scaled rewards; GAE, whitened; both clips.

    The beginnings are the policy's: it forces tokens of a reference answer and masks them (text: sampling.roll_in). Here forced
    tokens are dead for the critic and the KL as well; in the release only the policy loss skips them.
    """

    clip: Annotated[float, Field(gt=0)] = 0.2
    gamma: Annotated[float, Field(ge=0, le=1)] = 1.0
    lam: Annotated[float, Field(ge=0, le=1)] = 0.95
    kl: Annotated[float, Field(ge=0)] = 0.05  # strength of the k1 KL inside the reward, fixed
    scale_reward: bool = True  # divide rewards by their deviation, the mean stays
    whiten: bool = True  # advantages
    value: Annotated[float, Field(ge=0)] = 0.1  # strength of ½·(v - R)²
    value_clip: Annotated[float, Field(gt=0)] | None = 0.2

    def objective(self) -> Objective:
        gae = GAE(self.gamma, self.lam, self.whiten, self.kl)
        return Objective(
            ScaledRewardGAE(gae) if self.scale_reward else gae,
            surrogate=Clip(self.clip, self.clip),
            weighting=by_decision,
            critic=ValueLoss(self.value, self.value_clip),
        )
