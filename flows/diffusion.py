"""Diffusion models (noise schedule alpha-bar) in the coordinates of flows, so that every step kernel serves both.

A diffusion state is  z = √ᾱ·x₀ + √(1-ᾱ)·e,  a flow state  x = (1-t)·x₀ + t·e.  They are the same picture at another scale:

    t = √(1-ᾱ) / (√ᾱ + √(1-ᾱ)),      x = c·z  with  c = √((1-t)² + t²) = 1/(√ᾱ + √(1-ᾱ)),      v = e - x₀

Under this map the Euler step is DDIM's step without noise, and `flows.sde.ddim` is DDIM's step with noise η, which is DDPO's
transition (arXiv:2305.13301): its mean and std are c_next times theirs, so ratios and clips are the same numbers.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from flows.sde import over

Prediction = Literal["epsilon", "v_prediction"]


def flow_sigma(alpha_bar: Tensor) -> Tensor:
    """Flow noise level  t = √(1-ᾱ) / (√ᾱ + √(1-ᾱ))  of a diffusion noise level ᾱ."""
    data, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    return noise / (data + noise)


def flow_scale(sigma: Tensor) -> Tensor:
    """c = √((1-t)² + t²):  a flow state is c times the diffusion state of the same picture."""
    return ((1 - sigma) ** 2 + sigma**2).sqrt()


def flow_velocity(z: Tensor, output: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    """v = e - x₀ from what a diffusion network says about z  [N, *E], all float32.

    epsilon:       e = output,                    x₀ = (z - √(1-ᾱ)·e) / √ᾱ   (amplifies rounding by 1/√ᾱ near pure noise)
    v_prediction:  e = √ᾱ·output + √(1-ᾱ)·z,      x₀ = √ᾱ·z - √(1-ᾱ)·output
    """
    scale = flow_scale(sigma)
    data, noise = over((1 - sigma) / scale, z), over(sigma / scale, z)  # √ᾱ and √(1-ᾱ)
    if prediction == "epsilon":
        return output - (z - noise * output) / data
    return (data + noise) * output + (noise - data) * z
