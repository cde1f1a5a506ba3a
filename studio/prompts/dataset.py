"""Prompts from a table that the `datasets` library reads: a folder that it saved, or local files. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from studio.errors import ConfigError, MissingError
from studio.prompts.order import Shuffled
from studio.prompts.read import as_prompts
from studio.prompts.select import Lists, Select, first
from studio.types import Prompts

READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".arrow": "arrow"}
PLAIN = (str, int, float, bool, list, dict, type(None))  # what travels in info; decoded pictures and the like do not


@dataclass(frozen=True)
class DatasetPrompts:
    """A dataset on this disk, by the optional `datasets` library."""

    path: str  # a folder of save_to_disk, or a .json, .jsonl, .csv, .parquet or .arrow file
    column: str = "prompt"  # of the text; the other columns go into info
    split: str = "train"  # of a saved folder that holds several
    test_split: str | None = None  # None = the rows that select.test_fraction holds out
    select: Select = field(default_factory=Select)

    def check(self) -> list[str]:
        return self._lists().check()

    def build(self, seed: int) -> Shuffled:
        return self._lists().build(seed)

    def held_out(self, count: int) -> Prompts:
        """The first `count` test rows."""
        return first(self._lists().held_out(), count)

    def _lists(self) -> Lists:
        tables = cache(lambda: read_tables(self.path))
        test = self.test_split
        chosen = None if test is None else lambda: self._prompts(tables(), test)
        return Lists(lambda: self._prompts(tables(), self.split), chosen, self.select)

    def _prompts(self, tables: Mapping[str, Any], split: str) -> Prompts:
        if split not in tables:
            raise ConfigError(f"recipe.prompts.split: expected one of {', '.join(tables)}, got {split!r}. Name one of them.")
        if self.column not in tables[split].column_names:
            known = ", ".join(tables[split].column_names)
            raise ConfigError(f"recipe.prompts.column: expected one of {known}, got {self.column!r}. Name the column of the text.")
        rows = [dict(row) for row in tables[split]]
        records = [(str(row.pop(self.column)), {k: v for k, v in row.items() if isinstance(v, PLAIN)}) for row in rows]
        return as_prompts(records, f"{self.path} ({split})")


def read_tables(path: str) -> dict[str, Any]:
    """Name of a split -> table."""
    place = Path(path).expanduser()
    if not place.exists() or (place.is_file() and place.suffix not in READERS):
        raise ConfigError(
            f"recipe.prompts.path: expected a folder of save_to_disk or a file of {', '.join(READERS)}, got {path!r}. Fetch a "
            "dataset of the Hub first: load_dataset(NAME).save_to_disk(FOLDER)."
        )
    try:
        import datasets  # type: ignore[import-not-found]  # an extra
    except ImportError as error:
        raise MissingError(
            "recipe.prompts: expected the package 'datasets' for this source, got none. Install it with "
            "`pip install 'alignment-studio[data]'`, or use prompts 'file' with a .jsonl file."
        ) from error
    try:
        if place.is_file():
            return dict(datasets.load_dataset(READERS[place.suffix], data_files=str(place)))
        found = datasets.load_from_disk(str(place))
    except Exception as error:  # the library raises what its readers raise: for a user all mean the same
        raise ConfigError(
            f"recipe.prompts.path: expected a dataset that can be read, got {path!r} ({type(error).__name__}). Save it again."
        ) from error
    return dict(found) if isinstance(found, Mapping) else {"train": found}
