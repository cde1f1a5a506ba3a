"""Is the answer mathematically equal to the expected one? By the library math-verify."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from rewards.facts import Facts
from rewards.text.given import check_texts, needed
from rewards.text.worker import Worker
from rewards.weights import require
from studio.types import Prompts, Scores

LONGEST = 20_000  # characters of a completion that are read, from its end
GRACE = 3  # times the library's own limit, after which the process is killed


@dataclass(frozen=True)
class MathReward:
    """1 where the last answer of a completion equals info["answer"] as mathematics (1/2, 0.5, \\frac{1}{2}), else 0.

    The library works in a process of its own, because it bounds its time with signals; one that hangs all the same is killed
    and its answer counts as wrong, with part `math_timeout`.
    """

    seconds: Annotated[int, Field(ge=1)] = 3  # for reading an answer, and for comparing it

    name: ClassVar[str] = "math"
    reads: ClassVar[str] = "text"
    differentiable: ClassVar[bool] = False
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    license: ClassVar[str] = "Apache-2.0 (math-verify)"
    model_id: ClassVar[str | None] = None
    facts: ClassVar[Facts] = Facts("math-verify", "LaTeX or numbers in the completion, the last one counts", extra="math")

    def check(self, prompts: Prompts) -> None:
        """MissingError without the library, ConfigError for a prompt without an answer."""
        require("math_verify", self.name, "math")
        for row in range(len(prompts)):
            needed(self.name, prompts, row, "answer")

    def __call__(self, samples: list[str], prompts: Prompts) -> Scores:
        """Scores of completions [B]."""
        import torch

        check_texts(self.name, samples)
        require("math_verify", self.name, "math")
        answers = [self._equal(str(needed(self.name, prompts, row, "answer")), text) for row, text in enumerate(samples)]
        value = torch.tensor([float(answer == "true") for answer in answers])
        return Scores(value, None, {"math_timeout": torch.tensor([float(answer is None) for answer in answers])})

    def _equal(self, wanted: str, text: str) -> str | None:
        if text.strip() == wanted.strip():
            return "true"
        return worker().ask(json.dumps([wanted, text[-LONGEST:], self.seconds]), GRACE * self.seconds)


@lru_cache(maxsize=1)
def worker() -> Worker:
    """The one process that compares, started at the first question."""
    return Worker(Path(__file__).with_name("equal.py"))
