"""GenEval's metadata: prompts that say which objects a picture must show, how many, in which color and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from studio.errors import ConfigError
from studio.prompts.order import Shuffled
from studio.prompts.read import as_prompts, read_records
from studio.prompts.select import Lists, Select, lists, spread
from studio.types import Prompts

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


@dataclass(frozen=True)
class GenEvalPrompts:
    """GenEval metadata as JSON lines (arXiv:2310.11513); tag, include and exclude travel to the reward in each prompt's info."""

    train: str
    test: str | None = None  # None = those that select.test_fraction holds out of train
    select: Select = field(default_factory=Select)

    def check(self) -> list[str]:
        return self._lists().check()

    def build(self, seed: int) -> Shuffled:
        return self._lists().build(seed)

    def held_out(self, count: int) -> Prompts:
        """`count` test prompts from the whole list, which is sorted by tag."""
        return spread(self._lists().held_out(), count)

    def _lists(self) -> Lists:
        return lists(read_geneval, self.train, self.test, self.select)


def read_geneval(file: str) -> Prompts:
    """All rows: {"prompt", "tag", "include": [{"class", "count", "color"?, "position"?: [relation, index]}], "exclude"?}."""
    records = []
    for number, record in read_records(file, "prompt", "tag", "include"):
        wrong = fault(record)
        if wrong:
            raise ConfigError(f"recipe.prompts: {file}:{number}: expected {wrong}. Correct this line.")
        records.append((str(record.pop("prompt")), record))
    return as_prompts(records, file)


def fault(record: Mapping[str, Any]) -> str | None:
    """`what was expected, got what` for the first thing that is wrong with a row, or None."""
    include, exclude = record["include"], record.get("exclude", [])
    if record["tag"] not in TAGS:
        return f"a tag of {', '.join(TAGS)}, got {record['tag']!r}"
    if not isinstance(include, list) or not include or not isinstance(exclude, list):
        return f"lists include and exclude, the first not empty, got {include!r} and {exclude!r}"
    for wanted in [*include, *exclude]:
        if not isinstance(wanted, Mapping) or not isinstance(wanted.get("class"), str) or not _is_count(wanted.get("count")):
            return f"objects with a class and a count of at least 1, got {wanted!r}"
        position = wanted.get("position")
        if position is not None and not _is_position(position, len(include)):
            return f"a position of [relation, index below {len(include)}], got {position!r}"
    return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_position(value: Any, objects: int) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    relation, index = value
    return isinstance(relation, str) and isinstance(index, int) and 0 <= index < objects
