"""Layers of a pruned network that stock classes do not have. Imports torch only: this file travels with compact exports."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ScatterLinear(nn.Module):
    """A linear layer some of whose outputs were removed: those are constants, and the width stays.

    y[kept] = W x + b, y elsewhere = fill.
    """

    def __init__(self, in_features: int, out_features: int, rows: int, *, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(rows, in_features))
        self.bias = nn.Parameter(torch.empty(rows)) if bias else None
        self.register_buffer("kept", torch.zeros(rows, dtype=torch.int64))
        self.register_buffer("fill", torch.zeros(out_features))

    def forward(self, x: Tensor) -> Tensor:
        made = nn.functional.linear(x, self.weight, self.bias)
        constant = self.fill.to(made).expand(*made.shape[:-1], -1)
        return constant.index_copy(-1, self.kept, made)


class EmptyAttention:
    """The processor of an attention module without heads: its output layers' biases, for every token."""

    def __call__(self, attn, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *args, **kwargs):
        def out(layers, x: Tensor) -> Tensor:
            nothing = x.new_zeros(*x.shape[:-1], 0)
            return nothing if layers is None else layers(nothing)

        to_out = getattr(attn, "to_out", None)  # a FLUX single block reads the heads itself
        hidden = out(None if to_out is None else to_out[0], hidden_states)
        joint = getattr(attn, "add_k_proj", None) is not None  # cross-attention is given text too, and answers for the picture
        if encoder_hidden_states is None or not joint:
            return hidden
        return hidden, out(getattr(attn, "to_add_out", None), encoder_hidden_states)
