"""Completions that go on from tokens written before: the same record as of completions written in one go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from studio.text.generate import Generated
from studio.types import Prompts

# prompts, seeds, most tokens, strings that end a row besides the usual ones
Write = Callable[[Sequence[Tensor], Sequence[int], int, Sequence[str]], Generated]


def next_window(write: Write, rows: Prompts, prompts: Sequence[Tensor], seeds: Sequence[int], limit: int) -> Generated:
    """The next window of every row behind what it has written: at most `size` tokens, and `limit` in all.

    `cut` says that a row goes on: one that reaches the limit has ended.  Tokens of earlier windows carry what was said of them
    when they were drawn; they are live in rows that ended, for the critic, and dead in the others.  info["window"]: see
    `studio.prompts.windows`.
    """
    told = [info["window"] for info in rows.info]
    begun = [torch.tensor(one["token"], dtype=torch.int64) for one in told]
    new = write(_joined(prompts, begun), seeds, min(told[0]["size"], limit), ())
    whole = behind(begun, new, limit)
    whole = replace(whole, cut=whole.cut & (whole.length < limit))
    for row, one in enumerate(told):
        count = len(one["token"])
        for name in one.keys() - {"size", "token"}:
            said = getattr(whole, name)
            if said is not None:
                said[row, :count] = torch.tensor(one[name], device=said.device)
        whole.sampled[row, :count] = ~whole.cut[row]
    return whole


def behind(begun: Sequence[Tensor], new: Generated, limit: int) -> Generated:
    """Completions [B, limit] of tokens begun [n_b] and of the new ones behind them, without those beyond the limit.

    Nothing is said of the tokens begun, and they are not sampled.
    """
    device, width = new.token.device, new.token.shape[1]
    start = torch.tensor([len(tokens) for tokens in begun], device=device)
    at = torch.arange(limit, device=device) - start[:, None]
    inside, place = (at >= 0) & (at < width), at.clamp(0, width - 1)

    def moved(x: Tensor | None) -> Tensor | None:
        if x is None or x.ndim < 2:
            return x
        more = (1,) * (x.ndim - 2)
        index = place.reshape(*place.shape, *more).expand(*place.shape, *x.shape[2:])
        return torch.where(inside.reshape(*inside.shape, *more), x.gather(1, index), torch.zeros_like(x[:, :1]))

    whole = Generated(**{f.name: moved(getattr(new, f.name)) for f in fields(Generated)})  # type: ignore[arg-type]
    for row, tokens in enumerate(begun):
        whole.token[row, : len(tokens)] = tokens[:limit].to(device)
    return replace(whole, length=(start + new.length).clamp(max=limit))


def _joined(prompts: Sequence[Tensor], begun: Sequence[Tensor]) -> list[Tensor]:
    return [torch.cat([prompt, tokens]) for prompt, tokens in zip(prompts, begun, strict=True)]
