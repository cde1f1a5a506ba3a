"""Early warning of likelihood over-optimization: both the entropy and the mass of the likeliest tokens have begun to fall."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor


class TopK(NamedTuple):
    """Of the k largest probabilities at every position."""

    mass: Tensor  # [...] their sum
    entropy: Tensor  # [...] nats


@torch.no_grad()
def top_k_mass_and_entropy(logits: Tensor, k: int = 10, *, raw: bool = False) -> TopK:
    """Σ_j p_j and -Σ_j q_j·log q_j over the k largest probabilities p, q = p/Σp.  logits [..., V] -> [...] each.

    arXiv:2410.11677.  Dividing by the mass is a *reconstruction*; `raw` leaves it out: -Σ_j p_j·log p_j.  The value of k in
    the paper was not found.  Assumes logits of the model itself, not divided by a sampling temperature.
    """
    logits = logits.float()
    logp = logits.topk(min(k, logits.shape[-1]), dim=-1).values - logits.logsumexp(dim=-1, keepdim=True)
    log_mass = logp.logsumexp(dim=-1)
    own = logp if raw else logp - log_mass[..., None]
    return TopK(log_mass.exp(), torch.special.entr(own.exp()).sum(dim=-1))


@dataclass
class EarlyWarning:
    """Says stop when smoothed mass and smoothed entropy have both fallen, from their maxima on, several evaluations in a row.

    s ← memory·s + (1 - memory)·x, beginning with the first x.  arXiv:2410.11677; feed it with averages over the positions of
    held-out continuations.
    """

    patience: int = 3  # evaluations in a row; a *reconstruction*
    memory: float = 0.9  # of the exponential moving averages; a *reconstruction*
    smooth: dict[str, float] = field(default_factory=dict)  # latest averages by name
    falling: int = 0  # evaluations in a row that saw both fall

    def update(self, mass: float, entropy: float) -> bool:
        """Take in an evaluation -> whether to stop."""
        before, now = self.smooth, {"mass": mass, "entropy": entropy}
        self.smooth = {name: self.memory * before.get(name, x) + (1 - self.memory) * x for name, x in now.items()}
        fell = bool(before) and all(self.smooth[name] < before[name] for name in now)
        self.falling = self.falling + 1 if fell else 0
        return self.falling >= self.patience

    def state_dict(self) -> dict[str, Any]:
        return {"smooth": dict(self.smooth), "falling": self.falling}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.smooth, self.falling = dict(state["smooth"]), state["falling"]
