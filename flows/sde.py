"""One step of every sampler family: mean, standard deviation, sensitivity to the velocity, and log-probability.

Everything here is float32 outside the network: in bfloat16 the mean overflows and 1/sigma amplifies rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Step(NamedTuple):
    """The Gaussian of one step, x_next ~ N(mean, std²)."""

    mean: Tensor  # [N, *E]
    std: Tensor  # [N] standard deviation of the step, not a rate
    jacobian: Tensor  # [N] |d mean / d velocity|


Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Step]


def ode(x: Tensor, v: Tensor, t: Tensor, t_next: Tensor, level: Tensor) -> Step:
    """Euler:  mean = x - h·v,  std = 0."""
    h = t - t_next
    return Step(x - over(h, x) * v, torch.zeros_like(h), h)


def flow_sde(x: Tensor, v: Tensor, t: Tensor, t_next: Tensor, level: Tensor) -> Step:
    """Flow-GRPO (arXiv:2505.05470): the reverse SDE with  g = a·√(t/(1-t)).

    At t = 1 the denominator becomes 1 - t_next, as in the published code; the first std is then exactly a.
    """
    rest = torch.where(t < 1, 1 - t, 1 - t_next)
    return _reverse_sde(x, v, t, t_next, level * (t / rest).sqrt())


def dance_sde(x: Tensor, v: Tensor, t: Tensor, t_next: Tensor, level: Tensor) -> Step:
    """DanceGRPO (arXiv:2505.07818): the reverse SDE with constant  g = eta."""
    return _reverse_sde(x, v, t, t_next, level)


def cps(x: Tensor, v: Tensor, t: Tensor, t_next: Tensor, level: Tensor) -> Step:
    """Coefficients-preserving sampling (arXiv:2509.05952): the noise level after the step is exactly t_next.

    x̂₀ = x - t·v,  ê = x + (1-t)·v,  s = t_next·sin(aπ/2),  mean = (1-t_next)·x̂₀ + t_next·cos(aπ/2)·ê
    """
    angle = level * (math.pi / 2)
    return _recombine(x, v, t, t_next, t_next * angle.cos(), t_next * angle.sin())


def ddim(x: Tensor, v: Tensor, t: Tensor, t_next: Tensor, level: Tensor) -> Step:
    """DDIM-type step:  s = η·t'·√(1 - t'²(1-t)²/(t²(1-t')²)),  mean = (1-t')·x̂₀ + √(t'²-s²)·ê,  t' = t_next."""
    share = (t_next * (1 - t) / (t * (1 - t_next))) ** 2
    std = level * t_next * (1 - share).clamp_min(0).sqrt()
    return _recombine(x, v, t, t_next, (t_next**2 - std**2).clamp_min(0).sqrt(), std)


KERNELS: dict[str, Kernel] = {"ode": ode, "flow_sde": flow_sde, "dance_sde": dance_sde, "cps": cps, "ddim": ddim}


def gaussian_logp(x_next: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """mean_E[ -(x_next - mean)²/(2 std²) - ln std - ½ ln 2π ]  -> [N].

    A mean over dimensions, as everywhere in this field: the ratio is the true one to the power 1/D, and so are the clips.
    """
    return -_mean((x_next - mean) ** 2) / (2 * std**2) - std.log() - 0.5 * math.log(2 * math.pi)


def cps_logp(x_next: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """-mean_E (x_next - mean)²  -> [N]; without 1/(2 std²), as all implementations of CPS have it."""
    return -_mean((x_next - mean) ** 2)


def step_logp(kernel: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The log-probability that belongs to a family."""
    return cps_logp if kernel == "cps" else gaussian_logp


def stable_level(sigmas: Tensor, steps: list[int]) -> float:
    """Largest `flow_sde` level with a²·h/(2(1-t_next)) < 1 on these steps; above it the mean flips the sign of x.

    A bound derived here, not published; recipes above it get a warning.
    """
    t, after = sigmas[:-1][steps], sigmas[1:][steps]
    return (2 * (1 - after) / (t - after)).sqrt().min().item()


def over(row: Tensor, x: Tensor) -> Tensor:
    """A number per row, shaped to multiply events: [N] -> [N, 1, ...]."""
    return row.reshape(row.shape + (1,) * (x.ndim - row.ndim))


def _reverse_sde(x: Tensor, v: Tensor, t: Tensor, t_next: Tensor, g: Tensor) -> Step:
    """mean = x·(1 - g²h/2t) - v·h·(1 + g²(1-t)/2t),  std = g·√h;  same marginals as the ODE."""
    h, pull = t - t_next, g**2 / (2 * t)
    jacobian = h * (1 + pull * (1 - t))
    return Step(over(1 - pull * h, x) * x - over(jacobian, x) * v, g * h.sqrt(), jacobian)


def _recombine(x: Tensor, v: Tensor, t: Tensor, t_next: Tensor, kept: Tensor, std: Tensor) -> Step:
    """(1-t_next)·x̂₀ + kept·ê  with the data and noise that the velocity predicts."""
    data, noise = x - over(t, x) * v, x + over(1 - t, x) * v
    jacobian = (t * (1 - t_next) - (1 - t) * kept).abs()
    return Step(over(1 - t_next, x) * data + over(kept, x) * noise, std, jacobian)


def _mean(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)
