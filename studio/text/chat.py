"""Prompts to tokens and tokens to texts: chat templates, ends of text, stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from studio.errors import ConfigError
from studio.text.generate import Generated
from studio.text.sampling import Sampling
from studio.types import Prompts

LONGEST = 8  # tokens of one character; more that make none are broken


class Reader:
    """A tokenizer as a policy uses it."""

    def __init__(self, tokenizer: Any, sampling: Sampling) -> None:
        self.tokenizer, self.sampling = tokenizer, sampling
        self.chat = sampling.chat == "on" or (sampling.chat == "auto" and bool(tokenizer.chat_template))
        if self.chat and not tokenizer.chat_template:
            raise ConfigError(
                "recipe.policy.sampling.chat: expected a tokenizer with a chat template for 'on', got one without. Use 'off', or a "
                "model whose tokenizer has one."
            )
        if sampling.system and not self.chat:
            raise ConfigError(
                "recipe.policy.sampling.system: expected a chat template to put it into, got prompts as plain text. Remove it."
            )
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                "recipe.policy.model: expected a tokenizer with an end-of-text token, got one without. Add one to it."
            )
        self.end: list[int] = [tokenizer.eos_token_id]
        self._known: dict[str, Tensor] = {}

    def read(self, prompts: Prompts) -> list[Tensor]:
        """Token ids [P_b] of every prompt; `prompt_used` of its info takes the place of the text, as with hints."""
        return [self._tokens(str(info.get("prompt_used", text))) for text, info in zip(prompts.text, prompts.info, strict=True)]

    def texts(self, done: Generated) -> list[str]:
        """Completions as texts, without end-of-text tokens and without the stop string that ended them."""
        found = []
        for tokens, length in zip(done.token.tolist(), done.length.tolist(), strict=True):
            text = self.tokenizer.decode(tokens[:length], skip_special_tokens=True)
            places = [at for stop in self.sampling.stop if (at := text.find(stop)) >= 0]
            found.append(text[: min(places)] if places else text)
        return found

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The text that each token adds to those before it, end-of-text tokens included; "" for the first bytes of a character."""
        found, start, done = [], 0, 0  # a token is read behind the one before it: some put a space between, some none
        for end in range(1, len(tokens) + 1):
            before, now = (self.tokenizer.decode(tokens[start:to], clean_up_tokenization_spaces=False) for to in (done, end))
            whole = not now.endswith("\ufffd") or end - done == LONGEST or end == len(tokens)
            found.append(now[len(before) :] if whole else "")
            if whole:
                start, done = done, end
        return found

    def told(self, rows: Prompts, done: Generated) -> Prompts:
        """The prompts as rewards see them: with the number of tokens of each completion, its end not counted."""
        ended = torch.isin(
            done.token.gather(1, (done.length - 1).clamp(min=0)[:, None])[:, 0], torch.tensor(self.end).to(done.token)
        )
        lengths = (done.length - ended.long()).tolist()
        return replace(rows, info=[{**info, "tokens": length} for info, length in zip(rows.info, lengths, strict=True)])

    def ends(self, rows: Sequence[Tensor], more: Sequence[str] = ()) -> list[bool]:
        """Whether one of the stop strings, or of `more`, is complete at the end of each row's tokens."""
        stops = (*self.sampling.stop, *more)
        length = 4 + max((len(stop) for stop in stops), default=0)  # tokens in which a stop string ends
        tails = [self.tokenizer.decode(row[-length:].tolist(), skip_special_tokens=True) for row in rows]
        return [any(stop in tail for stop in stops) for tail in tails]

    def _tokens(self, text: str) -> Tensor:
        if text not in self._known:
            if self.chat:
                messages = [{"role": "system", "content": self.sampling.system}] if self.sampling.system else []
                messages.append({"role": "user", "content": text})
                ids = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            else:
                ids = self.tokenizer(text)["input_ids"]
                if ids and ids[-1] == self.tokenizer.eos_token_id:  # some tokenizers close every text
                    ids = ids[:-1]
            if not ids:
                raise ConfigError(f"prompt {text[:40]!r}: expected at least one token, got none. Remove or replace this prompt.")
            self._known[text] = torch.tensor(ids)
        return self._known[text]
