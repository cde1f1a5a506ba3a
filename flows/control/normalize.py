"""Running scales of observations and rewards, updated once per iteration with what all processes saw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from studio.settings import Acting

Sum = Callable[[Tensor], Tensor]  # over processes


class Moments:
    """Count, mean and variance of everything seen so far, merged batch by batch (Chan et al.), float64."""

    def __init__(self, size: int) -> None:
        self.count, self.mean, self.square = (
            torch.zeros((), dtype=torch.float64),
            torch.zeros(size).double(),
            torch.zeros(size).double(),
        )

    def add(self, x: Tensor, together: Sum) -> None:
        """x [M, size] of this process; the result is that of all processes' rows in one batch."""
        x = x.double()
        sums = together(torch.cat([torch.tensor([float(len(x))]).double(), x.sum(0)]))
        count, mean = sums[0], sums[1:] / sums[0]
        square = together((x - mean).square().sum(0))
        whole, off = self.count + count, mean - self.mean
        self.square = self.square + square + off.square() * self.count * count / whole
        self.mean, self.count = self.mean + off * count / whole, whole

    @property
    def std(self) -> Tensor:
        """1 before anything was seen."""
        return (self.square / self.count).sqrt() if self.count else torch.ones_like(self.mean)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean, "square": self.square}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.mean, self.square = state["count"], state["mean"], state["square"]


class Normalizer:
    """(o - mean)/std of observations and r/std(R) of rewards, R_t = γ·R_{t-1} + r_t, where the recipe wants them; clipped.

    Observations of an iteration are scaled by what was seen before it, so that a replay scales them alike; rewards by what was
    seen up to its end.
    """

    def __init__(self, acting: Acting, size: int, count: int) -> None:
        self.acting, self.observations, self.discounted = acting, Moments(size), Moments(1)
        self.returns = torch.zeros(count)  # R of the running episodes

    def observation(self, x: Tensor) -> Tensor:
        if not self.acting.observations or not self.observations.count:
            return x
        mean, std = self.observations.mean.to(x), self.observations.std.to(x)
        return ((x - mean) / (std + 1e-8)).clamp(-self.acting.clip, self.acting.clip)

    def learn(self, x: Tensor, together: Sum) -> None:
        """Observations of an iteration, [.., n]."""
        if self.acting.observations:
            self.observations.add(x.flatten(0, -2), together)

    def reward(self, reward: Tensor, ends: Tensor, together: Sum) -> Tensor:
        """Rewards [N, T] of an iteration as credit sees them."""
        reward = reward * self.acting.reward_scale
        if not self.acting.rewards:
            return reward
        seen = []
        for t in range(reward.shape[1]):
            self.returns = self.acting.gamma * self.returns + reward[:, t]
            seen.append(self.returns)
            self.returns = self.returns * ~ends[:, t]
        self.discounted.add(torch.stack(seen, 1).reshape(-1, 1), together)
        return (reward / (self.discounted.std.to(reward) + 1e-8)).clamp(-self.acting.clip, self.acting.clip)

    def state_dict(self) -> dict[str, Any]:
        return {"observations": self.observations.state_dict(), "discounted": self.discounted.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.observations.load_state_dict(state["observations"])
        self.discounted.load_state_dict(state["discounted"])
