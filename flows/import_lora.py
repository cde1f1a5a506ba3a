"""LoRA folders of other trainers (PEFT's own format) as files that diffusers and ComfyUI load at the trained strength."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flows.adapter import LORA_FILE
from flows.export import COMFY_FILE, FLOAT32_ERROR, HALF_ERROR, difference, is_float32, load_lora, save_lora, save_underscored
from studio.errors import ExportError, MissingError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
UNET = ("down_blocks.", "mid_block.", "up_blocks.")  # first parts of module names that only a UNet has
REBASED = ("pissa", "olora", "loftq", "corda", "lora_ga")  # initializations that also change the base weights


class Imported(NamedTuple):
    """What was found in a PEFT folder."""

    file: Path
    component: str
    modules: int
    rank: int  # the largest; smaller adapters are padded with zeros
    error: float | None  # relative difference from what PEFT answers, when a base was given


def import_lora(folder: Path, out: Path, *, underscored: bool = False, base: Any = None) -> Imported:
    """Fold every module's strength into B and write the file of `studio export`; with a loaded `base`, compare forwards."""
    settings, stored = read_peft(folder)
    component, state = convert(folder, settings, stored)
    from diffusers import FluxPipeline, StableDiffusionXLPipeline

    # which class writes is of no consequence: for a given component all of them write the same keys
    save_lora(StableDiffusionXLPipeline if component == "unet" else FluxPipeline, component, state, out)
    if underscored or component == "unet":
        save_underscored(component, state, out)
    try:
        error = None if base is None else compare(folder, out / LORA_FILE, base)
    except ExportError:
        for name in (LORA_FILE, COMFY_FILE):  # nobody should load what was refused
            (out / name).unlink(missing_ok=True)
        raise
    rank = next(len(value) for key, value in state.items() if "lora_A" in key)
    return Imported(out / LORA_FILE, component, len(state) // 2, rank, error)


def read_peft(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and tensors of a PEFT folder; pickled weights are refused, because reading them may run code."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / CONFIG).is_file():
        raise MissingError(f"{folder}: expected a PEFT folder with {CONFIG}, got none. Name the folder that save_pretrained wrote.")
    if not (folder / WEIGHTS).is_file():
        pickled = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        got = f"{pickled[0]}, a pickle that may run code when read" if pickled else "no such file"
        raise ExportError(f"{folder}: expected {WEIGHTS}, got {got}. Save it again with safe_serialization=True.")
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ExportError(f"{folder / CONFIG}: expected JSON, got: {error}. Save the adapter again.") from error
    try:
        return settings, load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ExportError(
            f"{folder / WEIGHTS}: expected a safetensors file, got a damaged one ({error}). Copy or save the adapter again."
        ) from error


def convert(folder: Path, settings: Mapping[str, Any], stored: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """(component, state): keys `<module>.lora_A.weight` and B' = s·B, all of one rank.

    s = alpha/r, or alpha/√r with use_rslora, with r and alpha of each module by rank_pattern and alpha_pattern. Adapters of
    a smaller rank are padded with zeros, which is exact: a reader that assumes one alpha for the whole file is then right too.
    """
    import torch

    _refuse_other_kinds(folder, settings, stored)
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, value in stored.items():
        found = re.fullmatch(r"(?:base_model\.model\.)?(.+)\.(lora_[AB])(?:\.[^.]+)?\.weight", key)
        if found is None:
            raise ExportError(f"{folder}: expected keys ending in lora_A.weight and lora_B.weight, got {key!r}. Export it as LoRA.")
        pairs.setdefault(found[1], {})[found[2]] = value
    _refuse_halves(folder, pairs)
    largest = max(len(pair["lora_A"]) for pair in pairs.values())
    component, state = "", {}
    for path, pair in pairs.items():
        component, module = _component(path)
        down, up = pair["lora_A"], pair["lora_B"]
        factor = strength(folder, settings, path, len(down))
        pad = largest - len(down)
        up = torch.cat([(up.float() * factor).to(up.dtype), up.new_zeros(len(up), pad, *up.shape[2:])], dim=1)
        down = torch.cat([down, down.new_zeros(pad, *down.shape[1:])])
        state[f"{module}.lora_A.weight"], state[f"{module}.lora_B.weight"] = down, up
    return component, state


def strength(folder: Path, settings: Mapping[str, Any], module: str, rank: int) -> float:
    """s of one module; its rank must be what the settings say, or the file and its settings are of different adapters."""
    stated = _pattern(settings.get("rank_pattern"), module, settings.get("r"))
    alpha = _pattern(settings.get("alpha_pattern"), module, settings.get("lora_alpha"))
    if stated != rank or not isinstance(alpha, int | float):
        raise ExportError(
            f"{folder / CONFIG}: {module}: expected rank {rank} as in {WEIGHTS} and a number lora_alpha, got r = {stated!r} and "
            f"lora_alpha = {alpha!r}. Use the settings that were saved with these weights."
        )
    return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank


def compare(folder: Path, file: Path, base: Any) -> float:
    """max |v_file - v_peft| / max(1, max |v_peft|).

    The same untouched base, once with the new file as diffusers loads it, once as PEFT reads the folder.
    """
    import torch
    from peft import PeftModel

    from flows.denoise import RowNoise

    pipeline, network = base.pipeline, base.network
    x = RowNoise([0], base.latent_shape)().to(next(network.parameters()).device)
    condition, sigma = base.encode(["a red circle"]), x.new_full((1,), 0.5)
    with torch.no_grad():
        load_lora(pipeline, file)
        ours = base.velocity(x, sigma, condition).float()
        network.unload_lora()
        base.network = PeftModel.from_pretrained(network, str(folder))
        theirs = base.velocity(x, sigma, condition).float()
    error = difference(ours, theirs)
    limit = FLOAT32_ERROR["lora"] if is_float32(network) else HALF_ERROR
    if not error <= limit:
        raise ExportError(
            f"{file}: expected the answers of the PEFT folder within {limit:g}, got a difference of {error:.3g}. Check that the "
            "base is the one it was trained on."
        )
    return error


def _component(path: str) -> tuple[str, str]:
    for component in ("transformer", "unet"):
        if path.startswith(f"{component}."):
            return component, path.removeprefix(f"{component}.")
    return ("unet" if path.startswith(UNET) else "transformer"), path


def _pattern(patterns: Mapping[str, Any] | None, module: str, otherwise: Any) -> Any:
    """The value of the first pattern that matches the end of a module's name, as PEFT decides it."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return otherwise


def _refuse_other_kinds(folder: Path, settings: Mapping[str, Any], stored: Mapping[str, Tensor]) -> None:
    """What a plain pair of matrices cannot say is refused by name, never dropped."""
    start = str(settings.get("init_lora_weights", "")).lower()
    wrong = {
        "peft_type": settings.get("peft_type", "LORA") not in ("LORA", None),
        "use_dora": bool(settings.get("use_dora")),
        "lora_bias": bool(settings.get("lora_bias")),
        "bias": settings.get("bias", "none") not in ("none", None),
        "modules_to_save": bool(settings.get("modules_to_save")),
        "fan_in_fan_out": bool(settings.get("fan_in_fan_out")),
        "layer_replication": bool(settings.get("layer_replication")),
        "target_parameters": bool(settings.get("target_parameters")),
        "init_lora_weights": start.startswith(REBASED),
    }
    named = [f"{name} = {settings.get(name)!r}" for name, bad in wrong.items() if bad]
    if named or not stored:
        got = ", ".join(named) or "no tensor"
        raise ExportError(
            f"{folder}: expected a plain LoRA, got {got}. "
            "Merge it into its base with PEFT (merge_and_unload) and use the whole model."
        )


def _refuse_halves(folder: Path, pairs: Mapping[str, Mapping[str, Tensor]]) -> None:
    odd = [module for module, pair in pairs.items() if len(pair) != 2 or pair["lora_A"].shape[0] != pair["lora_B"].shape[1]]
    if odd:
        raise ExportError(
            f"{folder}: expected lora_A and lora_B of one rank for {odd[0]}, got no such pair. Save the adapter again."
        )
