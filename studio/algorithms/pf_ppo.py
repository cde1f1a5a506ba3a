"""PPO on the samples whose rewards can be trusted: the best and the worst of each prompt, not those in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from studio.core import GAE, Clip, Objective, ValueLoss, by_decision
from studio.core.advantage import decision_reward, return_to_go
from studio.core.declare import needs_of
from studio.core.draws import row_draws
from studio.types import Credit, Evaluation, Rollout

Keep = Literal["BoN", "BR", "BW", "pow"]
BEST, OTHER = 0.4, 0.1  # weights of BR when rows are drawn


@dataclass(frozen=True)
class RewardFilter:
    """How often each row takes part, by the rank of its reward among those of its prompt, or of the batch.

    BoN: the best · BR: the best and one other at random · BW: the best and the worst.  `draw`, and always pow: as many rows as
    there were, with replacement, with weights 1 and 0, 0.4 and 0.1, or |r|^power; tied rows weigh the same.
    PF-PPO (arXiv:2409.06957).  Ties are broken at random, at the lowest index where rows are equal in everything.
    As a gate: the number of times, over its mean by decision over the rows that take part -> [B, T].
    """

    keep: Keep = "BR"
    over: Literal["prompt", "batch"] = "prompt"
    draw: bool = False
    power: float = 2.0
    seed: int = 0

    def __call__(self, rollout: Rollout, advantage: Tensor) -> Tensor:
        times = self.times(rollout)[:, None] * rollout.mask
        mean = times.sum() / (times > 0).sum().clamp(min=1)
        return (times / mean.clamp(min=1)).float()

    def times(self, rollout: Rollout) -> Tensor:
        """How often each row takes part -> [B] float64."""
        score = decision_reward(rollout, "PF-PPO").sum(dim=1).tolist()
        live = rollout.mask.any(dim=1)
        if rollout.present is not None:
            live = live & rollout.present.to(live.device)
        pools: dict[int, list[int]] = {}
        for b, (group, there) in enumerate(zip(rollout.group.tolist(), live.tolist(), strict=True)):
            if there:
                pools.setdefault(group if self.over == "prompt" else 0, []).append(b)
        tie, pick = (row_draws(rollout, f"pf_ppo/{self.seed}/{what}").tolist() for what in ("tie", "pick"))
        times = torch.zeros(len(score), dtype=torch.float64)
        for rows in pools.values():
            drawn = self.draw or self.keep == "pow"
            for b in self._drawn(rows, score, pick) if drawn else self._kept(rows, score, tie, pick):
                times[b] += 1
        return times.to(rollout.mask.device)

    def _kept(self, rows: list[int], score: list[float], tie: list[float], pick: list[float]) -> list[int]:
        best = min(rows, key=lambda b: (-score[b], tie[b], b))
        rest = [b for b in rows if b != best]
        if not rest or self.keep == "BoN":
            return [best]
        return [best, min(rest, key=lambda b: (pick[b], b) if self.keep == "BR" else (score[b], tie[b], b))]

    def _drawn(self, rows: list[int], score: list[float], pick: list[float]) -> list[int]:
        order = sorted(rows, key=lambda b: (pick[b], b))  # the same draws whatever the order of rows
        own = torch.Generator().manual_seed(int(pick[order[0]] * 2**53))
        weight = draw_weights(torch.tensor([score[b] for b in order], dtype=torch.float64), self.keep, self.power)
        return [order[i] for i in torch.multinomial(weight, len(rows), replacement=True, generator=own).tolist()]


def draw_weights(score: Tensor, keep: Keep, power: float = 2.0) -> Tensor:
    """What each row of a pool weighs when rows are drawn.  score [N] -> [N] float64; all alike where all would be 0."""
    best, worst = score == score.max(), score == score.min()
    weight = {
        "BoN": best.double(),
        "BR": torch.where(best, BEST, OTHER).double(),
        "BW": (best | worst).double(),
        "pow": score.double().abs() ** power,
    }[keep]
    return weight if weight.sum() > 0 else torch.ones_like(weight)


@dataclass(frozen=True)
class Filtered:
    """GAE, or without a critic the return to go, whitened over what the filter lets through.

    (x - mean)/√(var + 1e-8), each row counted as often as it takes part -> [B, T]
    """

    chosen: RewardFilter
    estimate: GAE
    critic: bool = True

    @property
    def needs(self) -> frozenset[str]:
        return needs_of(self.estimate) - (frozenset() if self.critic else {"value"})

    def __call__(self, rollout: Rollout) -> Tensor:
        if self.critic:
            raw = self.estimate(rollout).double()
        else:
            raw = return_to_go(decision_reward(rollout, "PF-PPO", kl=self.estimate.kl), rollout.mask, self.estimate.gamma)
        times = self.chosen.times(rollout)[:, None] * rollout.mask
        count = times.sum().clamp(min=1)
        off = torch.where(rollout.mask, raw - (times * raw).sum() / count, 0.0)
        return (off / ((times * off.square()).sum() / count + 1e-8).sqrt()).float()

    def target(self, rollout: Rollout) -> Tensor:
        """What the critic should have said, [B, T]."""
        return self.estimate.target(rollout)


@dataclass(frozen=True)
class CountedValueLoss(ValueLoss):
    """The value loss of rows that take part several times.  gate·ValueLoss -> [B, T]."""

    def __call__(self, new: Evaluation, rollout: Rollout, credit: Credit) -> Tensor:
        return credit.gate * super().__call__(new, rollout, credit)


@dataclass(frozen=True)
class PFPPO:
    """Policy filtration PPO (arXiv:2409.06957).  Filter per prompt before advantages are whitened; clip; value loss on the rest.

    BR was best on HumanEval and LeetCode, BW on MBPP, BoN worst; the better filter has rewards that predict true scores
    better on what it keeps. verl's max_min and max_random are BW and BR with over=batch, draw=true.
    """

    keep: Keep = "BR"  # best and one at random; pow draws by |r|^power
    over: Literal["prompt", "batch"] = "prompt"  # verl filters the whole batch
    draw: bool = False  # draw rows by weights, with replacement, instead of keeping one or two
    power: Annotated[float, Field(ge=0)] = 2.0  # of pow
    critic: bool = True  # False: return to go instead of GAE, for policies without a value
    clip: Annotated[float, Field(gt=0)] = 0.2
    gamma: Annotated[float, Field(ge=0, le=1)] = 1.0
    lam: Annotated[float, Field(ge=0, le=1)] = 0.95  # OpenRLHF's, which the release is built on
    value: Annotated[float, Field(ge=0)] = 1.0  # strength of ½·(v - R)²
    value_clip: Annotated[float, Field(gt=0)] | None = 0.2  # ibid.
    kl: Annotated[float, Field(ge=0)] = 0.01  # strength of the k1 KL inside the reward
    seed: int = 0  # of random choices

    def objective(self) -> Objective:
        chosen = RewardFilter(self.keep, self.over, self.draw, self.power, self.seed)
        return Objective(
            Filtered(chosen, GAE(self.gamma, self.lam, kl=self.kl), self.critic),
            gate=chosen,
            surrogate=Clip(self.clip, self.clip),
            weighting=by_decision,
            critic=CountedValueLoss(self.value, self.value_clip) if self.critic else None,
        )
