"""Rounds of research as samples of their own: a success is worth more to the rounds that came just before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from studio.core import Clip, Objective, sample_ratio
from studio.core.advantage import row_reward, spread
from studio.core.draws import row_draws
from studio.core.masked import TINY, group_stats
from studio.core.segment import has_segment, over_segments, segment_of
from studio.errors import ConfigError
from studio.types import Rollout


def discounted(reward: Tensor, left: Tensor, gamma: float) -> Tensor:
    """γ^(T-t)·R_T, with T - t rounds left after this one."""
    return reward * gamma**left


@dataclass(frozen=True)
class RoundRelative:
    """The trajectory's reward, discounted by the rounds that followed, against all rounds of the prompt's trajectories.

    r_t = γ^(T-t)·R,  A_t = (r_t - mean)/(std + eps) over all rounds t of all rows of the group -> [B, T]
    EAPO (arXiv:2511.07327).  A row is one round where its prompt's info has `round` (from 1) and `rounds`; else the segments
    of a row are its rounds, and a row without segments is a single one.
    """

    gamma: float = 0.99
    eps: float = 1e-4

    def __call__(self, rollout: Rollout) -> Tensor:
        reward, present = row_reward(rollout, "EAPO")
        told = rounds_left(rollout)
        segment = segment_of(rollout) if told is None else torch.zeros_like(rollout.mask, dtype=torch.int64)
        live = has_segment(segment, rollout.mask) & present.to(rollout.mask.device)[:, None]
        count = live.shape[1]
        left = (segment.amax(dim=1, keepdim=True) - torch.arange(count, device=segment.device)).clamp(min=0)
        if told is not None:
            left = torch.tensor(told, device=segment.device)[:, None]
        each = discounted(reward.to(live.device)[:, None], left, self.gamma).expand(-1, count)
        groups = rollout.group.to(live.device)[:, None].expand(-1, count)
        stats = group_stats(each.reshape(-1), groups.reshape(-1), live.reshape(-1), ddof=1)
        off = (each.reshape(-1) - stats.mean) / (stats.std + self.eps).clamp(min=TINY)
        return over_segments(torch.where(live, off.reshape(live.shape), 0.0), rollout, segment)


@dataclass(frozen=True)
class WholeMultiple:
    """1 for as many live rows as a multiple of `multiple` has, drawn at random, 0 for the rest -> [B, T].

    The adaptive down-sampling of EAPO. A batch with fewer rows than `multiple` stays whole.
    """

    multiple: int = 1
    seed: int = 0

    def __call__(self, rollout: Rollout, advantage: Tensor) -> Tensor:
        live = rollout.mask.any(dim=1).cpu()
        count = int(live.sum())
        draw = row_draws(rollout, f"eapo/{self.seed}").masked_fill(~live, 2.0)
        keep = torch.zeros(len(live), dtype=torch.bool)
        keep[draw.argsort(stable=True)[: count // self.multiple * self.multiple or count]] = True
        return spread(keep, rollout)


def rounds_left(rollout: Rollout) -> list[int] | None:
    """Rounds that followed the one each row stands for; None where the prompts say nothing of rounds."""
    info = rollout.prompts.info
    if not any("round" in one or "rounds" in one for one in info):
        return None
    left = []
    for b, one in enumerate(info):
        at, whole = one.get("round"), one.get("rounds")
        if not (isinstance(at, int) and isinstance(whole, int) and 1 <= at <= whole):
            raise ConfigError(
                f"EAPO: expected whole numbers round, from 1, and rounds in the info of row {b}, got {at!r} of {whole!r}. Give "
                "every row both, or none."
            )
        left.append(whole - at)
    return left


@dataclass(frozen=True)
class EAPO:
    """Efficiency-aware policy optimization of IterResearch (arXiv:2511.07327): GSPO on rounds with discounted rewards.

    Partly a *reconstruction*: γ was not found, and over what advantages are normalized is our reading.
    """

    gamma: Annotated[float, Field(gt=0, le=1)] = 0.99  # discount per round that follows; the paper's was not found
    low: Annotated[float, Field(gt=0)] = 3e-4  # GSPO's
    high: Annotated[float, Field(gt=0)] = 4e-4  # ibid.
    eps: Annotated[float, Field(ge=0)] = 1e-4  # added to the group's standard deviation
    multiple: Annotated[int, Field(ge=1)] = 1  # rows are cut to one; the paper's is its number of data-parallel ranks
    seed: int = 0  # of which rows go

    def objective(self) -> Objective:
        return Objective(
            RoundRelative(self.gamma, self.eps),
            gate=WholeMultiple(self.multiple, self.seed) if self.multiple > 1 else None,
            ratio=sample_ratio,
            surrogate=Clip(self.low, self.high),
        )
