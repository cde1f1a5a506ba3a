"""A soft punishment of completions that come near the length limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rewards.facts import Facts
from rewards.text.given import check_texts, length_of
from studio.errors import ConfigError
from studio.types import Prompts, Scores


@dataclass(frozen=True)
class LengthReward:
    """0 for L <= limit - cache,  (limit - cache - L) / cache up to the limit,  -1 beyond it (DAPO, arXiv:2503.14476).

    L is in tokens where info["tokens"] tells them, else in characters.
    """

    limit: int = 20_480  # DAPO's 16384 expected tokens and its cache
    cache: int = 4_096  # DAPO

    name: ClassVar[str] = "length"
    reads: ClassVar[str] = "text"
    differentiable: ClassVar[bool] = False
    range: ClassVar[tuple[float, float]] = (-1.0, 0.0)
    license: ClassVar[str] = "Apache-2.0"
    model_id: ClassVar[str | None] = None
    facts: ClassVar[Facts] = Facts("DAPO (arXiv:2503.14476)", "length in tokens, else in characters", "0 for short ones")

    def check(self, prompts: Prompts) -> None:
        """ConfigError for a cache that does not fit."""
        if not 0 < self.cache <= self.limit:
            raise ConfigError(
                f"reward 'length': expected 0 < cache <= limit, got cache {self.cache} and limit {self.limit}. Change one."
            )

    def __call__(self, samples: list[str], prompts: Prompts) -> Scores:
        """Scores of completions [B]; part `length_used`."""
        import torch

        check_texts(self.name, samples)
        lengths = [length_of(text, info) for text, info in zip(samples, prompts.info, strict=True)]
        value = torch.tensor([overlong(length, self.limit, self.cache) for length in lengths])
        return Scores(value, None, {"length_used": torch.tensor(lengths, dtype=torch.float32)})


def overlong(length: int, limit: int, cache: int) -> float:
    """0 below limit - cache, then linear to -1 at the limit, -1 beyond."""
    return -1.0 if length > limit else min(0.0, (limit - cache - length) / cache)
