"""Gradients through the sampler and a differentiable reward, instead of through likelihoods."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from studio.types import Rollout


@dataclass(frozen=True)
class Cut:
    """Which part of sampling keeps its graph."""

    start: int  # first denoising step with gradients; earlier ones run without
    predict: bool = False  # end after this one step: the picture is its prediction of the sample
    renoise: int = 0  # additional times the sample is noised to the level of `start` and those steps are taken again


Truncation = Callable[[int, random.Random], Cut]  # (denoising steps, this iteration's own generator) -> Cut
RewardLoss = Callable[[Tensor], Tensor]  # reward [B] -> loss [B]


@dataclass(frozen=True)
class PathwiseObjective:
    """What is kept of the graph, and how a reward becomes a loss."""

    truncation: Truncation
    loss: RewardLoss
    needs: ClassVar[frozenset[str]] = frozenset({"pathwise"})
    iteration: ClassVar[str] = "studio.pathwise:improve"

    def update(self, rollout: Rollout) -> None:
        """Nothing is remembered."""


@dataclass(frozen=True)
class Rise:
    """-scale·R."""

    scale: float = 1.0

    def __call__(self, reward: Tensor) -> Tensor:
        return -self.scale * reward


@dataclass(frozen=True)
class UpTo:
    """scale·max(bound - R, 0): no gradient once the reward is good enough."""

    bound: float
    scale: float = 1.0

    def __call__(self, reward: Tensor) -> Tensor:
        return self.scale * (self.bound - reward).clamp(min=0)


@dataclass(frozen=True)
class Toward:
    """scale·|goal - R|."""

    goal: float
    scale: float = 1.0

    def __call__(self, reward: Tensor) -> Tensor:
        return self.scale * (self.goal - reward).abs()


def pathwise_loss(objective: PathwiseObjective, reward: Tensor, present: Tensor, rows: int) -> tuple[Tensor, dict[str, Any]]:
    """Σ over present rows of loss(R)/rows, `rows` of the global batch; parts add up.  reward, present [B] -> scalar.

    A missing row adds nothing, and its weight is not given to the others.
    """
    each = torch.where(present, objective.loss(torch.where(present, reward, 0.0)), 0.0)
    loss = each.sum() / rows
    return loss, {"loss/total": loss.detach()}
