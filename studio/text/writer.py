"""What every policy that writes texts has: a network with its tokenizer, the frozen reference, files, and evaluation texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from studio.errors import ConfigError
from studio.frozen import Frozen
from studio.text.chat import Reader
from studio.text.store import load_weights, save_weights
from studio.types import Prompts

Write = Callable[[Sequence[Tensor], Sequence[int], float], Any]  # prompts, seeds, temperature -> `token` [B, T], `length` [B]


class Writer:
    """A network with a tokenizer; how it writes, and what it says of what was written, is its policy's."""

    uneven = True  # rows end when they end: ranks make different numbers of forwards while they sample

    def __init__(self, network: Any, tokenizer: Any, sampling: Any, write: Write, *, lora: bool = False) -> None:
        self.model, self.sampling, self.lora, self.write = network, sampling, lora, write
        self.tokenizer, self.reader = tokenizer, Reader(tokenizer, sampling)
        self.device = next(network.parameters()).device
        self._wrapped: nn.Module = network  # what evaluates with gradients: the network, or what distributes it
        self._frozen = Frozen(network.lm if lora else network, lora=lora)

    @property
    def network(self) -> nn.Module:
        """What to evaluate with now."""
        return self._wrapped if torch.is_grad_enabled() else self.model

    def draw(self, prompts: Prompts, seeds: Sequence[int], *, micro: int = 256) -> list[str]:
        """Evaluation completions; row i depends on its prompt and seeds[i] alone."""
        read, texts = self.reader.read(prompts), []
        for at in range(0, len(read), micro):
            part = self.write(read[at : at + micro], seeds[at : at + micro], self.sampling.eval_temperature)
            texts += self.reader.texts(part)
        return texts

    def check_room(self, prompts: Prompts) -> None:
        """ConfigError for a prompt that leaves no room for its completion, or that cannot be put into the chat's form."""
        room = getattr(self.model.lm.config.get_text_config(), "max_position_embeddings", None)
        for text, tokens in zip(prompts.text, self.reader.read(prompts), strict=True):
            if room is not None and len(tokens) + self.sampling.limit > room:
                raise ConfigError(
                    f"prompt {text[:40]!r}: expected at most {room} tokens of prompt and completion, the model's context, got "
                    f"{len(tokens)} + sampling.limit = {self.sampling.limit}. Shorten the prompt or lower the limit."
                )

    def reference(self) -> AbstractContextManager[None]:
        """The frozen reference: adapters off, or the initial weights swapped in for full fine-tuning."""
        return self._frozen.applied()

    def keep_reference(self) -> None:
        """Store the present weights as the reference; adapters need no copy."""
        self._frozen.keep()

    def distribute(self, model: nn.Module) -> None:
        """Evaluation with gradients goes through this wrapper from now on."""
        self._wrapped = model

    def trainable(self) -> Iterable[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def save(self, folder: Path, *, write: bool = True) -> None:
        """An adapter as PEFT stores it, or the whole model; both with the tokenizer, and the critic beside them."""
        save_weights(self.model, self.tokenizer, folder, lora=self.lora, write=write)

    def load(self, folder: Path) -> None:
        load_weights(self.model, folder, lora=self.lora)
