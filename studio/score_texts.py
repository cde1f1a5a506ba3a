"""Any reward over a file of texts: one completion a line, or JSON lines with `completion`, `prompt` and what rewards need."""

from __future__ import annotations

from pathlib import Path

from studio.errors import ConfigError
from studio.prompts.read import read_lines, read_records
from studio.types import Prompts


def read_texts(file: Path, prompt: str | None) -> tuple[list[str], list[str], Prompts]:
    """(where each comes from, completions, prompts) of a .txt or .jsonl file; `prompt` stands for all that have none."""
    if file.suffix != ".jsonl":
        lines = list(read_lines(file))
        texts, asked, infos = [line for _, line in lines], [prompt or ""] * len(lines), [{}] * len(lines)
        numbers = [number for number, _ in lines]
    else:
        records = list(read_records(file, "completion"))
        numbers, texts = [number for number, _ in records], [str(record.pop("completion")) for _, record in records]
        asked = [str(record.pop("prompt", prompt or "")) for _, record in records]
        infos = [record for _, record in records]
    if not texts:
        raise ConfigError(f"{file}: expected at least one text, got none. Give one a line, or JSON lines with 'completion'.")
    return [f"{file.name}:{number}" for number in numbers], texts, Prompts(asked, asked, infos)
