"""Shorter than the shortest right answer so far: a length reward that learns each problem's length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from rewards.facts import Facts
from rewards.score import check_prompts
from rewards.text.given import check_texts, length_of, reward_named, scores_of
from rewards.text.memory import How, Memory
from studio.types import Prompts, Rollout, Scores


@dataclass(frozen=True)
class HistoryLength:
    """HAPO (arXiv:2505.11225): 1[right] + strength·r + repetition, r from the length L against h, the shortest right one so far.

    cosine  c = cos(min(π, π·L / 2h));  r = max(-0.7, c) if right, min(0, c) if wrong
    linear  with s = 1 + tolerance:  right 1 - L/h below h, 0 up to s·h, then max(-0.7, -(L - s·h)/h);
            wrong 0 up to s·h, then max(-1, -(L - s·h)/h)
    r = 0 while no right answer is known, so that any right answer (>= 0.3) beats any wrong one (<= 0) for strength <= 1.

    `update` learns the right lengths of a whole iteration after it was scored, so that all completions of one batch meet
    the same h on every rank.  Parts: history_correct, history_tokens, history_reward.
    """

    correct: str = "task"  # the reward that says which answers are right
    options: dict[str, Any] = field(default_factory=dict)  # of that reward
    threshold: float = 1.0  # its score from which on an answer is right
    form: Literal["cosine", "linear"] = "cosine"
    keep: How = "shortest"  # what of the right lengths is remembered: the shortest or their mean
    strength: Annotated[float, Field(ge=0, le=1)] = 1.0  # w
    tolerance: float = 0.1  # of the linear form
    repetition: Annotated[float, Field(le=0)] = 0.0  # punishment per word inside a repeated three-word sequence, averaged
    memory: Memory = field(default_factory=Memory, init=False, repr=False, compare=False)

    name: ClassVar[str] = "history_length"
    reads: ClassVar[str] = "text"
    differentiable: ClassVar[bool] = False
    license: ClassVar[str] = "Apache-2.0"
    model_id: ClassVar[str | None] = None
    facts: ClassVar[Facts] = Facts("HAPO (arXiv:2505.11225)", "length in tokens, else in characters", "0.3 to 2 for right answers")

    @property
    def range(self) -> tuple[float, float]:
        return (-self.strength + self.repetition, 1.0 + self.strength)

    def check(self, prompts: Prompts) -> None:
        """ConfigError when the reward that judges answers cannot work with these prompts."""
        check_prompts({self.correct: reward_named(self.correct, self.options, f"reward {self.name!r}")}, prompts)

    def __call__(self, samples: list[str], prompts: Prompts) -> Scores:
        """Scores of completions [B] against what is remembered now; missing where the judge has none."""
        import torch

        check_texts(self.name, samples)
        judged = scores_of(reward_named(self.correct, self.options, f"reward {self.name!r}"), samples, prompts)
        right = (judged.value >= self.threshold).tolist()
        lengths = [length_of(text, info) for text, info in zip(samples, prompts.info, strict=True)]
        known = [self.memory.get(key) for key in prompts.key]
        by_length = torch.tensor([self._by_length(*row) for row in zip(lengths, known, right, strict=True)])
        again = torch.tensor([self.repetition * repeated(text.split()) if self.repetition else 0.0 for text in samples])
        correct = torch.tensor(right, dtype=torch.float32)
        parts = {"history_correct": correct, "history_tokens": torch.tensor(lengths).float(), "history_reward": by_length}
        return Scores(correct + self.strength * by_length + again, judged.present, parts)

    def update(self, rollout: Rollout) -> None:
        """Remember the right lengths of an iteration (the global batch, with the parts of this reward)."""
        self.memory.learn(rollout, "history_correct", "history_tokens", self.keep)

    def state_dict(self) -> dict[str, Any]:
        return self.memory.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.memory.load_state_dict(state)

    def _by_length(self, length: int, known: float | None, right: bool) -> float:
        if known is None:
            return 0.0
        return cosine_length(length, known, right) if self.form == "cosine" else linear_length(length, known, right, self.tolerance)


def cosine_length(length: float, known: float, right: bool) -> float:
    """cos(min(π, π·L / 2h)), at least -0.7 for a right answer and at most 0 for a wrong one."""
    c = math.cos(min(math.pi, math.pi / 2 * length / max(known, 1e-9)))
    return max(-0.7, c) if right else min(0.0, c)


def linear_length(length: float, known: float, right: bool, tolerance: float = 0.1) -> float:
    """1 - L/h for shorter right answers, 0 within the tolerance, then falling: to -0.7 when right, to -1 when wrong."""
    known = max(known, 1e-9)
    if right and length < known:
        return 1 - length / known
    beyond = (length - (1 + tolerance) * known) / known
    return 0.0 if beyond < 0 else max(-0.7 if right else -1.0, -beyond)


def repeated(words: Sequence[str], size: int = 3) -> float:
    """Share of words that lie in a sequence of `size` words which stood in the text before."""
    seen: set[tuple[str, ...]] = set()
    inside: set[int] = set()
    for at in range(len(words) - size + 1):
        some = tuple(words[at : at + size])
        if some in seen:
            inside.update(range(at, at + size))
        seen.add(some)
    return len(inside) / len(words) if words else 0.0
