"""Adding and subtracting column by column from the right, with what is carried or borrowed written down."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from studio.text.tasks.problem import Info, Problem, answer_of, in_full, problem, share_of_places


@dataclass(frozen=True)
class Arithmetic:
    """`58+67=` -> `8+7=15 5+6+1=12 #125`;  `52-17=` -> `12-7=5 5-1-1=3 #35`.  Level L: numbers of L + 1 digits."""

    sign: Literal["+", "-"]

    @property
    def name(self) -> str:
        return "addition" if self.sign == "+" else "subtraction"

    @property
    def rule(self) -> str:
        noun = "sum" if self.sign == "+" else "difference"
        return f"Work column by column from the right, then write # and the {noun}."

    def sample(self, rng: random.Random, difficulty: int) -> Problem:
        first, second = (_number(rng, difficulty + 1), _number(rng, rng.randint(difficulty, difficulty + 1)))
        if self.sign == "-":
            first, second = max(first, second), min(first, second)
        answer = first + second if self.sign == "+" else first - second
        low, high = sorted((first, second))
        text = f"{first}{self.sign}{second}="
        return problem(self.name, difficulty, text, columns(first, second, self.sign), str(answer), f"{low} {high}")

    def verify(self, completion: str, info: Info) -> bool:
        """The answer is the number, digit for digit: no sign, no leading zero."""
        return answer_of(completion) == info["answer"]

    def graded(self, completion: str, info: Info) -> float:
        """Share of right digits, counted from the last."""
        return share_of_places((answer_of(completion) or "")[::-1], info["answer"][::-1])

    def mistake(self, rng: random.Random, made: Problem) -> str:
        """A carry forgotten or made up, with what follows from it; where no borrow can be, the second number read as one less."""
        first, second = (int(number) for number in made.text.removesuffix("=").split(self.sign))
        slips = [worked(first, second, self.sign, place) for place in range(len(str(first)) - 1)]
        slips = [slip for slip in slips if slip[1] >= 0] or [worked(first, second - 1, self.sign)]
        working, number = rng.choice(slips)
        return in_full(working, str(number))


def columns(first: int, second: int, sign: str) -> str:
    """The written-out working: one equation per column from the right; first >= second for a difference."""
    return worked(first, second, sign)[0]


def worked(first: int, second: int, sign: str, slip: int | None = None) -> tuple[str, int]:
    """The working, and the number that it leads to; after column `slip` from the right, a carry is forgotten or made up."""
    width = max(len(str(first)), len(str(second)))
    carry, steps, number = 0, [], 0
    for place, (a, b) in enumerate(zip(reversed(f"{first:0{width}}"), reversed(f"{second:0{width}}"), strict=True)):
        carried = f"{sign}1" if carry else ""
        if sign == "+":
            result = int(a) + int(b) + carry
            carry = int(result > 9)
            steps.append(f"{a}+{b}{carried}={result}")
        else:
            result = int(a) - int(b) - carry
            carry = int(result < 0)
            steps.append(f"{int(a) + 10 * carry}-{b}{carried}={result + 10 * carry}")
        number += result % 10 * 10**place
        carry = 1 - carry if place == slip else carry
    return " ".join(steps), number + (carry if sign == "+" else -carry) * 10**width


def _number(rng: random.Random, digits: int) -> int:
    return rng.randint(10 ** (digits - 1), 10**digits - 1)
