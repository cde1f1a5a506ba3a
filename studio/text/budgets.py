"""Thoughts and the answers asked for where they are cut, as rows of one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from studio.errors import ConfigError
from studio.text.generate import Generated
from studio.text.windows import Write, behind
from studio.types import Prompts


def thoughts_and_answers(
    write: Write, tokenizer: Any, rows: Prompts, prompts: Sequence[Tensor], seeds: Sequence[int], limit: int
) -> Generated:
    """Rows in blocks: a thought, then `answers` answers at each of its cuts, the shortest budget first.

    An answer's row is the thought up to its cut and the mark, which are not sampled, and the answer.  The prompts of a block
    are the same.  info["budgets"]: see `studio.prompts.budgets`.
    """
    told = rows.info[0]["budgets"]
    block = 1 + told["cuts"] * told["answers"]
    if len(rows) % block:
        raise ConfigError(
            f"prompts 'budgets': expected rows in blocks of {block}, a thought with its answers, got {len(rows)}. Change "
            "train.group_size or gradient_accumulation_steps."
        )
    first = range(0, len(rows), block)
    thoughts = write([prompts[i] for i in first], [seeds[i] for i in first], told["thinking"], (told["mark"],))
    cuts = [cut for row in range(len(first)) for cut in up_to_cuts(tokenizer, thoughts, row, told)]
    begun = [cut for cut in cuts for _ in range(told["answers"])]
    others = [i for i in range(len(rows)) if i % block]
    asked = [torch.cat([prompts[i], start]) for i, start in zip(others, begun, strict=True)]
    answers = write(asked, [seeds[i] for i in others], told["longest"], ())
    none = [torch.zeros(0, dtype=torch.int64)] * len(first)
    return _interleaved(behind(none, thoughts, limit), behind(begun, answers, limit), [*first, *others])


def up_to_cuts(tokenizer: Any, thoughts: Generated, row: int, told: Mapping[str, Any]) -> list[Tensor]:
    """What a thought has said at each budget, shortest first, with the mark behind it unless it wrote it itself."""
    tokens = thoughts.token[row, : int(thoughts.length[row])].cpu()
    tokens = tokens[tokens != tokenizer.eos_token_id]  # a thought that ended the text is over, and asked all the same
    mark = torch.tensor(tokenizer(told["mark"], add_special_tokens=False)["input_ids"], dtype=torch.int64)
    found = []
    for cut in range(1, told["cuts"] + 1):
        start = tokens[: told["thinking"] * cut // told["cuts"]]
        over = told["mark"] in tokenizer.decode(start.tolist(), skip_special_tokens=True)
        found.append(start if over else torch.cat([start, mark]))
    return found


def _interleaved(one: Generated, other: Generated, places: Sequence[int]) -> Generated:
    """The rows of both, in the order of their places."""
    order = torch.tensor(places, device=one.token.device).argsort()

    def joined(name: str) -> Tensor | None:
        a, b = getattr(one, name), getattr(other, name)
        return None if a is None or b is None else torch.cat([a, b])[order]

    return Generated(**{f.name: joined(f.name) for f in fields(Generated)})  # type: ignore[arg-type]
