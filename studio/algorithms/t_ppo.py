"""PPO on answers that a window cut short: the policy learns from all of them, the critic from those that ended."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from studio.core import GAE, Clip, Objective, ValueLoss, by_decision
from studio.shapes import expect
from studio.types import Credit, Evaluation, Rollout


@dataclass
class ExtendedGAE:
    """GAE whose rows may be cut: where the window ended, the state that was reached is worth what the last one was.

    δ_t = r_t + γ·V_{t+1} - V_t,  V after the last decision = V of the last decision if the row was cut, else 0 -> [B, T]
    EGAE, T-PPO (arXiv:2506.15050).  `target` is the Monte-Carlo return (λ = 1); of cut rows nothing is learned from it, and a
    reward of the whole row is not theirs yet: it counts when they have ended.  Decisions of earlier windows have no advantage.
    Where the policy recorded what it reached (`rollout.after`) that counts instead.
    """

    gamma: float = 1.0
    lam: float = 0.95
    whiten: bool = False
    warmup: int = 0  # iterations without advantages, for the critic alone
    done: int = 0  # iterations that are done

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"value"})

    def __call__(self, rollout: Rollout) -> Tensor:
        if self.done < self.warmup:
            return torch.zeros(rollout.mask.shape, device=rollout.mask.device)
        rollout = replace(rollout, mask=_fresh(rollout), reward=_earned(rollout))
        if rollout.after is None:
            rollout = replace(rollout, after=self._reached(rollout))
        return GAE(self.gamma, self.lam, self.whiten)(rollout)

    def target(self, rollout: Rollout) -> Tensor:
        """What the critic should have said of rows that ended, [B, T]."""
        return GAE(self.gamma, 1.0).target(rollout)

    def update(self, rollout: Rollout) -> None:
        self.done += 1

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done = state["done"]

    def _reached(self, rollout: Rollout) -> Tensor:
        """Value of the state that each live decision led to -> [B, T]."""
        rows, steps = rollout.mask.shape
        value = expect(rollout.old.value, "B T", name="T-PPO: old.value", hint="Record it while sampling.", B=rows, T=steps)
        last = value.gather(1, steps - 1 - rollout.mask.flip(1).int().argmax(dim=1, keepdim=True))[:, 0]
        later = torch.where(_cut(rollout), last, 0.0)
        reached = torch.zeros_like(value)
        for t in reversed(range(steps)):
            reached[:, t] = later
            later = torch.where(rollout.mask[:, t], value[:, t], later)
        return reached


def policy_share(rollout: Rollout, advantage: Tensor) -> Tensor:
    """2·w_policy / (w_policy + w_critic): undoes for the surrogate that `for_both` makes rows that ended count more -> [B, T].

    The critic's share is 2 minus this one, so one number per decision serves both; 1 everywhere in a batch without cut rows.
    """
    for_policy, for_critic = _for_policy(rollout), _for_critic(rollout)
    share = 2 * for_policy / (for_policy + for_critic)
    # of earlier windows only the critic learns, and the policy has no advantage there; at 0 they would leave altogether
    return torch.where(rollout.mask, share.clamp(min=torch.finfo(share.dtype).tiny), 1.0)


def for_both(rollout: Rollout) -> Tensor:
    """The mean of two weightings by decision: over this window's, for the policy, and over rows that ended, for the critic."""
    return (_for_policy(rollout) + _for_critic(rollout)) / 2


@dataclass(frozen=True)
class EndedValueLoss(ValueLoss):
    """The mean squared error over the decisions of rows that ended; 0 at cut rows.  ValueLoss·(2 - gate) -> [B, T]."""

    def __call__(self, new: Evaluation, rollout: Rollout, credit: Credit) -> Tensor:
        return (2 - credit.gate) * super().__call__(new, rollout, credit)


def _for_policy(rollout: Rollout) -> Tensor:
    return by_decision(replace(rollout, mask=_fresh(rollout)))


def _for_critic(rollout: Rollout) -> Tensor:
    return by_decision(replace(rollout, mask=rollout.mask & ~_cut(rollout)[:, None]))


def _fresh(rollout: Rollout) -> Tensor:
    """Decisions of this window: those behind the tokens that info["window"] says were written before -> [B, T] bool."""
    before = [len(info["window"]["token"]) if "window" in info else 0 for info in rollout.prompts.info]
    if not any(before):
        return rollout.mask
    at = torch.arange(rollout.mask.shape[1], device=rollout.mask.device)
    return rollout.mask & (at >= torch.tensor(before, device=at.device)[:, None])


def _earned(rollout: Rollout) -> Tensor | None:
    """Rewards [B] of rows that ended, 0 of cut ones; rewards by decision [B, T] as they are."""
    reward = rollout.reward
    return reward if reward is None or reward.ndim == 2 else torch.where(_cut(rollout).to(reward.device), 0.0, reward)


def _cut(rollout: Rollout) -> Tensor:
    none = torch.zeros(len(rollout.mask), dtype=torch.bool, device=rollout.mask.device)
    return none if rollout.cut is None else rollout.cut.to(none.device)


@dataclass(frozen=True)
class TPPO:
    """T-PPO (arXiv:2506.15050).  EGAE on all decisions of the window, clip; value loss on the rows that ended, by decision.

    A *reconstruction* from the paper's summaries.  With prompts `windows` a cut row goes on in the next iteration: the policy
    learns from the tokens of this window, the critic from all tokens of rows that ended. A policy that masks cut rows
    altogether (train_cut of text) leaves plain PPO.  Give the critic a head start (warmup), or cut rows carry next to no signal.
    """

    clip: Annotated[float, Field(gt=0)] = 0.2
    gamma: Annotated[float, Field(ge=0, le=1)] = 1.0
    lam: Annotated[float, Field(ge=0, le=1)] = 0.95  # λ of the policy; the critic's is 1
    whiten: bool = True  # common practice, verl's default; the paper's choice was not found
    value: Annotated[float, Field(ge=0)] = 1.0  # strength of ½·(v - R)², not clipped
    warmup: Annotated[int, Field(ge=0)] = 0  # iterations that train the critic only; the paper's number was not found

    def objective(self) -> Objective:
        return Objective(
            ExtendedGAE(self.gamma, self.lam, self.whiten, self.warmup),
            gate=policy_share,
            surrogate=Clip(self.clip, self.clip),
            weighting=for_both,
            critic=EndedValueLoss(self.value),
        )
