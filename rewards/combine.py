"""One reward from several: at the level of advantages, so that scales do not decide which reward is learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from studio.errors import ConfigError, ShapeError
from studio.types import Scores

if TYPE_CHECKING:
    from torch import Tensor

How = Literal["normalize_each", "gdpo", "sum"]


def combine(
    scores: Mapping[str, Scores],
    weights: Mapping[str, float],
    group: Tensor,
    how: How = "normalize_each",
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """The combined reward [B] (0 where missing) and which rows have one [B].

    sum             Σ_k w_k·r_k (flow_grpo)
    normalize_each  Σ_k w_k·(r_k - mean_group r_k) / (std_group r_k + eps), population std (MixGRPO)
    gdpo            the same, standardized over the batch (GDPO, arXiv:2601.05242)

    A row that one reward lacks is missing in all of them and takes part in no statistic.  `eps` is absolute: a reward
    whose spread within a group is of that order counts less.  group: [B] int64, rows of one prompt share a value.
    """
    import torch

    _check(scores, weights, group, how)
    present = torch.ones_like(group, dtype=torch.bool)
    for score in scores.values():
        present &= True if score.present is None else score.present.to(group.device)
    reward = torch.zeros(group.shape, dtype=torch.float32, device=group.device)
    for name, score in scores.items():
        value = torch.where(present, score.value.detach().float().to(group.device), 0)
        reward += weights[name] * (value if how == "sum" else standardize(value, group, present, eps))
    if how == "gdpo":
        reward = standardize(reward, torch.zeros_like(group), present, eps)
    return reward, present


def standardize(value: Tensor, group: Tensor, present: Tensor, eps: float = 1e-6) -> Tensor:
    """(value - mean) / (std + eps) over the present rows of each group, population std; 0 elsewhere.  All [B]."""
    import torch

    from studio.core.masked import group_stats

    stats = group_stats(value, group, present)
    return torch.where(present, (value - stats.mean) / (stats.std + eps), 0.0).float()


def _check(scores: Mapping[str, Scores], weights: Mapping[str, float], group: Tensor, how: str) -> None:
    if not scores or scores.keys() != weights.keys():
        raise ConfigError(
            f"combine: expected one weight per reward, got rewards {sorted(scores)} and weights {sorted(weights)}. "
            "Name the same rewards in both."
        )
    if how not in How.__args__:
        raise ConfigError(f"combine: expected how to be one of {', '.join(How.__args__)}, got {how!r}. Choose one of them.")
    for name, score in scores.items():
        if score.value.shape != group.shape:
            raise ShapeError(
                f"combine: reward {name!r} has shape {list(score.value.shape)}, expected [B] = {list(group.shape)}. "
                "Return one score per sample."
            )
