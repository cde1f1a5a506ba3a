"""Reading lists of prompts from files: text, and records as JSON lines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from studio.errors import ConfigError
from studio.types import Prompts

FORMS = "Give one prompt per line (.txt) or one JSON object with 'prompt' per line (.jsonl)."


def key_of(*parts: str) -> str:
    """A prompt's identity: a hash of its text and what else makes it another task, so that it survives reordering."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def read_prompts(file: str | Path) -> Prompts:
    """All prompts of a text or JSONL file."""
    if Path(file).suffix == ".jsonl":
        records = [(str(record.pop("prompt")), record) for _, record in read_records(file, "prompt")]
    else:
        records = [(line.strip(), {}) for _, line in read_lines(file)]
    return as_prompts(records, str(file))


def as_prompts(records: list[tuple[str, dict[str, Any]]], where: str) -> Prompts:
    """Prompts of (text, info), keyed by their text; an empty list is refused."""
    if not records:
        raise ConfigError(f"recipe.prompts: {where!r}: expected at least one prompt, got an empty file. Add a line.")
    return Prompts([text for text, _ in records], [key_of(text) for text, _ in records], [info for _, info in records])


def read_records(file: str | Path, *fields: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a JSONL file; every object must have these fields."""
    for number, line in read_lines(file):
        try:
            record = json.loads(line)
            missing = [name for name in fields if record[name] is None]
        except (ValueError, KeyError, TypeError):
            missing = list(fields)
        if missing:
            raise ConfigError(
                f"recipe.prompts: {file}:{number}: expected a JSON object with {' and '.join(map(repr, missing))}, got "
                f"{line[:60]!r}. Correct this line."
            )
        yield number, record


def read_lines(file: str | Path) -> list[tuple[int, str]]:
    """(line number, line) of every line that is not blank."""
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"recipe.prompts: expected a readable UTF-8 file, got {str(file)!r} ({type(error).__name__}). {FORMS}"
        ) from error
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
