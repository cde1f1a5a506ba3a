"""Everything a checkpoint holds, so that a resumed run continues bit for bit."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from studio.errors import RunError
from studio.protocols import Policy, Stateful
from studio.shards import load_shards, put_back, save_shards, take_out

FILE = "state.pt"
WEIGHTS = "weights"  # folder: the averaged weights, for sampling and export


def save_state(folder: Path, policy: Policy, parts: Mapping[str, Any], *, rank: int = 0) -> None:
    """Trained weights, every part with a state, and the random states of this process."""
    state = {
        "trainable": [p.detach() if isinstance(p, DTensor) else p.detach().cpu() for p in policy.trainable()],
        "parts": {name: part.state_dict() for name, part in parts.items() if isinstance(part, Stateful)},
        "random": _random_state(),
    }
    shards: dict[str, torch.Tensor] = {}
    rest = take_out(state, shards)
    if shards:
        save_shards(folder, shards)
    if rank == 0:
        torch.save(rest, folder / FILE)


def load_state(folder: Path, policy: Policy, parts: Mapping[str, Any]) -> None:
    """The inverse; refuses a checkpoint of another shape. Loads only tensors and plain values (weights_only)."""
    state = _read(folder, policy)
    _set_trainable(folder / FILE, policy, state["trainable"])
    for name, part in parts.items():
        if isinstance(part, Stateful):
            part.load_state_dict(state["parts"][name])
    _set_random_state(state["random"])


def load_trained(folder: Path, policy: Policy) -> None:
    """The weights as the optimizer left them at this checkpoint; those under `weights/` are their average."""
    _set_trainable(folder / FILE, policy, _read(folder, policy)["trainable"])


def _read(folder: Path, policy: Policy) -> dict[str, Any]:
    """The state with its shards, where there are some, put back in place."""
    file = folder / FILE
    try:
        state = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:
        raise RunError(
            f"{file}: expected a checkpoint of this run, got one that cannot be read ({error}). Remove this checkpoint folder to "
            "resume from the one before."
        ) from error
    return put_back(state, load_shards(folder, state, list(policy.trainable())))


def _set_trainable(file: Path, policy: Policy, stored: list[torch.Tensor]) -> None:
    parameters = list(policy.trainable())
    if [p.shape for p in parameters] != [s.shape for s in stored]:
        raise RunError(f"{file}: expected weights of this recipe's policy, got other shapes. Resume with the run's own recipe.")
    with torch.no_grad():
        for parameter, value in zip(parameters, stored, strict=True):
            parameter.copy_(value)


def remember(parts: Mapping[str, Any]) -> Callable[[], None]:
    """Takes note of these parts and of the random states -> a function that brings both back."""
    stateful = {name: part for name, part in parts.items() if isinstance(part, Stateful)}
    states = {name: copy.deepcopy(part.state_dict()) for name, part in stateful.items()}
    state = _random_state()

    def restore() -> None:
        for name, part in stateful.items():
            part.load_state_dict(states[name])
        _set_random_state(state)

    return restore


def _random_state() -> dict[str, Any]:
    kind, keys, position, has_gauss, cached = np.random.get_state()
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "python": [version, list(internal), gauss],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def final_weights(folder: Path) -> Path:
    """The weights folder of a run's latest complete checkpoint."""
    pointer = folder / "checkpoints" / "latest"
    name = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else ""
    weights = folder / "checkpoints" / name / WEIGHTS
    if not name or not weights.is_dir():
        raise RunError(f"{folder}: expected a run with a checkpoint, got none yet. Wait for it, or `studio train` first.")
    return weights
