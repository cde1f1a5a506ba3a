"""Keys and values of the tokens so far, in buffers of the final length: written in place, shared by a group, thinned out."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class Buffer(CacheLayerMixin):
    """One layer's keys and values [rows, heads, length, width]; the first `used` positions count."""

    is_sliding = False

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length, self.used = length, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        def room(x: Tensor) -> Tensor:
            return x.new_empty(*x.shape[:2], self.length, x.shape[3])

        self.keys, self.values, self.is_initialized = room(key_states), room(value_states), True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        until = self.used + key_states.shape[2]
        self.keys[:, :, self.used : until] = key_states
        self.values[:, :, self.used : until] = value_states
        self.used = until
        return self.keys[:, :, :until], self.values[:, :, :until]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.used + query_length, 0

    def get_seq_length(self) -> int:
        return self.used

    def get_max_length(self) -> int:
        return self.length

    def take(self, rows: Tensor) -> None:
        """Only these rows, in this order; a row may come several times. Unused room is not copied."""
        assert self.keys is not None and self.values is not None
        self.keys, self.values = self._taken(self.keys, rows), self._taken(self.values, rows)

    def _taken(self, x: Tensor, rows: Tensor) -> Tensor:
        new = x.new_empty(len(rows), *x.shape[1:])
        new[:, :, : self.used] = x[:, :, : self.used].index_select(0, rows)
        return new


def buffers(layers: int, length: int) -> Cache:
    """Room for `length` tokens a row in every layer."""
    return Cache(layers=[Buffer(length) for _ in range(layers)])


def take(cache: Cache, rows: Tensor) -> None:
    """Only these rows of every layer."""
    for layer in cache.layers:
        layer.take(rows)  # type: ignore[union-attr]
