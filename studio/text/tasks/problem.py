"""A problem of the bundled text world, and where in a completion its answer stands."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

MARK = "#"  # what follows it is the answer, what stands before it is working
LONGEST = 256  # characters of an answer that are looked at; a longer one is wrong
LEVELS = (1, 2, 3, 4)  # difficulties that every task knows

Info = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is asked, one way to solve it, and what a verifier needs to know."""

    text: str  # the prompt
    solution: str  # a completion that verifies: working, mark, answer
    info: dict[str, Any]  # plain data; always with task, difficulty, answer and solution
    identity: str  # equal for problems that are the same but for the order of what is given; decides the split


class Task(Protocol):
    """Makes problems of four levels and judges completions exactly."""

    @property
    def name(self) -> str: ...
    @property
    def rule(self) -> str: ...  # one sentence for models that do not know the format

    def sample(self, rng: random.Random, difficulty: int) -> Problem: ...
    def verify(self, completion: str, info: Info) -> bool: ...
    def graded(self, completion: str, info: Info) -> float: ...  # in [0, 1]; 1 exactly where verify is true
    def mistake(self, rng: random.Random, made: Problem) -> str: ...  # a completion that nearly solves it and does not verify


def problem(task: str, difficulty: int, text: str, working: str, answer: str, identity: str, **info: Any) -> Problem:
    """A problem with the fields of info that all tasks share."""
    solution = in_full(working, answer)
    shared = {"task": task, "difficulty": difficulty, "answer": answer, "solution": solution}
    return Problem(text, solution, shared | info, f"{task} {identity}")


def in_full(working: str, answer: str) -> str:
    """Working, mark, answer."""
    return f"{working} {MARK}{answer}" if working else f"{MARK}{answer}"


def answer_of(completion: str) -> str | None:
    """What follows the only mark, without blanks around it; None without an answer or with several marks.

    Printable ASCII only: int() also reads digits of other scripts, and those are no answer here.
    """
    working, mark, answer = completion.partition(MARK)
    answer = answer.strip(" \n")
    good = mark and MARK not in answer and 0 < len(answer) <= LONGEST and answer.isascii() and answer.isprintable()
    return answer if good else None


def share_of_places(found: Sequence[Any], wanted: Sequence[Any]) -> float:
    """Share of places of the longer sequence where both agree; 1 only for equal sequences."""
    same = sum(a == b for a, b in zip(found, wanted, strict=False))
    return same / max(len(found), len(wanted), 1)
