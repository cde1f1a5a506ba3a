"""Statistics of texts that no reward looks at: when they leave where they began, the reward is being gamed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

GRAM = 4  # characters of the pieces whose repetition counts


def text_stats(texts: Sequence[str]) -> dict[str, Tensor]:
    """Statistics [B] float32 of texts.

    characters         length
    empty              1 where nothing but white space was written
    repetition         share of the pieces of 4 characters that occurred earlier in the text
    character_entropy  bits, of the characters' histogram
    """
    import torch

    return {
        "characters": torch.tensor([float(len(text)) for text in texts]),
        "empty": torch.tensor([float(not text.strip()) for text in texts]),
        "repetition": torch.tensor([repetition(text) for text in texts]),
        "character_entropy": torch.tensor([entropy(text) for text in texts]),
    }


def repetition(text: str, gram: int = GRAM) -> float:
    """1 - different pieces / pieces; 0 for a text without a piece."""
    pieces = [text[i : i + gram] for i in range(len(text) - gram + 1)]
    return 1 - len(set(pieces)) / len(pieces) if pieces else 0.0


def entropy(text: str) -> float:
    """-Σ p log2 p over the characters; 0 for an empty text."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())
