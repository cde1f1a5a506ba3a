"""A causal language model with what is asked of it here: hidden states at chosen places, heads on them, one forward for all."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from studio.text.head import token_logp
from studio.text.recompute import awake, recompute_layers


class Heard(NamedTuple):
    """Of N places of a batch."""

    logits: Tensor | None  # [N, V] float32, at the sampling temperature, where no tokens were asked about
    logp: Tensor | None  # [N] of the tokens that were asked about
    entropy: Tensor | None  # [N]
    tempered: Tensor | None  # [N, 3]
    value: Tensor | None  # [N] the critic's estimate at the place, before its token is known


class TokenNetwork(nn.Module):
    """The model, and a linear critic on its last hidden state where the objective needs one.

    Everything goes through `forward`, so that a wrapper for several processes, or for shards, sees every call.
    """

    def __init__(self, lm: Any, *, critic: bool = False, recompute: bool = False) -> None:
        super().__init__()
        self.lm = lm
        self._layers = recompute_layers(lm) if recompute else []
        self.critic: nn.Linear | None = None
        if critic:
            self.critic = nn.Linear(lm.config.get_text_config().hidden_size, 1)
            nn.init.zeros_(self.critic.weight)
            nn.init.zeros_(self.critic.bias)
        self._no_split_modules = lm._no_split_modules

    def forward(
        self,
        tokens: Tensor,  # [B, L]
        rows: Tensor,  # [N] of the places
        columns: Tensor,  # [N]
        chosen: Tensor | None = None,  # [N] the tokens that followed
        *,
        temperature: float = 1.0,
        tempered: bool = False,
        cache: Any = None,
        mask: Tensor | None = None,  # [B, 1, L, tokens so far] bool; None = all that came before
        positions: Tensor | None = None,  # [B, L]; None = from 0
    ) -> Heard:
        body = self.lm.base_model
        awake(self._layers, cache is None and torch.is_grad_enabled())
        hidden = body(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state[rows, columns]
        value = None if self.critic is None else self.critic(hidden.to(self.critic.weight.dtype))[:, 0].float()
        head = self.lm.get_output_embeddings()
        if chosen is None:
            logits = head(hidden).float()
            return Heard(logits if temperature == 1 else logits.div_(temperature), None, None, None, value)
        said = token_logp(hidden, head.weight, chosen, head.bias, temperature=temperature, tempered=tempered)
        return Heard(None, said.logp, said.entropy, said.tempered, value)
