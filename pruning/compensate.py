"""Closed-form compensation: the columns that stay take over what the removed ones did (OBS, arXiv:2510.06751)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from pruning.calibrate import Moments
from pruning.sites import Group, linear
from pruning.surgery import Kept, lines, removed


@dataclass(frozen=True)
class Compensation:
    """Whether and how consumers are refitted after the cut."""

    on: bool = True
    damping: Annotated[float, Field(ge=0)] = 0.01  # share of the mean diagonal that is added to the diagonal
    bias: bool = True  # fit the mean with the consumer's bias as well


def compensated(weight: Tensor, gram: Tensor, gone: Tensor, damping: float = 0.01) -> Tensor:
    """W' = W - W[:, S] (H⁻¹[S, S])⁻¹ H⁻¹[S, :] = argmin ||W'X - WX||² with W'[:, S] = 0.   weight [o, n], gram XXᵀ [n, n] -> [o, n]

    H is the Gram matrix with `damping` times its mean diagonal added. Computed as least squares on the kept columns in
    float64, W'[:, K] = W H[:, K] H[K, K]⁻¹, which is the same and needs one factorization of the smaller side.
    """
    h = damped(gram, damping)
    stays = torch.ones(len(h), dtype=torch.bool, device=h.device)
    stays[gone.to(h.device)] = False
    result = torch.zeros_like(weight, dtype=torch.float64)
    if stays.any():
        right = weight.double() @ h[:, stays]
        result[:, stays] = torch.linalg.solve(h[stays][:, stays], right, left=False)
    return result.to(weight.dtype)


def damped(gram: Tensor, damping: float) -> Tensor:
    """H + damping·mean(diag H)·I in float64; an input that never moved gets a diagonal of 1."""
    h = gram.double().clone()
    mean = h.diagonal().mean()
    h.diagonal().add_(damping * mean if mean > 0 else 1.0)
    h.diagonal()[h.diagonal() <= 0] = 1.0
    return h


@torch.no_grad()
def refit(
    network: nn.Module, groups: Sequence[Group], kept: Kept, moments: Mapping[str, Moments], settings: Compensation
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """New (weight, bias) of every consumer with removed columns and measured inputs, at the original shapes, on the CPU."""
    modules = dict(network.named_modules())
    gone: dict[str, list[Tensor]] = {}
    for group in groups:
        for span in group.consumers:
            gone.setdefault(span.module, []).append(lines(span, removed(group, kept[group.name])))
    found: dict[str, tuple[Tensor, Tensor | None]] = {}
    for name, parts in gone.items():
        columns = torch.cat(parts)
        if name not in moments or not len(columns):
            continue
        layer, seen = linear(modules, name), moments[name]
        centered = settings.bias and layer.bias is not None
        gram = seen.covariance() if centered else seen.gram
        weight = compensated(layer.weight.detach().float(), gram, columns, settings.damping)
        bias = None
        if centered:
            lost = (layer.weight.detach().double() - weight.double()) @ seen.mean.to(weight.device)
            bias = (layer.bias.detach().double() + lost).to(layer.bias.dtype).cpu()
        found[name] = (weight.to(layer.weight.dtype).cpu(), bias)
    return found


@torch.no_grad()
def apply(network: nn.Module, refitted: Mapping[str, tuple[Tensor, Tensor | None]]) -> None:
    """Put refitted weights in place; the cut may come after."""
    modules = dict(network.named_modules())
    for name, (weight, bias) in refitted.items():
        layer = linear(modules, name)
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
