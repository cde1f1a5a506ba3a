"""The optimizer and the averaged weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from studio.protocols import Policy
from studio.recipe import Train


def build_optimizer(policy: Policy, train: Train) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        list(policy.trainable()), lr=train.learning_rate, betas=train.betas, weight_decay=train.weight_decay, eps=train.adam_epsilon
    )


class Average:
    """Exponential moving average of the trained weights, decay min((1+n)/(10+n), ema); off when ema is 0."""

    def __init__(self, policy: Policy, train: Train) -> None:
        from diffusers.training_utils import EMAModel

        self.policy, self.every, self.updates = policy, train.ema_every, 0
        self.model = EMAModel(list(policy.trainable()), decay=train.ema) if train.ema else None

    def step(self) -> None:
        self.updates += 1
        if self.model is not None and self.updates % self.every == 0:
            self.model.step(list(self.policy.trainable()))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the policy speaks with the averaged weights."""
        if self.model is None:
            yield
            return
        parameters = list(self.policy.trainable())
        self.model.store(parameters)
        self.model.copy_to(parameters)
        try:
            yield
        finally:
            self.model.restore(parameters)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "model": None if self.model is None else self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        if self.model is not None:
            self.model.load_state_dict(state["model"])
