"""Formats that leave the studio: LoRA files and whole pipelines. Each is loaded again by stock code and compared."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.adapter import LORA_FILE, component, folded
from studio.errors import ConfigError, ExportError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flows.policy import DenoisePolicy

COMFY_FILE = "comfyui.safetensors"  # the same adapter under underscored keys
# Largest error that is rounding: 1e-6 and 5e-6 were measured on six layers, and it grows with depth; a wrong strength is 1e-2.
FLOAT32_ERROR = {"lora": 1e-5, "pipeline": 1e-4}
HALF_ERROR = 0.05  # bfloat16 keeps 8 bits of each weight


@dataclass(frozen=True)
class Written:
    """An export as it came back from the disk."""

    component: str  # transformer or unet
    pipeline: str  # class name, for the card
    error: float  # max |v_reloaded - v_trained| at a fixed noise and prompt, over max(1, max |v_trained|)
    effect: float | None  # max |v_trained - v_base|; None where the base is gone


def write_lora(policy: DenoisePolicy, folder: Path, *, underscored: bool = False) -> Written:
    """`pytorch_lora_weights.safetensors` with strength 1, for diffusers and ComfyUI; a UNet also gets underscored keys."""
    if not policy.lora:
        raise ConfigError("export lora: expected a run that trains LoRA adapters, got one that trains all weights. Use pipeline.")
    pipeline, network = policy.backbone.pipeline, policy.model
    part = component(network)
    trained, state = probe(policy), folded(network)
    save_lora(type(pipeline), part, state, folder)
    if underscored or part == "unet":
        save_underscored(part, state, folder)
    network.unload_lora()  # type: ignore[operator]
    base = probe(policy)
    load_lora(pipeline, folder / LORA_FILE)
    error = difference(probe(policy), trained)
    _refuse(error, FLOAT32_ERROR["lora"] if is_float32(network) else HALF_ERROR, folder)
    return Written(part, type(pipeline).__name__, error, difference(trained, base))


def write_pipeline(policy: DenoisePolicy, folder: Path, dtype: str = "float32") -> Written:
    """The whole pipeline with the trained part merged in float32 and stored as `dtype`; safetensors only."""
    import torch

    pipeline, network = policy.backbone.pipeline, policy.model
    part = component(network)
    network.to(torch.float32)  # a base in half precision would answer with its own rounding
    trained, base = probe(policy), None
    if policy.lora:
        with policy.reference():
            base = probe(policy)
        network.fuse_lora()  # type: ignore[operator]
        network.unload_lora()  # type: ignore[operator]
    network.to(getattr(torch, dtype))
    pipeline.save_pretrained(folder, safe_serialization=True)
    forget_places(folder)
    stored: Any = type(network)
    again = stored.from_pretrained(folder / part, dtype=getattr(torch, dtype)).to(policy.device).eval()
    pipeline.register_modules(**{part: again})
    policy.backbone.network = again
    error = difference(probe(policy), trained)
    _refuse(error, FLOAT32_ERROR["pipeline"] if dtype == "float32" else HALF_ERROR, folder)
    return Written(part, type(pipeline).__name__, error, None if base is None else difference(trained, base))


def save_lora(pipeline: Any, component: str, state: dict[str, Tensor], folder: Path) -> None:
    """The file everyone reads: keys `<component>.<module>.lora_A.weight`; alpha = r is also said in the metadata."""
    ranks = {len(value) for key, value in state.items() if "lora_A" in key}
    if len(ranks) != 1:
        raise ExportError(f"{folder}: expected adapters of one rank, got {sorted(ranks)}. Pad the smaller ones with zeros first.")
    rank = ranks.pop()
    modules = sorted(key.removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight"))
    settings = {"r": rank, "lora_alpha": rank, "use_rslora": False, "target_modules": modules}
    layers: dict[str, Any] = {
        f"{component}_lora_layers": {key: value.detach().cpu().contiguous() for key, value in state.items()},
        f"{component}_lora_adapter_metadata": settings,
    }
    folder.mkdir(parents=True, exist_ok=True)
    pipeline.save_lora_weights(folder, **layers)


def save_underscored(component: str, state: dict[str, Tensor], folder: Path) -> None:
    """The same adapter as ComfyUI and kohya's tools name it: `lora_<component>_<module>.lora_down.weight`, and its alpha."""
    import torch
    from safetensors.torch import save_file

    named: dict[str, Tensor] = {}
    for key, value in state.items():
        module, _, side = key.removesuffix(".weight").rpartition(".")
        name = f"lora_{component}_{module.replace('.', '_')}"
        named[f"{name}.{'lora_down' if side == 'lora_A' else 'lora_up'}.weight"] = value.detach().cpu().contiguous()
        if side == "lora_A":
            named[f"{name}.alpha"] = torch.tensor(float(len(value)))
    save_file(named, folder / COMFY_FILE, metadata={"format": "pt"})


def load_lora(pipeline: Any, file: Path) -> None:
    """Stock `load_lora_weights`, which only warns when nothing fits; here that is an ExportError."""
    from safetensors import safe_open

    network = getattr(pipeline, "unet", None) or pipeline.transformer
    with safe_open(file, "pt") as stored:
        keys = list(stored.keys())
    try:
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    except (ValueError, RuntimeError, KeyError) as error:
        raise ExportError(f"{file}: expected LoRA weights of this pipeline, got an error: {error}. {_keys_advice(keys)}") from error
    modules = {name.replace(".", "_") for name in adapted_modules(network)}
    lost = [key for key in keys if ("lora_A" in key or "lora_down" in key) and not _belongs(key, modules)]
    if not modules or lost:
        raise ExportError(
            f"{file}: expected an adapter for every key, got {len(modules)} modules with one; unmatched: "
            f"{', '.join((lost or keys)[:3])}. {_keys_advice(keys)}"
        )


def adapted_modules(network: nn.Module) -> list[str]:
    """Names of the modules that carry an adapter."""
    return [name for name, module in network.named_modules() if len(getattr(module, "lora_A", ()))]


def _belongs(key: str, modules: set[str]) -> bool:
    bare = key.removesuffix(".weight").rpartition(".")[0].replace(".", "_")
    return any(bare == f"{start}{module}" for module in modules for start in ("", "unet_", "transformer_", "lora_unet_"))


def _keys_advice(keys: list[str]) -> str:
    if any(key.startswith("base_model.model.") for key in keys):
        return "This is a PEFT folder of another trainer: run `studio import-lora` on it first."
    return "Name a LoRA file of this model family."


def probe(policy: DenoisePolicy) -> Tensor:
    """The velocity at one fixed noise and prompt, [1, *E]: equal before and after a round trip over the disk."""
    import torch

    from flows.denoise import RowNoise

    x = RowNoise([0], policy.backbone.latent_shape)().to(policy.device)
    with torch.no_grad():
        return policy.velocity(["a red circle"])(x, x.new_full((1,), 0.5)).float()


def forget_places(folder: Path) -> None:
    """Remove where a model was loaded from (`_name_or_path`) from every JSON file: it would publish this machine's paths."""
    for file in sorted(folder.rglob("*.json")):
        data = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(data, dict) and Path(str(data.get("_name_or_path", ""))).is_absolute():
            del data["_name_or_path"]
            file.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def difference(a: Tensor, b: Tensor) -> float:
    """max |a - b| / max(1, max |b|)"""
    return (a - b).abs().max().item() / max(1.0, b.abs().max().item())


def is_float32(network: nn.Module) -> bool:
    import torch

    return {p.dtype for p in network.parameters()} == {torch.float32}


def _refuse(error: float, limit: float, folder: Path) -> None:
    if not error <= limit:
        raise ExportError(
            f"{folder}: expected the reloaded weights to answer as the trained ones within {limit:g}, got {error:.3g}. "
            "Nothing was exported; export the other format, or report this model."
        )
