"""What a user should know of a reward before trusting it: where it comes from, what it sees, which scores are usual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Facts:
    """Stated by every reward of the table as `facts`, beside its `license`, `range` and `model_id`."""

    source: str  # paper or repository whose formula this is
    preprocessing: str  # what happens to a picture before it is judged
    known: str = ""  # scores that others report: far from them, the set-up is broken
    extra: str | None = None  # the pip extra it needs besides the base install


@runtime_checkable
class Documented(Protocol):
    """A reward that states its facts; all of the table do."""

    facts: Facts
    license: str
    range: tuple[float, float]


def one_line(reward: object) -> str:
    """License, range and extra of a reward for a listing; empty for one that states none."""
    if not isinstance(reward, Documented):
        return ""
    low, high = reward.range
    parts = [f"range {low:g} to {high:g}", f"license: {reward.license}"]
    return "; ".join([*parts, f"needs alignment-studio[{reward.facts.extra}]"] if reward.facts.extra else parts)
