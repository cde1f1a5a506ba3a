"""Sampling weights that lag behind the trained ones, for methods that learn from an older policy (DiffusionNFT)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from studio.protocols import Policy
from studio.settings import Lag


class Behavior:
    """A copy of the trained weights that samples;  copy ← d·copy + (1-d)·trained  after every update, d = lag(updates)."""

    def __init__(self, policy: Policy, lag: Lag) -> None:
        self.policy, self.lag, self.updates = policy, lag, 0
        self.copy = [p.detach().clone() for p in policy.trainable()] if lag.rate else None

    @torch.no_grad()
    def step(self) -> None:
        self.updates += 1
        if self.copy is not None:
            get_ema_multi_avg_fn(self.decay())(self.copy, [p.detach() for p in self.policy.trainable()], None)

    def decay(self) -> float:
        """d = min(rate·max(n - start, 0), limit) at update n."""
        return min(self.lag.rate * max(self.updates - self.lag.start, 0), self.lag.limit)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the policy speaks with the sampling weights."""
        if self.copy is None:
            yield
            return
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "copy": self.copy}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        if self.copy is not None:
            for mine, stored in zip(self.copy, state["copy"], strict=True):
                mine.copy_(stored)

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, stored in zip(self.policy.trainable(), self.copy or (), strict=True):
            current = parameter.detach().clone()
            parameter.copy_(stored)
            stored.copy_(current)
