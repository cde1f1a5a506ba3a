"""The `policy: denoise` block of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from flows.load import Model, build_policy
from flows.sampler import Sampler

if TYPE_CHECKING:
    from flows.policy import DenoisePolicy


@dataclass(frozen=True)
class Denoise:
    """A text-to-image flow model whose noisy denoising steps are trained."""

    model: Model = field(default_factory=Model)
    sampler: Sampler = field(default_factory=Sampler)

    # what DenoisePolicy provides, stated here so that a recipe is checked before torch or a model is loaded
    provides: ClassVar[frozenset[str]] = frozenset({"logp", "mean", "std", "noise", "dt", "jacobian", "velocity", "ref"})
    reads: ClassVar[str] = "image"

    def check(self) -> list[str]:
        """Warnings; ConfigError when the window does not fit."""
        self.sampler.window.steps(self.sampler.steps, 0, 0)
        return []

    def forwards(self) -> dict[str, float]:
        """Network calls per sample: of a rollout, and of one replay with gradients."""
        guided = 2 if self.sampler.guidance > 1 else 1
        return {
            "rollout": guided * self.sampler.steps,
            "replay": guided * len(self.sampler.window.steps(self.sampler.steps, 0, 0)),
        }

    def build(self, seed: int) -> DenoisePolicy:
        return build_policy(self.model, self.sampler, seed)
