"""Turning `key=value` records into JSON objects."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from studio.text.tasks.problem import Info, Problem, answer_of, in_full, problem

KEYS = ("age", "city", "code", "day", "id", "name", "size", "tag", "team", "unit")


@dataclass(frozen=True)
class Records:
    """`json name=ann;age=31:` -> `#{"name":"ann","age":31}`.  Level L: L fields; digits become numbers."""

    name: str = "json"
    rule: str = "Write # and one JSON object with these fields; digits are numbers, everything else is text."

    def sample(self, rng: random.Random, difficulty: int) -> Problem:
        record = {key: _value(rng) for key in rng.sample(KEYS, difficulty)}
        given = ";".join(f"{key}={value}" for key, value in record.items())
        return problem(
            self.name, difficulty, f"json {given}:", "", written(record), ";".join(sorted(given.split(";"))), record=record
        )

    def verify(self, completion: str, info: Info) -> bool:
        """The answer is one JSON object with exactly these fields and values of the same type; their order is free."""
        return self.graded(completion, info) == 1

    def graded(self, completion: str, info: Info) -> float:
        """Share of right fields among all that are wanted or written; 0 for what is no JSON object."""
        found, wanted = read_object(answer_of(completion) or ""), info["record"]
        if found is None:
            return 0.0
        right = sum(key in found and same(found[key], value) for key, value in wanted.items())
        return right / len(found.keys() | wanted.keys())

    def mistake(self, rng: random.Random, made: Problem) -> str:
        """One number written as text, or one text without its last letter."""
        record = dict(made.info["record"])
        key = rng.choice(list(record))
        record[key] = record[key][:-1] if isinstance(record[key], str) else str(record[key])
        return in_full("", written(record))


def written(record: Mapping[str, Any]) -> str:
    """A record as JSON without blanks."""
    return json.dumps(record, separators=(",", ":"))


def read_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is; None for other values, for broken text, and for a key given twice."""
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def same(found: Any, wanted: Any) -> bool:
    """Equal and of the same type: True is not 1, and 1.0 is not 1."""
    return type(found) is type(wanted) and found == wanted


def _once(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _value(rng: random.Random) -> str | int:
    if rng.random() < 0.5:
        return rng.randrange(1000)
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 5)))
