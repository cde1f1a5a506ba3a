"""What rows take from data instead of drawing it: whole answers of a preference pair, or the start of a reference answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from studio.errors import ConfigError
from studio.types import Prompts

SIDES = ("chosen", "rejected")


def pair_answers(rows: Prompts, group: Tensor) -> list[str | None]:
    """The text of every group's first row (chosen) and second row (rejected); None for the others, which are drawn."""
    seen: dict[int, int] = {}
    found: list[str | None] = []
    for info, number in zip(rows.info, group.tolist(), strict=True):
        place = seen[number] = seen.get(number, -1) + 1
        found.append(str(info[SIDES[place]]) if place < 2 else None)
    return found


def check_pairs(prompts: Prompts) -> None:
    """ConfigError for a prompt without its two answers."""
    for text, info in zip(prompts.text, prompts.info, strict=True):
        missing = [side for side in SIDES if not isinstance(info.get(side), str)]
        if missing:
            raise ConfigError(
                f"prompt {text[:40]!r}: expected texts 'chosen' and 'rejected' beside it, got no {' and no '.join(missing)}. Add "
                "them to its record, or set policy.sampling.pairs to false."
            )


def answer_tokens(tokenizer: Any, text: str, limit: int) -> Tensor:
    """Tokens of a whole answer with its end [L]; ConfigError when it is longer than the limit."""
    tokens = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    if len(tokens) > limit:
        raise ConfigError(
            f"answer {text[:40]!r}: expected at most sampling.limit = {limit} tokens with its end, got {len(tokens)}. Raise the "
            "limit or shorten the answer."
        )
    return torch.tensor(tokens)


def beginnings(tokenizer: Any, rows: Prompts, seeds: Sequence[int], share: float, field: str) -> list[Tensor]:
    """The first j tokens of each row's reference answer, j uniform in 1 .. L-1, for this share of the rows; else none.

    Dataset reset of DR-PO (arXiv:2404.08495).  An answer of one token has no proper beginning; a row's depends on its seed.
    """
    own, found = torch.Generator(), []
    for text, info, seed in zip(rows.text, rows.info, seeds, strict=True):
        if not isinstance(info.get(field), str):
            raise ConfigError(
                f"prompt {text[:40]!r}: expected a reference answer {field!r} beside it, got none. Add it to its record."
            )
        tokens = tokenizer(info[field], add_special_tokens=False)["input_ids"]
        chance, place = torch.rand(2, generator=own.manual_seed(seed ^ 2)).tolist()
        count = 1 + int(place * (len(tokens) - 1)) if chance < share and len(tokens) > 1 else 0
        found.append(torch.tensor(tokens[:count], dtype=torch.int64))
    return found
