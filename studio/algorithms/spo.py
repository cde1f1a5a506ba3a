"""One sample per prompt: a running estimate of each prompt's success takes the place of its group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from studio.core import Clip, Objective, by_decision
from studio.core.advantage import row_reward, spread
from studio.core.masked import masked_mean, masked_std
from studio.types import Rollout

EXPLORE = 0.05  # what a prompt whose outcome is certain still weighs


@dataclass
class SuccessTracker:
    """Reward against the prompt's tracked success rate, in standard deviations of the batch.

    p = a/(a + b) before the update,  A_i = z-score over the batch of r_i - p_i  -> [B, T]
    afterwards  a ← f·a + Σr,  b ← f·b + Σ(1 - r)  over the prompt's rows.  SPO (arXiv:2509.13232).
    `drift`: f = clip(2^(-D/half_life), least, most), D the sum, over the iterations since the prompt's last visit, of the mean
    |log ratio| at the iteration's last optimizer step, where it is measured anyway: one step per iteration always says 0. The
    release compares likelihoods of the prompt's last response then and now, at the price of a forward.
    Rewards outside [0, 1] are put on the range that was seen so far, which includes [0, 1].
    """

    forget: Literal["constant", "drift"] = "constant"
    least: float = 0.875  # ρ_min, and f of `constant`
    most: float = 0.96  # ρ_max
    half_life: float = 0.06  # of D
    eps: float = 1e-8  # added to the standard deviation
    counts: dict[str, tuple[float, float]] = field(default_factory=dict, repr=False)  # (a, b) by prompt key
    visited: dict[str, float] = field(default_factory=dict, repr=False)  # `path` when the prompt's rows were sampled
    path: float = 0.0  # how far the policy has come, in D
    moved: float = 0.0  # of this iteration
    seen: tuple[float, float] = (0.0, 1.0)  # lowest and highest reward so far

    alone: ClassVar[bool] = True

    def __call__(self, rollout: Rollout) -> Tensor:
        reward, present, _ = self._scaled(rollout)
        expected = reward.new_tensor([self.success(key) for key in rollout.prompts.key])
        surprise = reward - expected
        off = surprise - masked_mean(surprise, present)
        return spread(torch.where(present, off / (masked_std(surprise, present, ddof=1) + self.eps), 0.0), rollout)

    def begin(self, key: str, successes: float, rollouts: int) -> None:
        """Counts from rollouts before training.  a = N₀·(s + ½)/(n + 1), b = N₀·(n - s + ½)/(n + 1), N₀ = 1/(1 - least)."""
        scale = 1 / (1 - self.least) / (rollouts + 1)
        self.counts[key] = (scale * (successes + 0.5), scale * (rollouts - successes + 0.5))

    def estimate(self, rewards: Mapping[str, Sequence[float]]) -> None:
        """`begin` of every prompt from its rewards before training, on the range that all of them show."""
        shown = [reward for some in rewards.values() for reward in some]
        low, high = self.seen = min([self.seen[0], *shown]), max([self.seen[1], *shown])
        for key, some in rewards.items():
            self.begin(key, sum((reward - low) / (high - low) for reward in some), len(some))

    def success(self, key: str) -> float:
        """p; ½ for a prompt that was never seen."""
        a, b = self._count(key)
        return a / (a + b)

    def priorities(self, keys: Sequence[str]) -> list[float]:
        """How much each prompt deserves to be drawn.  √(p·(1 - p)) + 0.05."""
        return [math.sqrt(p * (1 - p)) + EXPLORE for p in map(self.success, keys)]

    def factor(self, drift: float) -> float:
        """f: what remains of the counts after the policy has moved so far."""
        if self.forget == "constant":
            return self.least
        return min(max(2 ** (-drift / self.half_life), self.least), self.most)

    def measure(self, log_ratio: Tensor, advantage: Tensor, weight: Tensor) -> Tensor:
        return torch.stack([(weight * log_ratio.abs()).sum(), weight.sum()])

    def learn(self, measured: Tensor) -> None:
        self.moved = measured[0].item() / max(measured[1].item(), torch.finfo(torch.float32).tiny)

    def told(self) -> dict[str, float]:
        rates = [self.success(key) for key in self.counts]
        return {"reward/tracked": sum(rates) / len(rates)} if rates else {}

    def update(self, rollout: Rollout) -> None:
        """Take in the rewards of a finished iteration."""
        reward, present, self.seen = self._scaled(rollout)
        found: dict[str, list[float]] = {}
        for key, value, there in zip(rollout.prompts.key, reward.tolist(), present.tolist(), strict=True):
            if there:
                found.setdefault(key, []).append(value)
        here = self.path + self.moved
        for key, rewards in found.items():
            a, b = self._count(key)
            keep = self.factor(here - self.visited[key] if key in self.visited else 0.0)
            self.counts[key] = (keep * a + sum(rewards), keep * b + len(rewards) - sum(rewards))
            self.visited[key] = self.path
        self.path, self.moved = here, 0.0

    def state_dict(self) -> dict[str, Any]:
        return {
            "counts": {key: list(pair) for key, pair in self.counts.items()},
            "visited": dict(self.visited),
            "path": self.path,
            "seen": list(self.seen),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts = {key: (a, b) for key, (a, b) in state["counts"].items()}
        self.visited, self.path, self.moved = dict(state["visited"]), state["path"], 0.0
        self.seen = (state["seen"][0], state["seen"][1])

    def _count(self, key: str) -> tuple[float, float]:
        return self.counts.get(key, (0.5, 0.5))

    def _scaled(self, rollout: Rollout) -> tuple[Tensor, Tensor, tuple[float, float]]:
        """(rewards in [0, 1], present, the range they are on)."""
        reward, present = row_reward(rollout, "SPO")
        low, high = self.seen
        if present.any():
            low, high = min(low, reward[present].min().item()), max(high, reward[present].max().item())
        return (reward - low) / (high - low), present, (low, high)


@dataclass(frozen=True)
class SPO:
    """Single-stream policy optimization (arXiv:2509.13232).  Tracked baseline, batch z-score; clip-higher by decision; no KL.

    Use with group_size 1 and prompts `priority`, which draw by what is tracked and give first estimates. Not the simple, segment
    or spectral methods of the same name.
    """

    low: Annotated[float, Field(gt=0)] = 0.2
    high: Annotated[float, Field(gt=0)] = 0.28
    forget: Literal["constant", "drift"] = "constant"  # the release's `rho.type`; drift is the paper's
    least: Annotated[float, Field(gt=0, lt=1)] = 0.875
    most: Annotated[float, Field(gt=0, lt=1)] = 0.96  # with forget=drift
    half_life: Annotated[float, Field(gt=0)] = 0.06  # mean |log ratio| that halves the counts, before clipping

    def objective(self) -> Objective:
        tracker = SuccessTracker(self.forget, self.least, self.most, self.half_life)
        return Objective(tracker, surrogate=Clip(self.low, self.high), weighting=by_decision)
