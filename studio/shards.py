"""Checkpoints of sharded runs: every rank writes its share of each tensor, the small rest stays one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import checkpoint as sharded
from torch.distributed.tensor import DTensor

FOLDER = "shards"
MARK = "sharded tensor"


def take_out(state: Any, found: dict[str, Tensor], place: str = "state") -> Any:
    """The state with every sharded tensor moved to `found` under its place, and a mark left behind."""
    if isinstance(state, DTensor):
        found[place] = state.detach()
        return {MARK: place, "shape": list(state.shape)}
    if isinstance(state, dict):
        return {key: take_out(value, found, f"{place}.{key}") for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(take_out(value, found, f"{place}.{index}") for index, value in enumerate(state))
    return state


def put_back(state: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `take_out`."""
    if isinstance(state, dict):
        if MARK in state:
            return tensors[state[MARK]]
        return {key: put_back(value, tensors) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(put_back(value, tensors) for value in state)
    return state


def save_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Every rank calls this; each writes what it holds."""
    sharded.save(dict(tensors), checkpoint_id=str(folder / FOLDER))


def load_shards(folder: Path, state: Any, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
    """The marked tensors of a state, laid out as the present parameters of the same shape: the number of ranks may differ."""
    layouts = {tuple(p.shape): p for p in parameters}
    tensors = {place: torch.empty_like(layouts[shape], requires_grad=False) for place, shape in _marks(state)}
    if tensors:
        sharded.load(tensors, checkpoint_id=str(folder / FOLDER))
    return tensors


def _marks(state: Any) -> list[tuple[str, tuple[int, ...]]]:
    if isinstance(state, dict):
        if MARK in state:
            return [(state[MARK], tuple(state["shape"]))]
        return [mark for value in state.values() for mark in _marks(value)]
    return [mark for value in state for mark in _marks(value)] if isinstance(state, list | tuple) else []
