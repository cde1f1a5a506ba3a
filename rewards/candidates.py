"""Rewards that compare the pictures of one prompt: what stands alone is scored first, the rest when all are there.

A batch is scored in parts, over several processes and from memory, so a comparison must wait for the whole group.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from studio.protocols import RewardFn
from studio.types import Prompts, Scores

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class Compares(Protocol):
    """A reward whose score of a sample depends on the other samples of its prompt."""

    def alone(self) -> RewardFn: ...  # scores a sample by itself
    def compare(self, scores: Scores, group: Tensor) -> Scores: ...  # the scores of `alone` -> the reward, [B]


def compared(rewards: Mapping[str, RewardFn], scores: Mapping[str, Scores], group: Tensor) -> dict[str, Scores]:
    """Scores of samples by themselves -> rewards; group [B], and all samples of a group are here."""
    return {
        name: reward.compare(scores[name], group.to(scores[name].value.device)) if isinstance(reward, Compares) else scores[name]
        for name, reward in rewards.items()
    }


def by_key(prompts: Prompts) -> Tensor:
    """Group numbers [B] int64: rows with the key of the same prompt share one."""
    import torch

    number = {key: n for n, key in enumerate(dict.fromkeys(prompts.key))}
    return torch.tensor([number[key] for key in prompts.key], dtype=torch.int64)
