"""What gets logged about an update: `policy_loss` gives sums that add up over chunks and ranks, `metrics` ends them.

Moments are of r - 1, not of r: in image models r leaves 1 by about 1e-6, which float32 sums of r would lose.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from studio.core.surrogate import Clipped

WEIGHT = "weight"  # the share of the global batch behind the sums
LARGEST = "ratio/largest"  # the one entry that is combined by maximum
MEASURED = "measured/"  # begins the names of what adaptive slots measured: sums [K] for them alone
MOVED = "kl/moved"  # KL(old || new) in closed form, where the policy knows it


@torch.no_grad()
def ratio_sums(log_ratio: Tensor, weight: Tensor, clipped: Clipped | None = None) -> dict[str, Tensor]:
    """Weighted sums about ℓ over the live decisions.  log_ratio, weight [B, T] -> scalars."""
    shift = log_ratio.expm1()
    sums = {
        WEIGHT: weight.sum(),
        "ratio/shift": (weight * shift).sum(),
        "ratio/square": (weight * shift.square()).sum(),
        "ratio/drift": (weight * log_ratio.abs()).sum(),
        LARGEST: torch.where(weight > 0, log_ratio.abs(), 0.0).max(),
        # k2 of KL(old || new); k3 would cancel to 0 at the small ratios of image models
        "kl/old": (weight * log_ratio.square() / 2).sum(),
    }
    if clipped is not None:
        sums |= {"ratio/above": (weight * clipped.above).sum(), "ratio/below": (weight * clipped.below).sum()}
    return sums


def total(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The sums of several chunks as those of one batch."""
    result: dict[str, Tensor] = {}
    for part in parts:
        for name, value in part.items():
            if name not in result:
                result[name] = value
            else:
                result[name] = torch.maximum(result[name], value) if name == LARGEST else result[name] + value
    return result


def metrics(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sums of `policy_loss` as metrics `area/name`. Losses stay sums over the batch, the rest become means over it.

    ratio/mean · ratio/shift (mean - 1) · ratio/std · ratio/drift (mean |ℓ|) · ratio/largest (max |ℓ|) · ratio/clipped
    with its two parts ratio/above and ratio/below · ratio/ess (effective sample share (E r)² / E r²) · kl/old · loss/*
    """
    sums = {name: value for name, value in sums.items() if not name.startswith(MEASURED)}
    whole = sums[WEIGHT].clamp(min=torch.finfo(torch.float32).tiny)
    done = {name: value for name, value in sums.items() if name.startswith("loss/") or name == LARGEST}
    mean = {name: value / whole for name, value in sums.items() if name not in done and name != WEIGHT}
    square, shift = mean.pop("ratio/square"), mean["ratio/shift"]
    done |= mean | {
        "ratio/mean": 1 + shift,
        "ratio/std": (square - shift.square()).clamp(min=0).sqrt(),
        "ratio/ess": (1 + shift).square() / (1 + 2 * shift + square),
    }
    if "ratio/above" in mean:
        done["ratio/clipped"] = mean["ratio/above"] + mean["ratio/below"]
    return done


@torch.no_grad()
def ratio_by_step(log_ratio: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Mean of r - 1 and standard deviation of r at each decision index, over live rows.  [B, T] -> [T] each."""
    count = mask.sum(dim=0).clamp(min=1)
    excess = torch.where(mask, log_ratio.expm1(), 0.0)
    shift = excess.sum(dim=0) / count
    std = (torch.where(mask, excess - shift, 0.0).square().sum(dim=0) / count).sqrt()
    return {"shift": shift, "std": std}
