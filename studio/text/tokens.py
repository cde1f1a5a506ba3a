"""Completions as decisions: the record that a rollout carries, and how rows become one batch of the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from studio.types import EVERY


@dataclass(frozen=True, slots=True)
class TokenTrace:
    """What was read and what was written; a decision's likelihood depends on all that came before it in its row.

    Rows are cut; positions are not, as a later one needs the earlier ones: `window` says which of them are asked about.
    """

    prompt: Tensor  # [B, P] int64, filled up on the right
    prompt_length: Tensor  # [B]
    token: Tensor  # [B, T] int64, of the whole completion
    window: tuple[int, int] | None = None  # decisions of the rows, from and to; None = all

    def at(self, rows, steps=EVERY) -> TokenTrace:
        first, last = self.window or (0, self.token.shape[1])
        chosen = range(first, last)[steps]
        window = self.window if steps == EVERY else (chosen.start, chosen.stop)
        return replace(
            self, prompt=self.prompt[rows], prompt_length=self.prompt_length[rows], token=self.token[rows], window=window
        )


class Packed(NamedTuple):
    """One batch of the network: rows without gaps, filled up on the right, and the places whose answers are wanted."""

    tokens: Tensor  # [B, L]
    row: Tensor  # [N]
    column: Tensor  # [N] where the network has read all that comes before the decision
    decision: Tensor  # [N] position in the row's completion
    chosen: Tensor  # [N] the token that was taken there


def trace_of(prompts: Sequence[Tensor], token: Tensor) -> TokenTrace:
    """The record of completions [B, T] of these prompts, [P_b] each."""
    length = torch.tensor([len(prompt) for prompt in prompts], device=token.device)
    return TokenTrace(pad_sequence([p.to(token.device) for p in prompts], batch_first=True), length, token)


def pack(trace: TokenTrace, wanted: Tensor) -> Packed:
    """The rows of a trace up to their last wanted decision; wanted [B, T'] bool over the window.

    A batch in which nothing is wanted asks about the first decision, as every process takes part in every call.
    """
    first = trace.window[0] if trace.window else 0
    if not wanted.any():
        wanted = wanted.clone()
        wanted[0, 0] = True
    row, place = wanted.nonzero(as_tuple=True)
    decision = place + first
    column = trace.prompt_length[row] + decision - 1
    width = int(column.max()) + 1
    at = torch.arange(width, device=wanted.device).expand(len(wanted), width)
    own = at - trace.prompt_length[:, None]  # position in the completion, negative inside the prompt
    prompt = trace.prompt.gather(1, at.clamp(max=trace.prompt.shape[1] - 1))
    written = trace.token.gather(1, own.clamp(0, trace.token.shape[1] - 1))
    return Packed(torch.where(own < 0, prompt, written), row, column, decision, trace.token[row, decision])
