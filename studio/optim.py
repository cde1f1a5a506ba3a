"""The optimizer and the averaged weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from studio.protocols import Policy
from studio.settings import Train


def build_optimizer(policy: Policy, train: Train) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        list(policy.trainable()), lr=train.learning_rate, betas=train.betas, weight_decay=train.weight_decay, eps=train.adam_epsilon
    )


class LearningRate:
    """Changes the optimizer's learning rate as the recipe says; its state is the optimizer's."""

    def __init__(self, optimizer: torch.optim.Optimizer, train: Train) -> None:
        self.optimizer, self.rate, self.first, self.steps = optimizer, train.rate, train.learning_rate, train.steps
        self.sum, self.count = 0.0, 0

    def start(self, step: int) -> None:
        """Before iteration `step`, counted from 0."""
        self.sum, self.count = 0.0, 0
        if self.rate.kind == "linear":
            self._set(self.first * (1 - step / self.steps))

    def moved(self, kl: float | None) -> None:
        """After an epoch with this mean KL(old || new) of its minibatches; what counts is the mean of the iteration so far."""
        if self.rate.kind == "kl" and kl is not None:
            self.sum, self.count = self.sum + kl, self.count + 1
            self._set(adapted(self.now, self.sum / self.count, self.rate.target, self.rate.low, self.rate.high))

    @property
    def now(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def _set(self, value: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = value


def adapted(rate: float, kl: float, target: float, low: float = 1e-6, high: float = 1e-2) -> float:
    """lr/1.5 where KL > 2·target, 1.5·lr where KL < target/2, else lr; within [low, high].  rsl_rl; PolicyFlow
    (arXiv:2602.01156).
    """
    if kl > 2 * target:
        return max(rate / 1.5, low)
    return min(rate * 1.5, high) if kl < target / 2 else rate


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
