"""Process rewards for free: the outcome minus what a KL-regularized policy still has to pay from each step on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from studio.core import Clip, GroupRelative, Objective, by_decision
from studio.core.advantage import drift_from_ref, row_reward
from studio.core.segment import segment_of
from studio.types import Rollout


@dataclass(frozen=True)
class ProcessRelative:
    """Outcome advantage minus the log ratio to the reference that remains, taken at the end of each step.

    z_t = A - (1/η)·Σ_{u≥t}(log π_old - log π_ref),  A_t = z at the next step end at or after t -> [B, T]
    PRL (arXiv:2601.10201).  Step ends are every `step` live decisions and the last one; `step` None: the ends of segments.
    `raw` is the release's `prm` mode: the reward itself minus the remainder, at every decision.
    """

    eta: float = 200.0  # η, inverse strength of the KL; inf = the outcome alone
    step: int | None = 256
    raw: bool = False
    scale: bool = True  # divide the outcome by its group's deviation
    eps: float = 1e-6

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"logp", "ref"})

    def __call__(self, rollout: Rollout) -> Tensor:
        drift = drift_from_ref(rollout)
        rest = drift.flip(1).cumsum(dim=1).flip(1) / self.eta
        if self.raw:
            return (row_reward(rollout, "PRL")[0].to(rest.device)[:, None] - rest).float()
        outcome = GroupRelative("group" if self.scale else None, ddof=1, eps=self.eps)(rollout)
        return filled_back(outcome.double() - rest, self._ends(rollout)).float()

    def _ends(self, rollout: Rollout) -> Tensor:
        """Which live decisions end a step, [B, T] bool."""
        mask = rollout.mask
        position = mask.cumsum(dim=1)
        last = position == position[:, -1:]
        if self.step is not None:
            return mask & (last | (position % self.step == 0))
        segment, following = segment_of(rollout), torch.full_like(position[:, 0], -1)
        ends = torch.zeros_like(mask)
        for t in reversed(range(mask.shape[1])):
            ends[:, t] = segment[:, t] != following
            following = torch.where(mask[:, t], segment[:, t], following)
        return mask & ends


def filled_back(x: Tensor, ends: Tensor) -> Tensor:
    """Each position takes the value of the next end at or after it, whatever that value is; 0 after the last.  [B, T] -> [B, T]."""
    filled, later = torch.zeros_like(x), torch.zeros_like(x[:, 0])
    for t in reversed(range(x.shape[1])):
        later = torch.where(ends[:, t], x[:, t], later)
        filled[:, t] = later
    return filled


@dataclass(frozen=True)
class PRL:
    """Process reward learning (arXiv:2601.10201).  Advantages per step, from old and reference likelihoods; clip."""

    clip: Annotated[float, Field(gt=0)] = 0.2
    eta: Annotated[float, Field(gt=0)] = 200.0  # η of Llama-3.2-3B; 100 with step 64 for Qwen2.5-Math-7B, 1 with step 128 seen too
    steps: Literal["length", "segment"] = "length"  # or where the policy says that a step ends: new lines
    step: Annotated[int, Field(ge=1)] = 256  # decisions, with steps=length
    mode: Literal["orm", "prm"] = "orm"  # orm is the official one; prm: raw reward, no steps
    scale: bool = True  # divide the outcome by its group's standard deviation
    eps: Annotated[float, Field(ge=0)] = 1e-6  # added to it, as in verl

    def objective(self) -> Objective:
        step = self.step if self.steps == "length" else None
        return Objective(
            ProcessRelative(self.eta, step, self.mode == "prm", self.scale, self.eps),
            surrogate=Clip(self.clip, self.clip),
            weighting=by_decision,
        )
