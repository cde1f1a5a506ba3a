"""What is trained: LoRA adapters or all weights; how both are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from studio.errors import MissingError

LORA_FILE = "pytorch_lora_weights.safetensors"


def attach_lora(model: nn.Module, targets: tuple[str, ...], *, rank: int, alpha: float) -> None:
    """Freeze the network and add Gaussian-initialized adapters, kept in float32."""
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    model.requires_grad_(False)
    settings: Any = {"r": rank, "lora_alpha": alpha, "target_modules": list(targets)}
    config = LoraConfig(**settings, init_lora_weights="gaussian")
    model.add_adapter(config)  # type: ignore[operator]
    cast_training_params(model)


def save_weights(pipeline, model: nn.Module, folder: Path, *, lora: bool, write: bool = True) -> None:
    """LoRA with the factor alpha/r folded into B (stock loaders then need no metadata), or the whole network.

    Every rank of a sharded run must call this, as whole tensors are gathered; `write` on one of them.
    """
    if not lora:
        whole: Any = gathered(model)
        if write:
            whole.save_pretrained(folder / component(model))
        return
    layers: Any = {f"{component(model)}_lora_layers": {key: _whole(value) for key, value in folded(model).items()}}
    if write:
        type(pipeline).save_lora_weights(folder, **layers)


def gathered(model: nn.Module) -> nn.Module:
    """The network itself, or for a sharded one a whole copy on the CPU, of the class it had before."""
    state = model.state_dict()
    if not any(isinstance(value, DTensor) for value in state.values()):
        return model
    plain: Any = next(kind for kind in type(model).__mro__ if not kind.__name__.startswith("FSDP"))
    with torch.device("meta"):
        copy = plain.from_config(model.config)
    copy.load_state_dict({key: _whole(value) for key, value in state.items()}, assign=True)
    return copy


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def component(model: nn.Module) -> str:
    """The network's name within its pipeline: the folder of whole weights and the first part of every LoRA key."""
    return "unet" if "UNet" in type(model).__name__ else "transformer"  # a sharded model has a longer class name


def load_weights(model: nn.Module, folder: Path, *, lora: bool) -> None:
    """Weights that `save_weights` wrote, into the present network."""
    from safetensors.torch import load_file

    file = folder / LORA_FILE if lora else folder / component(model)
    files = sorted(file.glob("*.safetensors")) if file.is_dir() else [file]  # large networks are saved in shards
    if not file.exists() or not files:
        raise MissingError(f"{file}: expected trained weights, got no such file. Name a checkpoint folder of a run.")
    stored = {key: value for part in files for key, value in load_file(part).items()}
    if not lora:
        model.load_state_dict(stored)
        return
    from peft.utils import set_peft_model_state_dict

    rank, alpha = _scale(model)
    state = {key.removeprefix(f"{component(model)}."): value for key, value in stored.items()}
    for key in state:
        if "lora_B" in key:
            state[key] = state[key] * (rank / alpha)
    result = set_peft_model_state_dict(model, state)
    absent = [key for key in result.missing_keys if "lora_" in key]
    if result.unexpected_keys or absent:
        got = f"{result.unexpected_keys[:3]} besides" if result.unexpected_keys else f"none for {absent[:3]}"
        raise MissingError(f"{file}: expected exactly the adapters of this network, got {got}. Use its own base model and targets.")


def folded(model: nn.Module) -> dict:
    """The adapter's state with B' = (alpha/r)·B, so that strength 1 means what was trained."""
    from peft.utils import get_peft_model_state_dict

    rank, alpha = _scale(model)
    state = get_peft_model_state_dict(model)
    return {key: value * (alpha / rank) if "lora_B" in key else value for key, value in state.items()}


def _scale(model: nn.Module) -> tuple[float, float]:
    config: Any = model.peft_config["default"]  # type: ignore[index]
    return config.r, config.lora_alpha
