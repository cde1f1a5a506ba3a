"""Who deserves credit: rewards to advantages [B, T]. Statistics are float64, results float32, missing rows are 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from studio.core.masked import TINY, group_stats, masked_std, whiten
from studio.errors import RewardError
from studio.shapes import expect
from studio.types import Rollout


@dataclass(frozen=True)
class GroupRelative:
    """Reward against the mean of its group, in standard deviations.

    A_b = clip((r_b - mean_g) / (std + eps), ±clip), the same for every decision of the row -> [B, T]
    GRPO (arXiv:2402.03300); Dr. GRPO (arXiv:2503.20783) without the scale; Flow-GRPO (arXiv:2505.05470) with the std of
    all rewards.  Assumes at least two samples per prompt: a group of one has advantage 0.
    """

    scale: Literal["group", "global"] | None = "group"  # whose standard deviation divides; None = only centered
    ddof: int = 0  # 1 = unbiased variance
    eps: float = 1e-4  # added to the standard deviation
    clip: float | None = None  # bound on |A|

    def __call__(self, rollout: Rollout) -> Tensor:
        reward, present = row_reward(rollout, "GroupRelative")
        stats = group_stats(reward, rollout.group, present, self.ddof)
        advantage = torch.where(present, reward - stats.mean, 0.0)
        if self.scale is not None:
            std = stats.std if self.scale == "group" else masked_std(reward, present, self.ddof)
            advantage = advantage / (std + self.eps).clamp(min=TINY)
        if self.clip is not None:
            advantage = advantage.clamp(-self.clip, self.clip)
        return spread(advantage, rollout)


@dataclass(frozen=True)
class LeaveOneOut:
    """Reward against the mean of the other samples of its group.

    A_b = r_b - mean_{j≠b} r_j = n/(n-1) · (r_b - mean_g),  r_b = reward_b - kl·Σ_t (logp_old - logp_ref) -> [B, T]
    RLOO (arXiv:2402.14740).  A group of one has advantage 0.
    """

    kl: float = 0.0  # strength of the KL penalty inside the reward (β)

    @property
    def needs(self) -> frozenset[str]:
        return _penalty_needs(self.kl)

    def __call__(self, rollout: Rollout) -> Tensor:
        reward, present = row_reward(rollout, "LeaveOneOut")
        if self.kl:
            reward = reward - self.kl * drift_from_ref(rollout).sum(dim=1).to(reward.device)
        stats = group_stats(reward, rollout.group, present)
        factor = stats.size / (stats.size - 1).clamp(min=1)
        return spread(torch.where(present, factor * (reward - stats.mean), 0.0), rollout)


@dataclass(frozen=True)
class BatchWhitened:
    """Return to go, whitened over all live decisions of the batch.

    R_t = Σ_{k≥t} γ^(k-t) r_k,  A = (R - mean) / √(var + eps) -> [B, T]
    REINFORCE++ (arXiv:2501.03262); with `baseline`, rewards are first centered in their group (REINFORCE++-baseline).
    """

    gamma: float = 1.0  # discount per decision
    kl: float = 0.0  # strength of the KL penalty inside the reward
    baseline: bool = False  # center rewards [B] in their group first
    ddof: int = 0
    eps: float = 1e-8  # added to the variance

    @property
    def needs(self) -> frozenset[str]:
        return _penalty_needs(self.kl)

    def __call__(self, rollout: Rollout) -> Tensor:
        base = None
        if self.baseline:
            reward, present = row_reward(rollout, "BatchWhitened(baseline=True)")
            base = reward - group_stats(reward, rollout.group, present).mean
        reward = decision_reward(rollout, "BatchWhitened", kl=self.kl, row=base)
        returns = return_to_go(reward, rollout.mask, self.gamma)
        return whiten(returns, rollout.mask, self.ddof, self.eps).float()


@dataclass(frozen=True)
class GAE:
    """Generalized advantage estimate against the critic that was recorded while sampling.

    δ_t = r_t + γ·V_{t+1} - V_t,  A_t = δ_t + γ·λ·A_{t+1},  target_t = A_t + V_t -> [B, T]
    arXiv:1506.02438.  V_{t+1} is `rollout.after` where the policy recorded it: the value of the state that was reached, also
    where a time limit cut the episode, and 0 where the task ended; `rollout.ends` stops the trace. Without it a row ends
    after its last live decision with value 0. Dead decisions inside a row are skipped.
    """

    gamma: float = 0.99  # discount per decision
    lam: float = 0.95  # λ: 0 = one-step, 1 = whole return
    whiten: bool = False  # normalize over the live decisions of the batch; targets are never normalized
    kl: float = 0.0  # strength of the KL penalty inside the reward

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"value"}) | _penalty_needs(self.kl)

    def __call__(self, rollout: Rollout) -> Tensor:
        advantage = self._raw(rollout)
        return (whiten(advantage, rollout.mask) if self.whiten else advantage).float()

    def target(self, rollout: Rollout) -> Tensor:
        """What the critic should have said, [B, T]."""
        return torch.where(rollout.mask, self._raw(rollout) + _value(rollout), 0.0).float()

    def _raw(self, rollout: Rollout) -> Tensor:
        reward = decision_reward(rollout, "GAE", kl=self.kl)
        after = None if rollout.after is None else rollout.after.double()
        return generalized_advantage(reward, _value(rollout), rollout.mask, self.gamma, self.lam, after, rollout.ends)


def generalized_advantage(
    reward: Tensor,
    value: Tensor,
    mask: Tensor,
    gamma: float,
    lam: float,
    after: Tensor | None = None,
    ends: Tensor | None = None,
) -> Tensor:
    """A_t = r_t + γ·V_{t+1} - V_t + γ·λ·(1 - ends_t)·A_{t+1}, over live decisions only.  All [B, T] -> [B, T].

    V_{t+1} = after_t where it is given, else the value of the next live decision.
    """
    advantage = torch.zeros_like(value)
    later, value_later = torch.zeros_like(value[:, 0]), torch.zeros_like(value[:, 0])
    for t in reversed(range(value.shape[1])):
        live = mask[:, t]
        reached = value_later if after is None else after[:, t]
        trace = later if ends is None else later.masked_fill(ends[:, t], 0.0)
        now = reward[:, t] + gamma * reached - value[:, t] + gamma * lam * trace
        later, value_later = torch.where(live, now, later), torch.where(live, value[:, t], value_later)
        advantage[:, t] = torch.where(live, now, 0.0)
    return advantage


def return_to_go(reward: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """R_t = r_t + γ·R_{t+1} over live decisions.  reward, mask [B, T] -> [B, T]."""
    return generalized_advantage(reward, torch.zeros_like(reward), mask, gamma, lam=1.0)


def row_reward(rollout: Rollout, name: str) -> tuple[Tensor, Tensor]:
    """One finite reward per row and which rows have one: (reward [B] float64, 0 where missing; present [B] bool)."""
    rows = len(rollout.mask)
    hint = "Sum per-decision rewards or use GAE." if rollout.reward is not None else "Score the rollout first."
    return _finite(expect(rollout.reward, "B", name=f"{name}: reward", hint=hint, B=rows), rollout, name)


def decision_reward(rollout: Rollout, name: str, *, kl: float = 0.0, row: Tensor | None = None) -> Tensor:
    """A reward for every decision, minus kl·(logp_old - logp_ref); rewards [B] count at the last live decision.

    -> [B, T] float64.  `row` replaces rewards [B], for instance by centered ones.
    """
    rows, steps = rollout.mask.shape
    mask = rollout.mask
    if row is None and rollout.reward is not None and rollout.reward.ndim == 2:
        reward = expect(rollout.reward, "B T", name=f"{name}: reward", B=rows, T=steps)
        dense = torch.where(mask, _finite(reward, rollout, name)[0].to(mask.device), 0.0)
    else:
        row = row_reward(rollout, name)[0] if row is None else row
        last = steps - 1 - mask.flip(1).int().argmax(dim=1)
        at_end = torch.arange(steps, device=mask.device)[None] == last[:, None]
        dense = torch.where(at_end & mask, row.to(mask.device)[:, None], 0.0)
    return dense - kl * drift_from_ref(rollout) if kl else dense


def drift_from_ref(rollout: Rollout) -> Tensor:
    """logp_old - logp_ref of live decisions, 0 elsewhere: the k1 estimate of the KL in rewards -> [B, T] float64."""
    rows, steps = rollout.mask.shape
    old = expect(rollout.old.logp, "B T", name="KL in the reward: old.logp", B=rows, T=steps)
    ref = None if rollout.ref is None else rollout.ref.logp
    ref = expect(ref, "B T", name="KL in the reward: ref.logp", hint="Evaluate the reference first.", B=rows, T=steps)
    return torch.where(rollout.mask, old.double() - ref.double(), 0.0)


def spread(row: Tensor, rollout: Rollout) -> Tensor:
    """The same number for every decision of a row.  [B] -> [B, T] float32."""
    return row.to(rollout.mask.device, torch.float32)[:, None].expand(rollout.mask.shape)


def _finite(reward: Tensor, rollout: Rollout, name: str) -> tuple[Tensor, Tensor]:
    """(reward float64 with 0 where missing, present [B]); RewardError where a present reward is not a number."""
    present = torch.ones(len(reward), dtype=torch.bool, device=reward.device)
    if rollout.present is not None:
        present = rollout.present.to(reward.device)
    counts = present if reward.ndim == 1 else present[:, None] & rollout.mask.to(reward.device)
    reward = torch.where(counts, reward.double(), 0.0)
    if not torch.isfinite(reward).all():
        row = int((~torch.isfinite(reward)).nonzero()[0, 0])
        raise RewardError(f"{name}: reward of row {row} is not finite, expected a number. Mark the row as missing.")
    return reward, present


def _value(rollout: Rollout) -> Tensor:
    rows, steps = rollout.mask.shape
    value = expect(rollout.old.value, "B T", name="GAE: old.value", hint="Record it while sampling.", B=rows, T=steps)
    return torch.where(rollout.mask, value.double(), 0.0)


def _penalty_needs(kl: float) -> frozenset[str]:
    return frozenset({"logp", "ref"}) if kl else frozenset()
