"""Prompts from text or JSONL files."""

from __future__ import annotations

from dataclasses import dataclass, field

from studio.prompts.order import Shuffled
from studio.prompts.read import read_prompts
from studio.prompts.select import Lists, Select, first, lists
from studio.types import Prompts

__all__ = ["FilePrompts", "Shuffled", "read_prompts"]


@dataclass(frozen=True)
class FilePrompts:
    """One prompt per line (.txt), or one object per line with `prompt` and whatever the rewards need (.jsonl)."""

    train: str
    test: str | None = None  # held-out prompts; None = those that select.test_fraction holds out of train
    select: Select = field(default_factory=Select)

    def check(self) -> list[str]:
        return self._lists().check()

    def build(self, seed: int) -> Shuffled:
        return self._lists().build(seed)

    def held_out(self, count: int) -> Prompts:
        """The first `count` test prompts."""
        return first(self._lists().held_out(), count)

    def _lists(self) -> Lists:
        return lists(read_prompts, self.train, self.test, self.select)
