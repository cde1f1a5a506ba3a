"""The frozen reference of a policy: adapters off, or the initial weights swapped in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Frozen:
    """What a network was before training; with adapters nothing needs to be stored."""

    def __init__(self, model: Any, *, lora: bool) -> None:
        self.model, self.lora = model, lora
        self.stored: list[Tensor] | None = None

    def keep(self) -> None:
        """Store the present weights as the reference."""
        if not self.lora:
            self.stored = [p.detach().clone() for p in self._trained()]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the network is the reference."""
        if self.lora:
            self.model.disable_adapters()
            try:
                yield
            finally:
                self.model.enable_adapters()
            return
        if self.stored is None:
            raise RuntimeError("reference: expected keep_reference() before the first update, got no stored weights.")
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _trained(self) -> list[Any]:
        return [p for p in self.model.parameters() if p.requires_grad]

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, stored in zip(self._trained(), self.stored or (), strict=True):
            current = parameter.detach().clone()
            parameter.copy_(stored)
            stored.copy_(current)
