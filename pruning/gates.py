"""Gates that are learned: a logit per unit, noise, and a number in [0, 1] that a gradient can move.

Everything is float32: bfloat16 leaves ties at every threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from studio.errors import ConfigError


@dataclass(frozen=True)
class HardConcrete:
    """Stretched, clipped noise gate (arXiv:1712.01312, with EcoDiff's constants and its noise flattener `noise`, arXiv:2412.02852).

    u ~ U(0, 1),  ν = ln(u + δ) - ln(1 - u + δ),  s = σ((ν + λ)/α),  m = clip(s·(ζ - γ) + γ, 0, 1);  δ = `noise`.
    """

    temperature: Annotated[float, Field(gt=0)] = 0.83  # α
    high: Annotated[float, Field(gt=1)] = 1.1  # ζ
    low: Annotated[float, Field(lt=0)] = -0.1  # γ
    noise: Annotated[float, Field(gt=0)] = 0.1  # δ: the larger, the flatter; |ν| is at most ln((1 + δ)/δ)

    def sample(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """m for logits λ and draws u, of one shape."""
        nu = (uniform + self.noise).log() - (1 - uniform + self.noise).log()
        return self._stretched((nu + logits) / self.temperature)

    def median(self, logits: Tensor) -> Tensor:
        """m at u = 1/2: the gate without noise."""
        return self._stretched(logits / self.temperature)

    def open(self, logits: Tensor) -> Tensor:
        """P(m > 0), the exact expectation of the L0 norm for this noise."""
        return 1 - self._below(self.temperature * math.log(-self.low / self.high) - logits)

    def open_sharp(self, logits: Tensor) -> Tensor:
        """P(m > 0) for δ → 0: σ(λ - α·ln(-γ/ζ)). Its slope is never 0, so that a budget moves every gate; that of `open` is
        exactly 0 wherever flattened noise cannot close a gate (λ > 0.41 for δ = 0.1)."""
        return torch.sigmoid(logits - self.temperature * math.log(-self.low / self.high))

    def full(self, logits: Tensor) -> Tensor:
        """P(m = 1)."""
        return 1 - self._below(self.temperature * math.log((1 - self.low) / (self.high - 1)) - logits)

    def saturation(self) -> float:
        """The logit above which m is 1 for every draw, so that no gradient ever reaches it."""
        return self.temperature * math.log((1 - self.low) / (self.high - 1)) + math.log((1 + self.noise) / self.noise)

    def check_start(self, start: float) -> None:
        """ConfigError when gates would start where they cannot move."""
        if start >= self.saturation():
            raise ConfigError(
                f"recipe.criterion.start: expected a logit below {self.saturation():.4f}, above which a gate with noise "
                f"{self.noise:g} is always 1 and has no gradient, got {start:g}. Lower start or noise."
            )

    def _stretched(self, x: Tensor) -> Tensor:
        return (torch.sigmoid(x) * (self.high - self.low) + self.low).clamp(0, 1)

    def _below(self, c: Tensor) -> Tensor:
        """P(ν <= c) = clip(((1 + δ)e^c - δ)/(1 + e^c), 0, 1), written so that no e^c overflows."""
        share = torch.sigmoid(c)
        return ((1 + self.noise) * share - self.noise * (1 - share)).clamp(0, 1)


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard` with the gradient of `soft`."""
    return hard + (soft - soft.detach())  # in this order: (1 + s) - s may be 0.99999994


def binarization_gap(soft: Tensor, hard: Tensor) -> Tensor:
    """mean |E[m] - 1[kept]|: how far the mask that was trained is from the one that is deployed."""
    return (soft - hard).abs().mean()
