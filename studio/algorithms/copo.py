"""Two comparisons at once: of a prompt's samples with each other, and of prompts with each other where samples agree."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from studio.core import Clip, Objective
from studio.core.advantage import row_reward, spread
from studio.core.masked import TINY, group_stats, masked_mean, masked_std
from studio.core.surrogate import Clipped
from studio.errors import ConfigError
from studio.types import Rollout

Variant = Literal["only soft", "soft with zero", "soft with forced", "only zero", "only forced", "only global", "no global"]
LEAST = 1e-30  # a gate that keeps a decision without credit in the denominators
ROUNDING = 1e-6  # a local advantage that is 0 but for the rounding of float32 rewards
DIGITS = 6  # of a reward that stands for the answer of samples that are not texts


class Advantages(NamedTuple):
    """What COPO knows of every row, [B] float64."""

    local: Tensor  # against the prompt's other samples
    overall: Tensor  # the prompt against the other prompts
    share: Tensor  # u, of the local one


@dataclass(frozen=True)
class Consistency:
    """Two advantages per row and how much each counts, by how much the answers of the prompt differ.

    A_loc = (r - mean_g)/(std_g + eps);  R_g = mean_g, `scaled` times 1 - λH with λ = (1 - 1/n)/log₂n;  A_glob = z-score of R_g
    over prompts;  H = -Σ p·log₂p over answers;  u = σ(sharpness·(H - threshold)).  COPO (arXiv:2508.04138).
    Blended are objectives, u·S(r, A_loc) + (1-u)·S(r, A_glob). As S(r, A) is |A| times a function of the sign, that is one
    amount for each sign: P·S(r, 1) + N·S(r, -1).  The slot gives (P-N)/(P+N), and `amount`, the gate, P + N.
    """

    answer: str | None = None
    sharpness: float = 5.0
    threshold: float = 1.0
    scaled: bool = False
    variant: Variant = "soft with zero"
    eps: float = 1e-6

    def __call__(self, rollout: Rollout) -> Tensor:
        up, down = self._both(rollout)
        return spread((up - down) / (up + down).clamp(min=TINY), rollout)

    def amount(self, rollout: Rollout, advantage: Tensor) -> Tensor:
        """The gate P + N; rows without credit keep their place in the denominators."""
        up, down = self._both(rollout)
        return spread(up + down, rollout).clamp(min=LEAST)

    def advantages(self, rollout: Rollout) -> Advantages:
        reward, present = row_reward(rollout, "COPO")
        stats = group_stats(reward, rollout.group, present, ddof=1)
        local = torch.where(present, (reward - stats.mean) / (stats.std + self.eps).clamp(min=TINY), 0.0)
        bits, first = (x.to(reward.device) for x in self._entropy(rollout, reward, present))
        quality = stats.mean * (1 - _scale(stats.size) * bits) if self.scaled else stats.mean
        overall = (quality - masked_mean(quality, first)) / (masked_std(quality, first, ddof=1) + self.eps).clamp(min=TINY)
        return Advantages(local, torch.where(present, overall, 0.0), self._share(bits, reward, local))

    def _share(self, bits: Tensor, reward: Tensor, local: Tensor) -> Tensor:
        soft = torch.sigmoid(self.sharpness * (bits - self.threshold))
        one, equal = torch.ones_like(soft), local.abs() < ROUNDING
        return {
            "only soft": soft,
            "soft with zero": soft.masked_fill(reward == 0, 0.0),
            "soft with forced": soft.masked_fill(equal, 0.0),
            "only zero": one.masked_fill(reward == 0, 0.0),
            "only forced": one.masked_fill(equal, 0.0),
            "only global": 0 * one,
            "no global": one,
        }[self.variant]

    def _both(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """(P, N), [B] each."""
        local, overall, share = self.advantages(rollout)
        near, far = share * local, (1 - share) * overall
        return near.clamp(min=0) + far.clamp(min=0), (-near).clamp(min=0) + (-far).clamp(min=0)

    def _entropy(self, rollout: Rollout, reward: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Entropy of the answers of each row's prompt in bits [B], and the first present row of every prompt [B] bool."""
        groups, there = rollout.group.tolist(), present.tolist()
        answers: dict[int, Counter[str]] = {group: Counter() for group in groups}
        first = torch.zeros(len(groups), dtype=torch.bool)
        for b, answer in enumerate(self._answers(rollout, reward)):
            if there[b]:
                first[b] = not answers[groups[b]]
                answers[groups[b]][answer] += 1
        bits = {group: entropy_bits(list(found.values())) for group, found in answers.items()}
        return torch.tensor([bits[group] for group in groups], dtype=torch.float64), first

    def _answers(self, rollout: Rollout, reward: Tensor) -> list[str]:
        if not isinstance(rollout.samples, list):
            return [str(round(value, DIGITS) + 0.0) for value in reward.tolist()]  # -0.0 is 0.0
        if self.answer is None:
            return [text.strip() for text in rollout.samples]
        return [_last(re.compile(self.answer), text) for text in rollout.samples]


@dataclass(frozen=True)
class TwoSided(Clip):
    """Both signs of the clipped objective at once.  (1+A)/2·S(r, 1) + (1-A)/2·S(r, -1), A in [-1, 1] -> [B, T]."""

    def __call__(self, log_ratio: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
        up, down = (self.bounded(log_ratio, torch.full_like(advantage, sign)).exp() for sign in (1.0, -1.0))
        return ((1 + advantage) * up - (1 - advantage) * down) / 2

    def clipped(self, log_ratio: Tensor, advantage: Tensor) -> Clipped:
        up, down = (super(TwoSided, self).clipped(log_ratio, torch.full_like(advantage, sign)) for sign in (1.0, -1.0))
        pure = advantage.abs() == 1  # a decision counts as clipped when none of its parts has a gradient
        above = torch.where(pure, torch.where(advantage > 0, up.above, down.above), up.above & down.above)
        return Clipped(above, torch.where(pure, torch.where(advantage > 0, up.below, down.below), up.below & down.below))


def entropy_bits(counts: list[int]) -> float:
    """-Σ p·log₂p of p = counts / Σ counts; 0 of nothing."""
    whole = sum(counts)
    return -sum(n / whole * math.log2(n / whole) for n in counts)


def _scale(size: Tensor) -> Tensor:
    """λ = (1 - 1/n)/log₂n, so that n different answers leave 1/n of the reward; 0 for n = 1 -> [B]."""
    n = size.double().clamp(min=1)
    return (1 - 1 / n) / n.log2().clamp(min=TINY)


def _last(pattern: re.Pattern[str], text: str) -> str:
    """The last match, of its first group where it has one; nothing where nothing matches."""
    found = list(pattern.finditer(text))
    return found[-1].group(min(1, pattern.groups)) or "" if found else ""


@dataclass(frozen=True)
class COPO:
    """Consistency-aware policy optimization (arXiv:2508.04138).  Defaults are the release's preset.

    `only zero` and `only forced` are a *reconstruction* from their names: u is 0 or 1.
    """

    clip: Annotated[float, Field(gt=0)] = 0.2
    cap: Annotated[float, Field(gt=1)] | None = 3.0  # dual clip
    variant: Variant = "soft with zero"  # u is 0 where the reward is 0; forced: where A_loc is 0; the paper's is `only soft`
    sharpness: float = 5.0  # k; 20 in earlier scripts
    threshold: float = 1.0  # b, bits
    scaled: bool = False  # lower a prompt's reward by the disagreement of its answers: the paper's, off in the release
    answer: str | None = None  # regular expression whose last match in the text is the answer; None = the stripped text
    eps: Annotated[float, Field(ge=0)] = 1e-6  # added to standard deviations

    def __post_init__(self) -> None:
        if self.answer is not None:
            try:
                re.compile(self.answer)
            except re.error as error:
                raise ConfigError(
                    f"COPO: expected answer as a regular expression, got {self.answer!r} ({error}). Correct it."
                ) from error

    def objective(self) -> Objective:
        consistency = Consistency(self.answer, self.sharpness, self.threshold, self.scaled, self.variant, self.eps)
        return Objective(consistency, gate=consistency.amount, surrogate=TwoSided(self.clip, self.clip, self.cap))
