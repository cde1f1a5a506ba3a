"""Completions by filling in masks: block by block, the tokens first that the network is surest of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from studio.text.draw import draw
from studio.text.generate import Ends
from studio.text.masked_network import MaskedNetwork


@dataclass(frozen=True)
class Unmasked:
    """Completions of a fixed width T."""

    token: Tensor  # [B, T] int64; the padding token after the end of a row
    length: Tensor  # [B] tokens of the completion, its end included
    cut: Tensor  # [B] bool, filled to the limit without an end


class Canvas(NamedTuple):
    """One batch of the network: prompt and completion without a gap, filled up on the right."""

    tokens: Tensor  # [B, W]
    seen: Tensor  # [B, W] bool, False = filled up
    columns: Tensor  # [B, T] where the completion's tokens stand


def laid_out(prompt: Tensor, prompt_length: Tensor, token: Tensor) -> Canvas:
    """Rows of the network from prompts [B, P], filled up on the right, and completions [B, T]."""
    rows, width = token.shape
    columns = prompt_length[:, None] + torch.arange(width, device=token.device)
    at = torch.arange(int(prompt_length.max()) + width, device=token.device).expand(rows, -1)
    tokens = prompt.gather(1, at.clamp(max=prompt.shape[1] - 1)).scatter(1, columns, token)
    return Canvas(tokens, at < prompt_length[:, None] + width, columns)


@torch.no_grad()
def unmask(
    network: MaskedNetwork,
    prompts: Sequence[Tensor],
    seeds: Sequence[int],
    *,
    limit: int,
    block: int,
    steps: int,
    end: Sequence[int],
    pad: int,
    temperature: float = 1.0,
    ends: Ends | None = None,
) -> Unmasked:
    """One completion a row: `limit` masks after the prompt, filled in block by block with `steps` network calls each.

    A call draws a token for every mask of the block from softmax(logits / temperature) and keeps those of the highest
    probability (at temperature 1), an equal share in every call; the rest stay masked: low-confidence remasking of LLaDA
    (arXiv:2502.09992). Temperature 0 takes the likeliest tokens.
    prompts: token ids [P_b] a row.  seeds: a row's draws depend on its seed alone, not on who else is in the batch.  end: ids
    after which a row is over; `ends` may say so as well. Blocks after the end are not filled in.
    """
    device = next(network.parameters()).device
    prompt = pad_sequence(list(prompts), batch_first=True, padding_value=pad).to(device)
    prompt_length = torch.tensor([len(tokens) for tokens in prompts], device=device)
    token = torch.full((len(prompts), limit), network.mask, device=device)
    length = torch.full((len(prompts),), limit, device=device)
    cut = torch.ones(len(prompts), dtype=torch.bool, device=device)
    forbidden = [network.mask] + ([] if pad in end else [pad])
    own = [torch.Generator().manual_seed(seed) for seed in seeds]
    rows = torch.arange(len(prompts), device=device)
    for first in range(0, limit, block):
        span = slice(first, min(first + block, limit))
        width = span.stop - first
        uniform = torch.stack([torch.rand(min(steps, width), width, generator=own[row]) for row in rows.tolist()]).to(device)
        canvas = laid_out(prompt[rows], prompt_length[rows], token[rows])
        token[rows, span] = filled(network, canvas, span, uniform, temperature, forbidden)
        over = torch.tensor([over_at(row, first, end, ends) for row in token[rows, : span.stop]], device=device)
        done = rows[over > 0]
        length[done], cut[done], rows = over[over > 0], False, rows[over == 0]
        if not len(rows):
            break
    token[torch.arange(limit, device=device) >= length[:, None]] = pad
    return Unmasked(token, length, cut)


def filled(
    network: MaskedNetwork, canvas: Canvas, span: slice, uniform: Tensor, temperature: float, forbidden: Sequence[int]
) -> Tensor:
    """The tokens of one block [R, w], from the uniform numbers [R, calls, w] of its network calls."""
    place = canvas.columns[:, span]
    tokens, (rows, calls, width) = canvas.tokens, uniform.shape
    left = torch.arange(width, device=place.device).expand(rows, width)  # places of the block that are masked still
    row = torch.arange(rows, device=place.device)[:, None]
    for call in range(calls):
        count = width // calls + (call < width % calls)
        columns = place.gather(1, left)
        logits = network(tokens, canvas.seen, row.expand_as(left).flatten(), columns.flatten())
        logits[:, list(forbidden)] = -torch.inf
        chance = uniform[:, call].gather(1, left).flatten()
        drawn = draw(logits / (temperature or 1.0), chance, greedy=temperature == 0)
        sure = logits.log_softmax(-1).gather(1, drawn[:, None]).view(left.shape)
        order = sure.argsort(dim=1, descending=True, stable=True)
        kept, rest = order[:, :count], order[:, count:]
        tokens = tokens.scatter(1, columns.gather(1, kept), drawn.view(left.shape).gather(1, kept))
        left = left.gather(1, rest)
    return tokens.gather(1, place)


def over_at(tokens: Tensor, first: int, end: Sequence[int], ends: Ends | None) -> int:
    """Length at which a row [T'] is over, by an end token or by what `ends` says, looked for from `first` on; 0 = not yet."""
    for at in range(first, len(tokens)):
        if int(tokens[at]) in end or (ends is not None and ends([tokens[: at + 1]])[0]):
            return at + 1
    return 0
