"""Which decisions train, and how much: (rollout, advantage) -> [B, T] >= 0, no gradient.

A gate multiplies the surrogate, not the denominators and not the penalties; where it is 0 the decision leaves both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from studio.core.advantage import row_reward, spread
from studio.core.declare import needs, needs_of
from studio.core.masked import group_stats
from studio.protocols import Gate
from studio.shapes import expect
from studio.types import Rollout


def informative_groups(rollout: Rollout, advantage: Tensor) -> Tensor:
    """1 where the rewards of the row's group differ, else 0 -> [B, T].  The filter of DAPO (arXiv:2503.14476)."""
    reward, present = row_reward(rollout, "informative_groups")
    stats = group_stats(reward, rollout.group, present)
    return spread(stats.high > stats.low, rollout)


@dataclass(frozen=True)
class EngineCorrection:
    """Importance of a decision when another engine sampled it.  min(exp(old - engine), cap) -> [B, T].

    Truncated importance sampling; 1 when the rollout names no engine.
    """

    cap: float = 2.0  # largest factor

    def __call__(self, rollout: Rollout, advantage: Tensor) -> Tensor:
        if rollout.engine is None:
            return torch.ones_like(advantage)
        old = expect(rollout.old.logp, "B T", name="EngineCorrection: old.logp", B=len(rollout.mask))
        return (old - rollout.engine).clamp(-20.0, 20.0).exp().clamp(max=self.cap)


@needs("entropy")
@dataclass(frozen=True)
class TopEntropy:
    """1 for the share of live decisions with the highest entropy when sampled, else 0 -> [B, T].  arXiv:2506.01939."""

    share: float = 0.2  # part of the live decisions that trains

    def __call__(self, rollout: Rollout, advantage: Tensor) -> Tensor:
        value = expect(rollout.old.entropy, "B T", name="TopEntropy: old.entropy", B=len(rollout.mask))
        live = value[rollout.mask]
        if live.numel() == 0:
            return torch.zeros_like(advantage)
        keep = max(1, round(self.share * live.numel()))
        return (value >= live.topk(keep).values[-1]).to(advantage.dtype)


@dataclass(frozen=True)
class EveryGate:
    """The product of several gates -> [B, T]."""

    gates: tuple[Gate, ...]

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(needs_of(gate) for gate in self.gates))

    def __call__(self, rollout: Rollout, advantage: Tensor) -> Tensor:
        factor = torch.ones_like(advantage)
        for gate in self.gates:
            factor = factor * gate(rollout, advantage)
        return factor
