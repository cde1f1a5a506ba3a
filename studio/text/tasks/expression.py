"""A parser for sums, differences and products of small numbers, so that nothing is ever passed to eval."""

from __future__ import annotations

import re
from dataclasses import dataclass

LONGEST = 64  # characters
DEEPEST = 8  # parentheses within parentheses
TOKEN = re.compile(r"[0-9]{1,4}|[-+*()]")  # [0-9] and not \d, which knows digits of other scripts


@dataclass(frozen=True, slots=True)
class Expression:
    """Value of an expression, and its numbers in the order in which they stand."""

    value: int
    numbers: tuple[int, ...]


def parse(text: str) -> Expression:
    """The value of an infix expression of natural numbers below 10000 with + - * and parentheses, no sign before a number.

    ValueError for anything else, for more than 64 characters and for more than 8 nested parentheses, so that the value
    has at most 128 digits.
    """
    if len(text) > LONGEST:
        raise ValueError(f"expected at most {LONGEST} characters, got {len(text)}")
    tokens = TOKEN.findall(text)
    if "".join(tokens) != text or not tokens:
        raise ValueError(f"expected numbers, + - * and parentheses, got {text!r}")
    reader = _Reader([*tokens, "end"])
    value = reader.sum(0)
    reader.take("end")
    return Expression(value, tuple(int(token) for token in tokens if token.isdigit()))


def equation_holds(text: str) -> bool:
    """Whether `expression=number` is true; False for anything that is no such equation."""
    left, equals, right = text.partition("=")
    try:
        return bool(equals) and parse(left).value == parse(right).value
    except ValueError:
        return False


class _Reader:
    """Recursive descent over tokens: sum = product (± product)*, product = atom (* atom)*."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at = tokens, 0

    def take(self, *wanted: str) -> str | None:
        """The next token when it is one of these; without any, a number."""
        token = self.tokens[self.at]
        if token not in wanted if wanted else not token.isdigit():
            raise ValueError(f"expected {' or '.join(wanted) or 'a number'}, got {token!r}")
        self.at += 1
        return token

    def sum(self, depth: int) -> int:
        value = self.product(depth)
        while (sign := self.tokens[self.at]) in ("+", "-"):
            self.at += 1
            value += self.product(depth) * (1 if sign == "+" else -1)
        return value

    def product(self, depth: int) -> int:
        value = self.atom(depth)
        while self.tokens[self.at] == "*":
            self.at += 1
            value *= self.atom(depth)
        return value

    def atom(self, depth: int) -> int:
        if self.tokens[self.at] != "(":
            return int(self.take() or 0)
        if depth == DEEPEST:
            raise ValueError(f"expected at most {DEEPEST} nested parentheses, got more")
        self.at += 1
        value = self.sum(depth + 1)
        self.take(")")
        return value
