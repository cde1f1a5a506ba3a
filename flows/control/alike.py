"""What control policies do alike, as functions of a policy: its class names them as its methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flows.control.networks import load_net, save_net
from studio.seeds import row_seed


def value(policy: Any, observation: Tensor) -> Tensor:
    """What the critic expects of states.  [..., n] -> [...]"""
    return policy.model.critic(observation)[..., 0]


def trainable(policy: Any) -> Iterable[nn.Parameter]:
    return [p for p in policy.model.parameters() if p.requires_grad]


def save(policy: Any, folder: Path) -> None:
    save_net(policy.model, folder)


def load(policy: Any, folder: Path) -> None:
    load_net(policy.model, folder)


def nothing(policy: Any, *when: int) -> None:
    """For policies that keep nothing before they act, and of which every pass asks the same."""


def random(policy: Any, step: int) -> torch.Generator:
    """Where the noise of an iteration's actions comes from: the same for any number of processes."""
    return torch.Generator().manual_seed(row_seed(policy.seed, f"act/{step}", 0))


def on_grid(net: Any, observation: Tensor, steps: int) -> Callable[[Tensor, int], Tensor]:
    """(x [N, d], k) -> u(x, k/steps; s) [N, d] of a velocity network: time features and view are computed once."""
    view, times = net.observe(observation), net.time(torch.arange(steps, device=observation.device) / steps)
    return lambda x, k: net(x, times[k], view)


def at_points(net: Any, observation: Tensor, x: Tensor, tau: Tensor) -> Tensor:
    """u(x_j, τ_j; s) at P points per state, in one call.  observation [..., n], x [..., P, d], τ [..., P] or [P] -> [..., P, d]"""
    return net(x, net.time(tau), net.observe(observation)[..., None, :])


def as_said(x: Tensor, said: Tensor) -> Tensor:
    """x [..., J] of J parts per action, or [..., 1] for all of them, in the form in which `said` keeps the parts.

    [B, T, J] of a stretch, [B·T, J] of rows apart, and without J where actions have one part.
    """
    return x.expand(*x.shape[:-1], said.numel() // math.prod(x.shape[:-1])).reshape(said.shape)
