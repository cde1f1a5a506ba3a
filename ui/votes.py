"""What people preferred: votes.jsonl in the runs folder, one line a vote, and what the votes add up to.

A line holds id, time, prompt, kind (image or text), chosen, rejected (texts, or paths of pictures from the runs folder), tie,
left (which of the two stood on the left) and sides, the run, step, sample and seed of both. A tie prefers none: its chosen is
the first side's. A later line {"time", "undo": id} takes a vote back; nothing in the file is ever changed.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, NamedTuple

from studio.files import append, read_records
from studio.layout import inside
from ui.pairs import Key, Pair, Side, scores, text_of

FILE = "votes.jsonl"
FIELDS = ("id", "prompt", "kind", "chosen", "rejected", "sides")
Choice = Literal["left", "right", "tie"]
Vote = Mapping[str, Any]


def first_is_left(secret: bytes, key: Key) -> bool:
    """Whether the first side of a pair stands on the left: a fair coin that nobody without the secret can foretell."""
    return bool(blake2b("\0".join(key).encode(), key=secret, digest_size=1).digest()[0] & 1)


def vote_of(pair: Pair, first: Side, second: Side, choice: Choice, left_is_first: bool) -> dict[str, Any]:
    """The line that says what was preferred."""
    sides = [
        {"run": side.name, "step": side.step, "sample_id": record.get("sample_id"), "seed": record.get("seed")}
        for side, record in ((first, pair.first), (second, pair.second))
    ]
    texts = [text_of(record) for record in pair]
    paths = [f"{side.name}/{record['path']}" for side, record in ((first, pair.first), (second, pair.second))]
    contents = [path if text is None else text for text, path in zip(texts, paths, strict=True)]
    best = 0 if choice == "tie" else int((choice == "left") != left_is_first)
    return {
        "id": secrets.token_hex(6),
        "time": time.time(),
        "prompt": pair.prompt,
        "kind": "image" if None in texts else "text",
        "chosen": contents[best],
        "rejected": contents[1 - best],
        "tie": choice == "tie",
        "left": "chosen" if left_is_first == (best == 0) else "rejected",
        "sides": {"chosen": sides[best], "rejected": sides[1 - best]},
    }


def cast(root: Path, vote: Mapping[str, Any]) -> None:
    """Append a vote."""
    append(inside(root, FILE), [vote])


def take_back(root: Path, number: str) -> None:
    """Append that a vote does not count."""
    append(inside(root, FILE), [{"time": time.time(), "undo": number}])


def read(root: Path) -> list[Vote]:
    """The votes that count, in order; lines that are none are passed over."""
    records = read_records(inside(root, FILE))[0]
    undone = {record["undo"] for record in records if isinstance(record.get("undo"), str)}
    return [record for record in records if _is_vote(record) and record["id"] not in undone]


def _is_vote(record: Mapping[str, Any]) -> bool:
    sides = record.get("sides")
    whole = isinstance(sides, dict) and all(isinstance(sides.get(name), dict) for name in ("chosen", "rejected"))
    return whole and all(isinstance(record.get(name), str) for name in FIELDS[:-1])


def between(votes: Sequence[Vote], first: Side, second: Side) -> list[Vote]:
    """The votes that compare these two sides."""
    wanted = {(first.name, first.step), (second.name, second.step)}
    return [vote for vote in votes if {_end(vote, "chosen"), _end(vote, "rejected")} == wanted]


def _end(vote: Vote, which: str) -> tuple[Any, Any]:
    return vote["sides"][which].get("run"), vote["sides"][which].get("step")


def key_of(vote: Vote) -> Key:
    """The pair that a vote is about."""
    side = vote["sides"]["chosen"]
    return vote["prompt"], str(side.get("sample_id", "")), str(side.get("seed", ""))


class Tally(NamedTuple):
    """Votes for the second side against the first."""

    wins: int  # of the second side
    ties: int
    losses: int

    @property
    def count(self) -> int:
        return self.wins + self.ties + self.losses

    @property
    def rate(self) -> float:
        """Share of votes for the second side; a tie is half a vote."""
        return (self.wins + self.ties / 2) / self.count

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.wins + self.ties / 2, self.count)


def tally(votes: Sequence[Vote], second: Side) -> Tally:
    """The sum of votes that compare a side with this one."""
    ties = sum(bool(vote.get("tie")) for vote in votes)
    wins = sum(not vote.get("tie") and _end(vote, "chosen") == (second.name, second.step) for vote in votes)
    return Tally(wins, ties, len(votes) - ties - wins)


def wilson(successes: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The interval of a share p = successes / n in which it lies with 95 %.

    (p + z²/2n ± z √(p(1 - p)/n + z²/4n²)) / (1 + z²/n); Wilson 1927.
    """
    p, square = successes / count, z * z / count
    center, reach = p + square / 2, math.sqrt(p * (1 - p) * square + square * square / 4)
    return max(0.0, (center - reach) / (1 + square)), min(1.0, (center + reach) / (1 + square))


def agreement(votes: Sequence[Vote], pairs: Sequence[Pair], second: Side) -> dict[str, tuple[float, int]]:
    """For each score, the share of votes (ties left out) whose chosen side has the higher score, and their count.

    Equal scores agree half. Far below 1/2: what is trained is not what people like.
    """
    known = {pair.key: pair for pair in pairs}
    found: dict[str, list[float]] = {}
    for vote in votes:
        pair = known.get(key_of(vote))
        if pair is None or vote.get("tie"):
            continue
        sign = 1 if _end(vote, "chosen") == (second.name, second.step) else -1
        left, right = scores(pair.first), scores(pair.second)
        for name in left.keys() & right.keys():
            change = sign * (right[name] - left[name])
            found.setdefault(name, []).append(1.0 if change > 0 else 0.5 if change == 0 else 0.0)
    return {name: (sum(values) / len(values), len(values)) for name, values in found.items()}
