"""Value losses [B, T]: (new, rollout, credit) -> to be minimized. The targets come with the credit, computed once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from studio.core.declare import needs
from studio.shapes import expect
from studio.types import Credit, Evaluation, Rollout


@needs("value")
@dataclass(frozen=True)
class ValueLoss:
    """Squared error of the critic, optionally not better than with a clipped change.

    strength · ½·max((v - R)², (clip(v, v_old ± clip) - R)²) -> [B, T]
    PPO (arXiv:1707.06347) and its implementations.  R is `credit.target`.
    """

    strength: float = 1.0  # c₁; the ½ is inside, so 1 is what others call vf_coef 0.5 on the plain square
    clip: float | None = None  # largest useful change of the value, None = plain

    def __call__(self, new: Evaluation, rollout: Rollout, credit: Credit) -> Tensor:
        rows, steps = rollout.mask.shape
        value = expect(new.value, "B T", name="ValueLoss: new.value", B=rows, T=steps).float()
        target = expect(credit.target, "B T", name="ValueLoss: credit.target", hint="Use GAE.", B=rows, T=steps)
        error = (value - target).square()
        if self.clip is not None:
            old = expect(rollout.old.value, "B T", name="ValueLoss: old.value", B=rows, T=steps)
            near = old + (value - old).clamp(-self.clip, self.clip)
            error = torch.maximum(error, (near - target).square())
        return self.strength * error / 2
