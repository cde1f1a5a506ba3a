"""Countdown: reach a number from given numbers, each used once, by sums, differences and products."""

from __future__ import annotations

import random
from dataclasses import dataclass

from studio.text.tasks.expression import parse
from studio.text.tasks.problem import Info, Problem, answer_of, in_full, problem

MOST = 99  # largest target and largest value on the way
TRIES = 20  # draws of an expression with another value; 2 and 2 have none
# level -> how many numbers, and the largest of them
SIZES = {1: (2, 9), 2: (3, 9), 3: (3, 20), 4: (4, 20)}


@dataclass(frozen=True)
class Countdown:
    """`make 24 from 3 5 9:` -> `3*5=15 15+9=24 #3*5+9`."""

    name: str = "countdown"
    rule: str = "Use every number exactly once with + - * and parentheses; write # and the expression."

    def sample(self, rng: random.Random, difficulty: int) -> Problem:
        count, largest = SIZES[difficulty]
        while True:
            numbers = [rng.randint(1, largest) for _ in range(count)]
            steps, expression, target = combined(rng, numbers)
            if 1 <= target <= MOST:
                break
        text = f"make {target} from {' '.join(map(str, numbers))}:"
        identity = f"{target} {sorted(numbers)}"
        return problem(self.name, difficulty, text, " ".join(steps), expression, identity, numbers=numbers, target=target)

    def verify(self, completion: str, info: Info) -> bool:
        """The answer is an expression with the value of the target in which every number stands exactly once."""
        return self.graded(completion, info) == 1

    def graded(self, completion: str, info: Info) -> float:
        """0 for no expression, 0.1 for one of other numbers, else 0.5 + 0.4 / (1 + distance to the target), and 1 on it."""
        try:
            found = parse(answer_of(completion) or "")
        except ValueError:
            return 0.0
        if sorted(found.numbers) != sorted(info["numbers"]):
            return 0.1
        distance = abs(found.value - info["target"])
        return 1.0 if distance == 0 else 0.5 + 0.4 / (1 + min(distance, 10**6))

    def mistake(self, rng: random.Random, made: Problem) -> str:
        """An expression of the numbers with another value; where there is none, the target instead of an expression."""
        for _ in range(TRIES):
            steps, expression, value = combined(rng, made.info["numbers"])
            if value != made.info["target"]:
                return in_full(" ".join(steps), expression)
        return in_full(" ".join(steps), str(made.info["target"]))


def combined(rng: random.Random, numbers: list[int]) -> tuple[list[str], str, int]:
    """Random pairs combined until one value is left -> (the steps, the expression, its value).

    Values stay within 0 to MOST where they can; an expression is (text, value, rank), rank 0 a sum, 1 a product, 2 a number.
    """
    pool = [(str(number), number, 2) for number in numbers]
    steps = []
    while len(pool) > 1:
        rng.shuffle(pool)
        (a, x, p), (b, y, q) = sorted((pool.pop(), pool.pop()), key=lambda one: -one[1])
        signs = [sign for sign, value in (("+", x + y), ("-", x - y), ("*", x * y)) if 0 < value <= MOST] or ["-"]
        sign = rng.choice(signs)
        value = {"+": x + y, "-": x - y, "*": x * y}[sign]
        steps.append(f"{x}{sign}{y}={value}")
        if sign == "*":
            pool.append((f"{_closed(a, p, 1)}*{_closed(b, q, 1)}", value, 1))
        else:
            pool.append((f"{a}{sign}{_closed(b, q, 1 if sign == '-' else 0)}", value, 0))
    return steps, pool[0][0], pool[0][1]


def _closed(text: str, rank: int, least: int) -> str:
    return text if rank >= least else f"({text})"
