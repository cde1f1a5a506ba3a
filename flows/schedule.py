"""Sigma grids: which noise levels a sampler visits. 1 is noise, 0 is data; N steps have N + 1 sigmas."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

TRAIN_STEPS = 1000  # diffusers trains flows on sigmas 1/1000 ... 1000/1000


def static_shift(sigma: Tensor, shift: float) -> Tensor:
    """Resolution shift  f(u) = s·u / (1 + (s-1)·u);  keeps 0 and 1, raises what is between for s > 1."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def static_grid(steps: int, shift: float = 3.0) -> Tensor:
    """SD3's grid as FlowMatchEulerDiscreteScheduler makes it, [steps + 1] float32.

    diffusers applies the shift twice: its smallest training sigma is already shifted before the grid is laid and shifted again.
    """
    lowest = static_shift(torch.tensor(1 / TRAIN_STEPS, dtype=torch.float64), shift)
    grid = torch.linspace(1.0, lowest.item(), steps, dtype=torch.float64)
    return _closed(static_shift(grid, shift))


def even_grid(steps: int, shift: float = 3.0) -> Tensor:
    """linspace(1, 0, N + 1) with a static shift: what DanceGRPO and MixGRPO use for FLUX (arXiv:2505.07818, 2507.21802)."""
    return static_shift(torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64), shift).float()


def dynamic_mu(tokens: int, base: float = 0.5, top: float = 1.15, low: int = 256, high: int = 4096) -> float:
    """FLUX's shift exponent: linear in the number of image tokens, `base` at `low` tokens, `top` at `high`."""
    return base + (top - base) * (tokens - low) / (high - low)


def scheduler_grid(scheduler, steps: int, tokens: int, *, sigmas: list[float] | None = None) -> Tensor:
    """The grid of a diffusers flow scheduler for so many image tokens, [steps + 1]; the scheduler itself stays as it is."""
    own = copy.deepcopy(scheduler)
    config, given = own.config, {}
    if config.get("use_dynamic_shifting"):
        ends = (config.base_shift, config.max_shift, config.base_image_seq_len, config.max_image_seq_len)
        given["mu"] = dynamic_mu(tokens, *ends)
    own.set_timesteps(**({"sigmas": sigmas} if sigmas else {"num_inference_steps": steps}), **given)
    return own.sigmas.float().cpu()


def dynamic_grid(steps: int, tokens: int) -> Tensor:
    """FLUX.1-dev's grid: sigma = e^mu / (e^mu + 1/u - 1) over u = 1 ... 1/N, [steps + 1] float32."""
    u = torch.linspace(1.0, 1 / steps, steps, dtype=torch.float64)
    scale = math.exp(dynamic_mu(tokens))
    return _closed(scale / (scale + 1 / u - 1))


def _closed(grid: Tensor) -> Tensor:
    return torch.cat([grid, grid.new_zeros(1)]).float()
