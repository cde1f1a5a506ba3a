"""Prompts that ask for written words, for the OCR reward: a place, and a text in quotes made of a small vocabulary."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from studio.types import Prompts, Rollout

PLACES = (
    "A hand-painted sign above a small bakery that says",
    "A cardboard sign held by a man at a train station, reading",
    "A neon sign in a rainy street at night with the words",
    "A chalkboard in a classroom on which is written",
    "A paperback lying on a wooden table with the title",
    "A white coffee mug printed with",
    "A road sign at a mountain pass that reads",
    "A movie poster with the title",
    "A birthday cake with icing that spells",
    "A sandy beach with letters drawn into the sand:",
    "A shop window with gold letters that say",
    "A protest banner carried through a square with the words",
    "A postage stamp with the inscription",
    "A wooden park bench with a brass plate engraved with",
    "A graffiti wall with the words",
    "A green hospital corridor with a sign that says",
)
FIRST = [
    "open",
    "quiet",
    "little",
    "golden",
    "early",
    "wild",
    "silver",
    "lucky",
    "brave",
    "hidden",
    "empty",
    "northern",
    "velvet",
    "paper",
]
SECOND = [
    "river",
    "garden",
    "station",
    "harbor",
    "mirror",
    "winter",
    "lantern",
    "market",
    "island",
    "letter",
    "kitchen",
    "signal",
    "bridge",
    "orchard",
]
THIRD = [
    "today",
    "forever",
    "company",
    "returns",
    "number",
    "seven",
    "club",
    "again",
    "season",
    "road",
    "house",
    "nights",
    "welcome",
    "radio",
]
HELD_OUT = 8  # one text in so many is never trained on


@dataclass(frozen=True)
class LetteringPrompts:
    """An endless seeded stream; `info["target_text"]` is the text to be written, and held-out texts are never trained on."""

    words: Annotated[int, Field(ge=1, le=3)] = 2  # most words of a text

    def check(self) -> list[str]:
        """Nothing can be missing."""
        return []

    def build(self, seed: int) -> LetteringStream:
        return LetteringStream(seed, self.words)

    def held_out(self, count: int) -> Prompts:
        """`count` different held-out prompts, the same for every seed."""
        found: dict[str, str] = {}
        draws = random.Random("lettering-test")
        most = len(PLACES) * sum(len(FIRST) * len(SECOND) ** (n > 1) * len(THIRD) ** (n > 2) for n in range(1, self.words + 1))
        for _ in range(50 * min(count, most)):
            place, text = drawn(draws, self.words)
            if is_held_out(text):
                found.setdefault(prompt_of(place, text), text)
            if len(found) == count:
                break
        return prompts_of(list(found.items()))


class LetteringStream:
    """Endless training prompts of one seed; the position is the only state."""

    def __init__(self, seed: int, words: int) -> None:
        self.seed, self.words, self.position = seed, words, 0

    def next(self, count: int) -> Prompts:
        places = range(self.position, self.position + count)
        self.position += count
        return prompts_of([self._at(place) for place in places])

    def update(self, rollout: Rollout) -> None:
        """Texts are drawn independently of results."""

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]

    def _at(self, position: int) -> tuple[str, str]:
        draws = random.Random(f"lettering-{self.seed}-{position}")
        while True:
            place, text = drawn(draws, self.words)
            if not is_held_out(text):
                return prompt_of(place, text), text


def drawn(draws: random.Random, words: int) -> tuple[str, str]:
    """A place, and a text of one to `words` words in title case."""
    parts = [draws.choice(list(part)) for part in (FIRST, SECOND, THIRD)[: draws.randint(1, words)]]
    return draws.choice(PLACES), " ".join(parts).title()


def is_held_out(text: str) -> bool:
    """Decided by the text alone, so that neither seed nor place can move a text across the line."""
    return hashlib.sha256(text.encode()).digest()[0] % HELD_OUT == 0


def prompt_of(place: str, text: str) -> str:
    return f'{place} "{text}"'


def prompts_of(pairs: Sequence[tuple[str, str]]) -> Prompts:
    texts = [prompt for prompt, _ in pairs]
    return Prompts(texts, texts, [{"target_text": target} for _, target in pairs])
