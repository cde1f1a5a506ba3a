"""DDPO: PPO on denoising steps, each prompt's reward against what this prompt earned lately."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from studio.core import Clip, Objective
from studio.core.advantage import row_reward, spread
from studio.types import Rollout


@dataclass
class PromptHistory:
    """Reward against mean and standard deviation of the prompt's last rewards, the present ones included.

    A = clip((r - mean_p)/(std_p + 1e-6), ±clip);  fewer than `least` rewards of a prompt: mean and std of the batch -> [B, T]
    DDPO (arXiv:2305.13301).
    """

    size: int = 32  # rewards remembered per prompt
    least: int = 16
    clip: float = 5.0
    past: dict[str, deque[float]] = field(default_factory=dict, repr=False)

    def __call__(self, rollout: Rollout) -> Tensor:
        reward, present = row_reward(rollout, "PromptHistory")
        whole = reward[present]
        extended = self._extended(rollout)
        moments: dict[str, tuple[float, float]] = {}
        for key, rewards in extended.items():
            enough = len(rewards) >= self.least
            seen = torch.tensor(list(rewards), dtype=torch.float64) if enough else whole.cpu()
            moments[key] = (seen.mean().item(), seen.std(correction=0).item())
        at = reward.new_tensor([moments.get(key, (0.0, 1.0)) for key in rollout.prompts.key])
        advantage = ((reward - at[:, 0]) / (at[:, 1] + 1e-6)).clamp(-self.clip, self.clip)
        return spread(torch.where(present, advantage, 0.0), rollout)

    def update(self, rollout: Rollout) -> None:
        """Remember the rewards of a finished step."""
        self.past |= self._extended(rollout)

    def state_dict(self) -> dict[str, Any]:
        return {"past": {key: list(rewards) for key, rewards in self.past.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.past = {key: deque(rewards, self.size) for key, rewards in state["past"].items()}

    def _extended(self, rollout: Rollout) -> dict[str, deque[float]]:
        """The memory of this batch's prompts with the batch's rewards added."""
        reward, present = row_reward(rollout, "PromptHistory")
        found: dict[str, deque[float]] = {}
        for key, value, there in zip(rollout.prompts.key, reward.tolist(), present.tolist(), strict=True):
            if there:
                found.setdefault(key, deque(self.past.get(key, ()), self.size)).append(value)
        return found


@dataclass(frozen=True)
class DDPO:
    """DDPO (arXiv:2305.13301): clip 1e-4, per-prompt statistics. Use with sampler.kernel=ddim, level 1."""

    clip: Annotated[float, Field(gt=0)] = 1e-4
    history: Annotated[int, Field(ge=1)] = 32
    least: Annotated[int, Field(ge=2)] = 16
    advantage_clip: Annotated[float, Field(gt=0)] = 5.0

    def __post_init__(self) -> None:
        if self.least > self.history:  # a prompt's own statistics would never be used
            raise ValueError(f"least: expected at most history = {self.history}, got {self.least}. Remember more, or ask for less.")

    def objective(self) -> Objective:
        return Objective(PromptHistory(self.history, self.least, self.advantage_clip), surrogate=Clip(self.clip, self.clip))
