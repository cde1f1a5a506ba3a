"""Trained language models on disk: adapters as PEFT stores them, whole models as transformers does; safetensors only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.distributed.tensor import DTensor

from studio.errors import MissingError
from studio.text.network import TokenNetwork

CRITIC = "critic.safetensors"
ADAPTER = "adapter_model.safetensors"


def save_weights(network: TokenNetwork, tokenizer: Any, folder: Path, *, lora: bool, write: bool = True) -> None:
    """Every rank of a sharded run must call this, as whole tensors are gathered; `write` on one of them."""
    from safetensors.torch import save_file

    whole = _whole(network)
    if not write:
        return
    folder.mkdir(parents=True, exist_ok=True)
    own = {name.removeprefix("lm."): value for name, value in whole.items() if name.startswith("lm.")}
    if lora:
        network.lm.save_pretrained(folder, state_dict=own)
    else:
        network.lm.save_pretrained(folder, state_dict=own)
        tokenizer.save_pretrained(folder)
    critic = {name.removeprefix("critic."): value for name, value in whole.items() if name.startswith("critic.")}
    if critic:
        save_file(critic, folder / CRITIC)


def load_weights(network: TokenNetwork, folder: Path, *, lora: bool) -> None:
    """Weights that `save_weights` wrote, into the present network."""
    from safetensors.torch import load_file

    files = [folder / ADAPTER] if lora else sorted(folder.glob("model*.safetensors"))
    if not files or not all(file.is_file() for file in files):
        raise MissingError(f"{folder}: expected trained weights, got none. Name a checkpoint folder of a run.")
    stored = {name: value for file in files for name, value in load_file(file).items()}
    if lora:
        from peft.utils import set_peft_model_state_dict

        result = set_peft_model_state_dict(network.lm, stored)
        wrong = [*result.unexpected_keys, *(key for key in result.missing_keys if "lora_" in key)]
    else:
        result = network.lm.load_state_dict(stored, strict=False)
        tied = set(network.lm._tied_weights_keys or {}) if network.lm.config.tie_word_embeddings else set()
        wrong = [*result.unexpected_keys, *(key for key in result.missing_keys if key not in tied)]
        network.lm.tie_weights()
    if wrong:
        raise MissingError(f"{folder}: expected the weights of this model, got others (first: {wrong[0]}). Use its own base model.")
    if network.critic is not None and (folder / CRITIC).is_file():
        network.critic.load_state_dict(load_file(folder / CRITIC))


def _whole(network: TokenNetwork) -> dict[str, Any]:
    """The state by name, on the CPU. Tied weights stay one tensor, so that a file has them once."""
    named = network.state_dict(keep_vars=True)
    own = {id(value): value for value in named.values()}
    moved = {key: (v.full_tensor() if isinstance(v, DTensor) else v).detach().cpu() for key, v in own.items()}
    return {name: moved[id(value)] for name, value in named.items()}
