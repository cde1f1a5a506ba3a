"""Prompts from text or JSONL files, and the seeded endless order every list of prompts is walked in."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.errors import ConfigError
from studio.types import Prompts, Rollout


class Shuffled:
    """An endless walk over a list of prompts, one seeded shuffle per pass; every rank walks the same."""

    def __init__(self, prompts: Prompts, seed: int) -> None:
        self.prompts, self.seed, self.position = prompts, seed, 0

    def next(self, count: int) -> Prompts:
        size = len(self.prompts)
        index = [self._order(p // size)[p % size] for p in range(self.position, self.position + count)]
        self.position += count
        return self.prompts.take(index)

    def update(self, rollout: Rollout) -> None:
        """A plain list learns nothing."""

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]

    def _order(self, epoch: int) -> list[int]:
        order = list(range(len(self.prompts)))
        random.Random(f"{self.seed}-{epoch}").shuffle(order)
        return order


@dataclass(frozen=True)
class FilePrompts:
    """One prompt per line (.txt), or one object per line with `prompt` and whatever the rewards need (.jsonl)."""

    train: str
    test: str | None = None  # held-out prompts; None = none

    def build(self, seed: int) -> Shuffled:
        return Shuffled(read_prompts(self.train), seed)

    def held_out(self, count: int) -> Prompts:
        """The first `count` test prompts."""
        if self.test is None:
            return Prompts([], [], [])
        prompts = read_prompts(self.test)
        return prompts.take(range(min(count, len(prompts))))


def read_prompts(file: str | Path) -> Prompts:
    """All prompts of a file; a prompt's key is a hash of its text, so that it survives reordering."""
    path = Path(file).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"recipe.prompts: expected a readable UTF-8 file, got {str(file)!r} ({type(error).__name__}). "
            "Give one prompt per line (.txt) or one JSON object with 'prompt' per line (.jsonl)."
        ) from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    records = [_record(path, number, line) for number, line in numbered]
    if not records:
        raise ConfigError(f"recipe.prompts: {str(file)!r}: expected at least one prompt, got an empty file. Add a line.")
    return Prompts(
        [text for text, _ in records],
        [hashlib.sha256(text.encode()).hexdigest()[:12] for text, _ in records],
        [info for _, info in records],
    )


def _record(path: Path, number: int, line: str) -> tuple[str, dict[str, Any]]:
    if path.suffix != ".jsonl":
        return line.strip(), {}
    try:
        record = json.loads(line)
        return str(record["prompt"]), {key: value for key, value in record.items() if key != "prompt"}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"recipe.prompts: {path}:{number}: expected a JSON object with 'prompt', got {line[:60]!r}. Correct this line."
        ) from error
