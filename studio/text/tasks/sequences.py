"""Sorting numbers, and closing what brackets opened."""

from __future__ import annotations

import random
from dataclasses import dataclass

from studio.text.tasks.problem import Info, Problem, answer_of, in_full, problem, share_of_places

COUNTS = {1: 3, 2: 4, 3: 6, 4: 8}  # level -> how many numbers are sorted
PAIRS = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class Sorting:
    """`sort 31 7 12:` -> `#7 12 31`.  Numbers below 100, 3 to 8 of them."""

    name: str = "sorting"
    rule: str = "Write # and the numbers in rising order with one blank between them."

    def sample(self, rng: random.Random, difficulty: int) -> Problem:
        numbers = [rng.randrange(100) for _ in range(COUNTS[difficulty])]
        answer = " ".join(map(str, sorted(numbers)))
        return problem(self.name, difficulty, f"sort {' '.join(map(str, numbers))}:", "", answer, answer)

    def verify(self, completion: str, info: Info) -> bool:
        return answer_of(completion) == info["answer"]

    def graded(self, completion: str, info: Info) -> float:
        """Share of places with the right number."""
        return share_of_places((answer_of(completion) or "").split(" "), info["answer"].split(" "))

    def mistake(self, rng: random.Random, made: Problem) -> str:
        """Two different neighbors the wrong way round; of equal numbers one left out."""
        numbers = made.info["answer"].split(" ")
        places = [at for at in range(len(numbers) - 1) if numbers[at] != numbers[at + 1]]
        if not places:
            return in_full("", " ".join(numbers[1:]))
        at = rng.choice(places)
        return in_full("", " ".join([*numbers[:at], numbers[at + 1], numbers[at], *numbers[at + 2 :]]))


@dataclass(frozen=True)
class Brackets:
    """`close ([{}:` -> `#])`.  Level L: 4·L to 6·L brackets, of which 2 to 2·L + 2 are open at the end."""

    name: str = "brackets"
    rule: str = "Write # and the brackets that close what is open, the last opened first."

    def sample(self, rng: random.Random, difficulty: int) -> Problem:
        length = rng.randint(4 * difficulty, 6 * difficulty)
        while True:
            given, waiting = opened(rng, length)
            if 2 <= len(waiting) <= 2 * difficulty + 2:
                return problem(self.name, difficulty, f"close {given}:", "", waiting, given)

    def verify(self, completion: str, info: Info) -> bool:
        return answer_of(completion) == info["answer"]

    def graded(self, completion: str, info: Info) -> float:
        """Share of right brackets before the first wrong one."""
        found, wanted = answer_of(completion) or "", info["answer"]
        right = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), len(wanted)))
        return right / max(len(found), len(wanted))

    def mistake(self, rng: random.Random, made: Problem) -> str:
        """One bracket of another kind, or the last one left open."""
        wanted = made.info["answer"]
        at = rng.randrange(len(wanted) + 1)
        if at == len(wanted):
            return in_full("", wanted[:-1])
        other = rng.choice([bracket for bracket in PAIRS.values() if bracket != wanted[at]])
        return in_full("", wanted[:at] + other + wanted[at + 1 :])


def opened(rng: random.Random, length: int) -> tuple[str, str]:
    """A random start of a balanced word, and the brackets that complete it."""
    given, waiting = "", ""
    for _ in range(length):
        if waiting and rng.random() < 0.4:
            given, waiting = given + waiting[0], waiting[1:]
        else:
            bracket = rng.choice(list(PAIRS))
            given, waiting = given + bracket, PAIRS[bracket] + waiting
    return given, waiting
