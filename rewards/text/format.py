"""Does a completion have the required form?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from rewards.facts import Facts
from rewards.text.given import check_texts
from studio.errors import ConfigError
from studio.types import Prompts, Scores


@dataclass(frozen=True)
class FormatReward:
    """1 where the whole completion matches a regular expression (a dot matches line ends too), else 0.

    Patterns with nested repetitions can take exponential time on an unlucky text; `longest` bounds what they are tried on.
    """

    pattern: str = r"[^#]*#[^#]+"  # the default is the form of the bundled tasks: working, mark, answer
    longest: int = 100_000  # characters; a longer completion scores 0

    name: ClassVar[str] = "format"
    reads: ClassVar[str] = "text"
    differentiable: ClassVar[bool] = False
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    license: ClassVar[str] = "Apache-2.0"
    model_id: ClassVar[str | None] = None
    facts: ClassVar[Facts] = Facts("regular expression", "the whole completion")

    def check(self, prompts: Prompts) -> None:
        """ConfigError for a pattern that does not compile."""
        compiled(self.pattern, self.name)

    def __call__(self, samples: list[str], prompts: Prompts) -> Scores:
        """Scores of completions [B]."""
        import torch

        check_texts(self.name, samples)
        pattern = compiled(self.pattern, self.name)
        fits = [len(text) <= self.longest and pattern.fullmatch(text) is not None for text in samples]
        return Scores(torch.tensor(fits, dtype=torch.float32))


def compiled(pattern: str, name: str) -> re.Pattern[str]:
    """A regular expression whose dot matches line ends; ConfigError when it is none."""
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as problem:
        raise ConfigError(
            f"reward {name!r}: expected a regular expression, got {pattern!r} ({problem}). Correct it, and mind YAML's quotes."
        ) from problem
