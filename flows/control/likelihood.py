"""How far the center of an action moved, estimated from the change of the velocity on a path (PolicyFlow, arXiv:2602.01156)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flows.control.recipe import Likelihood, Path
from flows.control.solver import brownian_residual, on_path


@dataclass(frozen=True)
class Times:
    """The times of one pass over all actions of an iteration."""

    tau: Tensor  # [actions, draws] in [0, 1]
    extra: Tensor | None = None  # [actions, draws, d] noise of the stochastic interpolant
    grid: int = 0  # steps between 0 and 1 when times lie on a grid: their features are computed once

    def of(self, index: Tensor, draws: int) -> Times:
        """The first `draws` times of these actions.  index [...] -> [..., draws]"""
        pick = index.cpu()
        extra = None if self.extra is None else self.extra[pick][..., :draws, :].to(index.device)
        return Times(self.tau[pick][..., :draws].to(index.device), extra, self.grid)

    def features(self, time: nn.Module, k: int) -> Tensor:
        """Time features of draw k, [..., width]."""
        tau = self.tau[..., k]
        if not self.grid:
            return time(tau)
        table = time(torch.arange(self.grid + 1, device=tau.device) / self.grid)
        # not by indexing, whose backward pass adds up row by row
        return nn.functional.embedding((tau * self.grid).round().long(), table)


@dataclass(frozen=True)
class Shift:
    """What the flow says now of recorded actions."""

    shift: Tensor  # [..., d] δ
    velocity: Tensor  # [..., d] at the last of the times
    residual: Tensor  # [..., draws·d] η of the Brownian regularizer


def draw_times(how: Likelihood, steps: int, actions: int, size: int, seed: int) -> Times:
    """One stratified time per draw for every action: the same for any number of processes."""
    own, draws = torch.Generator().manual_seed(seed), how.draws if how.kind == "grid_mean" else 1
    place = (torch.arange(draws) + torch.rand(actions, draws, generator=own)) / draws
    extra = torch.randn(actions, draws, size, generator=own) if how.path == "interpolant" else None
    if how.grid:  # floor: each of the 2K + 1 times has the same share of [0, 1)
        return Times((place * (2 * steps + 1)).floor().clamp(max=2 * steps) / (2 * steps), extra, 2 * steps)
    return Times(place, extra)


def estimate(new: Any, old: Any, record: Mapping[str, Tensor], times: Times, path: Path) -> Shift:
    """δ = mean over the times of u(x_τ, τ; s) - ū(x_τ, τ; s), x_τ on the path from z to the recorded endpoint."""
    observation, draws = record["observation"], times.tau.shape[-1]
    view = new.observe(observation)
    with torch.no_grad():
        old_view = old.observe(observation)
    shifts, residuals = [], []
    velocity = torch.zeros_like(record["z"])
    for k in range(draws):
        tau = times.tau[..., k : k + 1]
        x = on_path(record["z"], record["end"], tau, path, None if times.extra is None else times.extra[..., k, :])
        velocity = new(x, times.features(new.time, k), view)
        with torch.no_grad():
            before = old(x, times.features(old.time, k), old_view)
        shifts.append(velocity - before)
        residuals.append(brownian_residual(velocity, before, x, tau, path))
    return Shift(torch.stack(shifts).mean(0) if draws > 1 else shifts[0], velocity, torch.cat(residuals, -1))
