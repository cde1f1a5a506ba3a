"""Which of the prompts are trained on, which are held out, how repetitions count, and how often each one is drawn."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from studio.errors import ConfigError
from studio.prompts.order import Shuffled
from studio.types import Prompts

NONE = Prompts([], [], [])


@dataclass(frozen=True)
class Select:
    """How a list of prompts is used; the defaults take it as it is."""

    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share held out of the training list; 0 = none
    split_seed: int = 0  # another seed holds out other prompts; the run's own seed does not
    duplicates: Literal["keep", "drop"] = "keep"  # of prompts with the same key; drop keeps the first
    weight: str | None = None  # field of a record with its share of the draws; None = all alike


@dataclass(frozen=True)
class Lists:
    """The training and the test prompts of a source, each read when it is asked for."""

    train: Callable[[], Prompts]
    test: Callable[[], Prompts] | None  # None = those that `how` holds out of train
    how: Select

    def build(self, seed: int) -> Shuffled:
        prompts = self._once(self._trained())
        if not len(prompts):
            raise ConfigError("recipe.prompts: expected prompts to train on, got all of them held out. Lower select.test_fraction.")
        return Shuffled(prompts, seed, None if self.how.weight is None else weights_of(prompts, self.how.weight))

    def held_out(self) -> Prompts:
        return self._once(self._tested())

    def check(self) -> list[str]:
        """What a user should know: repetitions, and test prompts that are trained on. ConfigError for what cannot be used."""
        self.build(0)
        train, test = self._trained(), self._tested()
        notes = []
        for name, part in (("train", train), ("test", test)):
            repeated = len(part) - len(set(part.key))
            if repeated:
                done = "dropped" if self.how.duplicates == "drop" else "kept; prompts.select.duplicates=drop drops them"
                notes.append(f"prompts: {repeated} of {len(part)} {name} prompts repeat an earlier one ({done})")
        shared = len(set(train.key) & set(test.key))
        return notes + ([f"prompts: {shared} test prompts are also trained on, so they are not held out"] if shared else [])

    def _trained(self) -> Prompts:
        if self.test is not None and self.how.test_fraction:
            raise ConfigError("recipe.prompts: expected test or select.test_fraction, got both. Remove one of them.")
        return split(self.train(), self.how.test_fraction, self.how.split_seed)[0]

    def _tested(self) -> Prompts:
        if self.test is not None:
            return self.test()
        return split(self.train(), self.how.test_fraction, self.how.split_seed)[1] if self.how.test_fraction else NONE

    def _once(self, prompts: Prompts) -> Prompts:
        return without_repetitions(prompts) if self.how.duplicates == "drop" else prompts


def lists(read: Callable[[str], Prompts], train: str, test: str | None, how: Select) -> Lists:
    """The lists of two files, or of two folders, that `read` understands."""
    return Lists(lambda: read(train), None if test is None else lambda: read(test), how)


def held_out_by_hash(key: str, fraction: float, seed: int) -> bool:
    """u(key) < fraction, with u uniform in [0, 1) from a seeded hash: neither the order of a file nor its growth moves a prompt."""
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < fraction


def split(prompts: Prompts, fraction: float, seed: int = 0) -> tuple[Prompts, Prompts]:
    """(train, test); prompts with the same key are on the same side."""
    test = [held_out_by_hash(key, fraction, seed) for key in prompts.key]
    return prompts.take([i for i, out in enumerate(test) if not out]), prompts.take([i for i, out in enumerate(test) if out])


def without_repetitions(prompts: Prompts) -> Prompts:
    """The first prompt of every key, in order."""
    first = {key: i for i, key in reversed(list(enumerate(prompts.key)))}
    return prompts.take(sorted(first.values()))


def first(prompts: Prompts, count: int) -> Prompts:
    return prompts.take(range(min(count, len(prompts))))


def spread(prompts: Prompts, count: int) -> Prompts:
    """`count` prompts at even distances, for lists that are sorted by kind: the first ones would be of one kind only."""
    size = len(prompts)
    return prompts if count >= size else prompts.take([i * size // count for i in range(count)])


def weights_of(prompts: Prompts, field: str) -> list[float]:
    """The weight of every prompt from its record: finite, not negative, not all zero."""
    weights = [_weight(text, info.get(field), field) for text, info in zip(prompts.text, prompts.info, strict=True)]
    if not any(weights):
        raise ConfigError(f"recipe.prompts.select.weight: expected a positive {field!r} somewhere, got only zeros. Correct them.")
    return weights


def _weight(text: str, value: Any, field: str) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    if not good:
        raise ConfigError(
            f"recipe.prompts.select.weight: expected a number {field!r} of at least 0 for every prompt, got {value!r} for "
            f"{text[:60]!r}. Add it to the record."
        )
    return float(value)


def repetition(keys: Sequence[str]) -> list[int]:
    """How often each key was there before: 0 for the first, 1 for the second of the same key."""
    seen: dict[str, int] = {}
    counts = []
    for key in keys:
        counts.append(seen.get(key, 0))
        seen[key] = counts[-1] + 1
    return counts
