"""Tokens that good and bad answers share are protected, and answers of an unsure policy are left out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from studio.core import Objective, by_sample, plain_ratio
from studio.core.advantage import row_reward
from studio.core.declare import needs
from studio.core.masked import group_stats
from studio.shapes import expect
from studio.types import Evaluation, Rollout

FACTOR = 2.0  # of a shared decision where A > 0; where A < 0 it is 0
Filter = Literal["initial", "always", "none"]


@needs("logp")
def on_policy_ratio(new: Evaluation, rollout: Rollout) -> Tensor:
    """Every rollout counts as the current policy's.  ℓ = log π_new - sg(log π_new): value 0, gradient of log π -> [B, T]."""
    rows, steps = rollout.mask.shape
    logp = expect(new.logp, "B T", name="on_policy_ratio: new.logp", B=rows, T=steps).float()
    return logp - logp.detach()


def by_prompt_sum(rollout: Rollout) -> Tensor:
    """Every prompt counts the same and its rows add up.  w = 1 / (prompts·length_b) -> [B, T], sum = rows per prompt."""
    live = rollout.mask.any(dim=1)
    prompts = max(1, len(torch.unique(rollout.group[live])))
    return by_sample(rollout) * live.sum() / prompts


def shared_runs(token: Tensor, live: Tensor, group: Tensor, sign: Tensor) -> tuple[Tensor, Tensor]:
    """Decisions that answers of both signs share: in a run from the first one on, and in a run up to the last one.

    Place t matches where rows of a group with sign > 0 and with sign < 0 hold the same token at t, counted from the front or
    from the back; a run is unbroken from its end.  token, live [B, T], group, sign [B] -> two of [B, T] bool
    """
    front = live.long().cumsum(dim=1) - 1
    back = live.sum(dim=1, keepdim=True) - 1 - front
    token = torch.where(live, token, 0).long()
    return _run(token, front, live, group, sign), _run(token, back, live, group, sign)


def _run(token: Tensor, place: Tensor, live: Tensor, group: Tensor, sign: Tensor) -> Tensor:
    steps, active = live.shape[1], live & (sign != 0)[:, None]
    group = torch.unique(group, return_inverse=True)[1][:, None]
    key = (group * steps + place) * (token.max() + 1) + token
    _, index = torch.unique(key[active], return_inverse=True)
    signs = sign[:, None].expand(live.shape)[active]
    found = signs.new_zeros(len(index))
    both = (found.scatter_reduce(0, index, signs, "amax") > 0) & (found.scatter_reduce(0, index, signs, "amin") < 0)
    match = torch.zeros_like(live).masked_scatter(active, both[index]).long()
    place = torch.where(live, place, steps)  # dead decisions meet in a column of their own
    ordered = match.new_zeros(len(live), steps + 1).scatter(1, place, match)
    return (ordered.cumprod(dim=1).gather(1, place) > 0) & live


@needs("token", "entropy")
@dataclass
class TrajectoryCredit:
    """Centered rewards less entropy, times the protection of shared decisions.  d_b·(A_b - gamma·H_b)·f(F)·f(E) -> [B, T].

    A_b = r_b - mean_g,  H_b the mean entropy of the row's decisions when sampled,  f(S) = 2 where A_b > 0 and 0 where
    A_b < 0 inside of S, else 1;  F, E are `shared_runs` by the sign of A.  d_b drops unsure rows; they keep their weight.
    """

    gamma: float
    threshold: float
    filter: Filter
    conflict_norm: bool
    initial: float | None = None  # mean H of the first batch, which decides for the whole run whether rows are dropped

    def __call__(self, rollout: Rollout) -> Tensor:
        reward, present = row_reward(rollout, "TrajectoryCredit")
        mean = group_stats(reward, rollout.group, present).mean
        centered = torch.where(present, reward - mean, 0.0).to(rollout.mask.device)
        unsure = row_entropy(rollout)
        shaped = torch.where(self._kept(unsure, rollout), centered - self.gamma * unsure, 0.0)
        return (shaped[:, None] * self.factor(rollout, centered.sign())).float()

    def factor(self, rollout: Rollout, sign: Tensor) -> Tensor:
        """f(F)·f(E), and with `conflict_norm` over the number of shared decisions of the row -> [B, T] float64."""
        rows, steps = rollout.mask.shape
        token = expect(rollout.old.token, "B T", name="TrajectoryCredit: old.token", B=rows, T=steps)
        first, last = shared_runs(token, rollout.mask, rollout.group, sign)
        inside = torch.where(sign > 0, FACTOR, 0.0)[:, None].double()
        factor = torch.where(first, inside, 1.0) * torch.where(last, inside, 1.0) * rollout.mask
        return factor / (first | last).sum(dim=1, keepdim=True).clamp(min=1) if self.conflict_norm else factor

    def update(self, rollout: Rollout) -> None:
        if self.initial is None:
            self.initial = batch_entropy(rollout)

    def state_dict(self) -> dict[str, Any]:
        return {"initial": self.initial}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.initial = state["initial"]

    def _kept(self, unsure: Tensor, rollout: Rollout) -> Tensor:
        initial = batch_entropy(rollout) if self.initial is None else self.initial
        if self.filter == "none" or (self.filter == "initial" and initial > self.threshold):
            return torch.ones_like(unsure, dtype=torch.bool)
        return unsure <= self.threshold


def row_entropy(rollout: Rollout) -> Tensor:
    """Mean entropy of the live decisions of a row when they were sampled, 0 without any -> [B] float64."""
    rows, steps = rollout.mask.shape
    entropy = expect(rollout.old.entropy, "B T", name="TrajectoryCredit: old.entropy", B=rows, T=steps)
    return torch.where(rollout.mask, entropy.double(), 0.0).sum(dim=1) / rollout.mask.sum(dim=1).clamp(min=1)


def batch_entropy(rollout: Rollout) -> float:
    """Mean of `row_entropy` over rows that have a reward and live decisions."""
    live = rollout.mask.any(dim=1)
    if rollout.present is not None:
        live = live & rollout.present.to(live.device)
    return (row_entropy(rollout) * live).sum().item() / max(1, int(live.sum()))


@dataclass(frozen=True)
class GTPO:
    """GTPO, trajectory-based (arXiv:2508.03772).  loss = -(1/rows)·Σ_b (A'_b/length_b)·Σ_t λ[b, t]·r, r = π/sg(π), no KL.

    Defaults are the paper's formula. The release is `threshold: 0.7, filter: always, conflict_norm: true, group_reduce: sum`;
    its count of shared decisions joins the two runs before it turns the second one back, ours afterwards. That the
    entropy of the initial policy is the mean over the first batch is a *reconstruction*.
    """

    gamma: Annotated[float, Field(ge=0)] = 0.1  # γ, strength of a row's entropy in its advantage; paper and release
    threshold: Annotated[float, Field(ge=0)] = math.log(2)  # nats, largest entropy of a row that trains; release 0.7
    filter: Filter = "initial"  # initial: drop unsure rows if the policy began below the threshold; always: release
    conflict_norm: bool = False  # divide a row by its number of shared decisions, at least 1; the release does
    group_reduce: Literal["mean", "sum"] = "mean"  # over the rows of a prompt; the release sums

    def objective(self) -> Objective:
        return Objective(
            TrajectoryCredit(self.gamma, self.threshold, self.filter, self.conflict_norm),
            ratio=on_policy_ratio,
            surrogate=plain_ratio,
            weighting=by_sample if self.group_reduce == "mean" else by_prompt_sum,
        )
