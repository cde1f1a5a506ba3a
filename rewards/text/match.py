"""Is the answer the expected one, letter for letter? And how many words two texts share."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from rewards.facts import Facts
from rewards.text.format import compiled
from rewards.text.given import check_texts, needed
from studio.types import Prompts, Scores


@dataclass(frozen=True)
class ExactMatch:
    """1 where the answer equals info[field], or one of its values if that is a list; else 0."""

    field: str = "answer"
    extract: str = ""  # regular expression; the first group of its last match is the answer; empty = the whole completion
    ignore_case: bool = False
    ignore_space: bool = True  # around the answer, and how much of it between words

    name: ClassVar[str] = "exact_match"
    reads: ClassVar[str] = "text"
    differentiable: ClassVar[bool] = False
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    license: ClassVar[str] = "Apache-2.0"
    model_id: ClassVar[str | None] = None
    facts: ClassVar[Facts] = Facts("string comparison", "the extracted answer, blanks and case as configured")

    def check(self, prompts: Prompts) -> None:
        """ConfigError for a pattern that does not compile or a prompt without an answer."""
        compiled(self.extract, self.name)
        for row in range(len(prompts)):
            needed(self.name, prompts, row, self.field)

    def __call__(self, samples: list[str], prompts: Prompts) -> Scores:
        """Scores of completions [B]."""
        import torch

        check_texts(self.name, samples)
        pattern = compiled(self.extract, self.name)
        right = []
        for row, text in enumerate(samples):
            wanted = needed(self.name, prompts, row, self.field)
            wanted = wanted if isinstance(wanted, list | tuple) else [wanted]
            found = extracted(text, pattern)
            right.append(found is not None and self._plain(found) in {self._plain(str(one)) for one in wanted})
        return Scores(torch.tensor(right, dtype=torch.float32))

    def _plain(self, text: str) -> str:
        text = " ".join(text.split()) if self.ignore_space else text
        return text.casefold() if self.ignore_case else text


def extracted(text: str, pattern: re.Pattern[str]) -> str | None:
    """The first group (or all) of the last match in a completion; None without one, the whole text for an empty pattern."""
    if not pattern.pattern:
        return text
    matches = list(pattern.finditer(text))
    return None if not matches else matches[-1].group(1 if pattern.groups else 0)


def token_f1(found: str, wanted: str) -> float:
    """Harmonic mean of precision and recall of the words two texts share, counted with repetitions; 1 if neither has any."""
    a, b = (Counter(re.findall(r"\w+", text.casefold())) for text in (found, wanted))
    if not a or not b:
        return float(a == b)
    return 2 * (a & b).total() / (a.total() + b.total())
