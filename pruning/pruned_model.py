"""Layers of a pruned network that stock classes do not have. Imports torch only: this file travels with compact exports."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ScatterLinear(nn.Module):
    """A linear layer some of whose outputs were removed: those are constants, and the width stays.

    y[kept] = W x + b, y elsewhere = fill.
    """

    kept: Tensor
    fill: Tensor

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
    """The processor of a diffusers attention module without heads: its output layers' biases, for every token."""

    def __call__(self, attn, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *args, **kwargs):
        to_out = getattr(attn, "to_out", None)  # a FLUX single block reads the heads itself
        hidden = _without_heads(None if to_out is None else to_out[0], hidden_states)
        joint = getattr(attn, "add_k_proj", None) is not None  # cross-attention is given text too, and answers for the picture
        if encoder_hidden_states is None or not joint:
            return hidden
        return hidden, _without_heads(getattr(attn, "to_add_out", None), encoder_hidden_states)


class EmptyDecoderAttention(nn.Module):
    """Stands for the attention of a decoder layer of which no head is left: its output layer's bias, for every token."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.layer_idx = attention.layer_idx
        for name, child in attention.named_children():  # the names of the weights stay
            self.add_module(name, child)

    def forward(self, hidden_states: Tensor, *args, past_key_values=None, **kwargs):
        if past_key_values is not None:  # caches read the length of a sequence from what their first layer holds
            rows, tokens = hidden_states.shape[:2]
            empty = hidden_states.new_zeros(rows, 1, tokens, 1)
            past_key_values.update(empty, empty, self.layer_idx)
        return _without_heads(self.o_proj, hidden_states), None


def _without_heads(out, x: Tensor) -> Tensor:
    nothing = x.new_zeros(*x.shape[:-1], 0)
    return nothing if out is None else out(nothing)
