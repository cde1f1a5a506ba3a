"""A completion token by token: colored by what each was worth in training, or by how uncertain the policy was."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from studio.chart import is_number, number

ADVANTAGE, ENTROPY, PLAIN = "advantage", "entropy", "none"
COLORS = (ADVANTAGE, ENTROPY, PLAIN)
LEVELS = 5  # of a color, besides none


@dataclass(frozen=True)
class Scale:
    """What the strongest color stands for: the largest |advantage| and the largest entropy among the tokens shown."""

    advantage: float
    entropy: float

    @classmethod
    def of(cls, rows: Sequence[Sequence[Any]]) -> Scale:
        tokens = [token for row in rows for token in row if is_token(token)]
        return cls(
            max((abs(token[1]) for token in tokens if is_number(token[1])), default=0.0),
            max((token[2] for token in tokens if is_number(token[2])), default=0.0),
        )


def is_token(token: Any) -> bool:
    """[piece, advantage, entropy, log likelihood] as training writes it."""
    return isinstance(token, list) and len(token) == 4 and isinstance(token[0], str)


def level(value: float | None, largest: float) -> int:
    """0 to LEVELS: how strong the color of a value is; 0 only for none and for 0 itself."""
    if not is_number(value) or not value or not largest:
        return 0
    return min(LEVELS, max(1, math.ceil(LEVELS * abs(value) / largest - 1e-9)))


def classes(token: Sequence[Any], scale: Scale) -> str:
    """p3 or n3 for the advantage, e2 for the entropy; x for a token that did not train."""
    _, advantage, entropy, _ = token
    sign = "x" if not is_number(advantage) else f"{'n' if advantage < 0 else 'p'}{level(advantage, scale.advantage)}"
    return f"{sign} e{level(entropy, scale.entropy)}"


def spelled(tokens: Sequence[Any], scale: Scale, most: int) -> str:
    """The first `most` tokens as HTML."""
    shown = "".join(_token(token, scale) for token in tokens[:most] if is_token(token))
    odd = sum(not is_token(token) for token in tokens[:most])
    return shown + (f'<span class="hole">{odd} broken</span>' if odd else "")


def _token(token: Sequence[Any], scale: Scale) -> str:
    piece, advantage, entropy, logp = token
    worth = f"advantage {number(advantage, '+')}" if is_number(advantage) else "not trained"
    chance = f" · probability {number(math.exp(min(logp, 0.0)))}" if is_number(logp) else ""
    told = f"{worth} · entropy {number(entropy)} nats{chance}"
    text = escape(piece).replace("\n", "↵\n") or '<i title="part of a character">·</i>'
    return f'<span class="{classes(token, scale)}" title="{told}">{text}</span>'


def legend(color: str, scale: Scale) -> str:
    """What the colors mean."""
    if color == ADVANTAGE:
        signs = [f"n{k}" for k in range(LEVELS, 0, -1)] + ["p0"] + [f"p{k}" for k in range(1, LEVELS + 1)]
        low, high = number(-scale.advantage), number(scale.advantage, "+")
        told = "advantage of each token"
    elif color == ENTROPY:
        signs = [f"e{k}" for k in range(LEVELS + 1)]
        low, high, told = "0", f"{number(scale.entropy)} nats", "entropy of the policy before each token"
    else:
        return ""
    cells = "".join(f'<i class="{sign}"></i>' for sign in signs)
    return f'<span class="legend color-{color}"><span>{low}</span><span class="bar">{cells}</span><span>{high}</span>{told}</span>'
