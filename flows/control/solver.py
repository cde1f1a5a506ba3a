"""From noise to action: ODE solvers on [0, 1] and the paths on which a velocity is asked about. 0 is noise, 1 is the action."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from flows.control.recipe import Path

Velocity = Callable[[Tensor, float], Tensor]  # (x [..., d], tau) -> dx/dtau


def midpoint(velocity: Velocity, x: Tensor, steps: int) -> Tensor:
    """x(1) of dx/dτ = u(x, τ) from x(0), by the explicit midpoint rule on `steps` equal steps: two calls each.  [..., d]

    x' = x + h·u(x + h/2·u(x, τ), τ + h/2)
    """
    h = 1 / steps
    for k in range(steps):
        half = x + h / 2 * velocity(x, k * h)
        x = x + h * velocity(half, (k + 0.5) * h)
    return x


def euler(velocity: Velocity, x: Tensor, steps: int) -> Tensor:
    """The same by Euler's rule: one call each.  x' = x + h·u(x, τ)."""
    for k in range(steps):
        x = x + velocity(x, k / steps) / steps
    return x


def on_path(z: Tensor, end: Tensor, tau: Tensor, path: Path, extra: Tensor | None = None) -> Tensor:
    """The point x_τ between noise z and endpoint.  z, end [..., d], τ [..., 1] in [0, 1]

    rectified (1-τ)z + τ·end · trigflow cos(πτ/2)z + sin(πτ/2)end · interpolant (1-τ)z + τ·end + √(2τ(1-τ))·extra, extra ~ N(0, I)
    PolicyFlow (arXiv:2602.01156).
    """
    if path == "trigflow":
        angle = tau * (math.pi / 2)
        return angle.cos() * z + angle.sin() * end
    straight = (1 - tau) * z + tau * end
    if path == "interpolant":
        assert extra is not None
        return straight + (2 * tau * (1 - tau)).sqrt() * extra
    return straight


def brownian_residual(new: Tensor, old: Tensor, x: Tensor, tau: Tensor, path: Path) -> Tensor:
    """η: how far the new velocity is from that of particles that spread like heat, as the old velocity tells their score.

    rectified η = (1-τ)·u - (x - τ·ū) · trigflow η = cos θ·u - (cos θ·x - sin θ·ū), θ = πτ/2 ·
    interpolant η = (2(τ-½)² + ½)·u - (x - τ·ū).  All [..., d], τ [..., 1].  PolicyFlow (arXiv:2602.01156), equation 16 with the
    gradient through the new velocity, as in the released code.
    """
    if path == "trigflow":
        angle = tau * (math.pi / 2)
        return angle.cos() * new - (angle.cos() * x - angle.sin() * old)
    factor = 2 * (tau - 0.5) ** 2 + 0.5 if path == "interpolant" else 1 - tau
    return factor * new - (x - tau * old)


def shifted_logp(noise: Tensor, shift: Tensor, std: Tensor) -> Tensor:
    """log N(ξ; δ, diag σ²), the sum over the last dimension.  noise ξ, shift δ, std σ [..., d] -> [...]

    -Σ ½((ξ - δ)/σ)² + log σ + ½·log 2π.  With the endpoint's shift as δ it is the exact likelihood given z.
    """
    return -(0.5 * ((noise - shift) / std).square() + std.log() + math.log(2 * math.pi) / 2).sum(-1)


def gaussian_kl(shift: Tensor, std: Tensor, old: Tensor) -> Tensor:
    """KL(N(0, σ̄²) || N(δ, σ²)) = Σ log(σ/σ̄) + (σ̄² + δ²)/(2σ²) - ½.  shift δ, std σ, old σ̄ [..., d] -> [...]"""
    return ((std / old).log() + (old.square() + shift.square()) / (2 * std.square()) - 0.5).sum(-1)


def noise_entropy(std: Tensor) -> Tensor:
    """Entropy of N(·, diag σ²): Σ ½·log(2πe) + log σ.  [..., d] -> [...]"""
    return (std.log() + (1 + math.log(2 * math.pi)) / 2).sum(-1)
