"""From the `model` block of a recipe to a backbone: which pipeline, where it lies, and what may go wrong on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from studio.errors import ConfigError, MissingError

if TYPE_CHECKING:
    from flows.policy import DenoisePolicy
    from flows.sampler import Sampler

BUNDLED = {"shapes": "pipeline"}  # names that need no download


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters; the defaults are Flow-GRPO's for SD3.5."""

    rank: Annotated[int, Field(ge=1)] = 32
    alpha: Annotated[float, Field(gt=0)] = 64.0
    targets: list[str] = field(default_factory=list)  # empty = the backbone's published list


@dataclass(frozen=True)
class Model:
    """The model to align."""

    id: str = "shapes"  # a bundled name, a local folder, or a Hub id
    train: Literal["lora", "full"] = "lora"
    lora: Lora = field(default_factory=Lora)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of frozen weights; what is trained stays float32
    device: str = "auto"
    resolution: int | None = None  # pixels; None = the pipeline's own
    text_length: Annotated[int, Field(ge=1)] = 256  # tokens of the T5 encoder; 1 leaves out the bundled model's silent one
    embedded_guidance: Annotated[float, Field(ge=0)] = 3.5  # FLUX.1-dev's guidance embedding
    revision: str | None = None


def locate(model_id: str) -> str:
    """Folder of a bundled name, the folder itself, or the Hub id unchanged."""
    if model_id in BUNDLED:
        return str(files("flows.shapes") / BUNDLED[model_id])
    looks_local = model_id.startswith((".", "/", "~")) or model_id.count("/") > 1
    path = Path(model_id).expanduser()
    if looks_local and not (path / "model_index.json").is_file():
        raise MissingError(
            f"recipe.model.id: expected a diffusers pipeline folder with model_index.json, got {model_id!r} which has none. "
            f"Give a folder written by save_pretrained, a Hub id, or one of: {', '.join(BUNDLED)}."
        )
    return str(path) if path.exists() else model_id


def load_backbone(model: Model) -> Any:
    """The pipeline on its device as a backbone, everything frozen."""
    import torch
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    place = locate(model.id)
    try:
        pipeline = DiffusionPipeline.from_pretrained(place, dtype=getattr(torch, model.dtype), revision=model.revision)
    except Exception as error:  # whatever a loader raises for a missing, gated or broken model means the same to a user
        raise _missing(model.id, place, error) from error
    device = ("cuda" if torch.cuda.is_available() else "cpu") if model.device == "auto" else model.device
    pipeline.to(device)
    pipeline.vae.to(torch.float32, memory_format=torch.channels_last)  # convolutions are a quarter faster, on a CPU too
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    return _backbone(type(pipeline).__name__)(pipeline, model)


def build_policy(model: Model, sampler: Sampler, seed: int) -> DenoisePolicy:
    """A policy with what the recipe trains made trainable."""
    import torch

    from flows.adapter import attach_lora
    from flows.policy import DenoisePolicy

    backbone = load_backbone(model)
    torch.manual_seed(seed)  # adapters start from a Gaussian
    if model.train == "lora":
        targets = tuple(model.lora.targets) or backbone.lora_targets
        attach_lora(backbone.network, targets, rank=model.lora.rank, alpha=model.lora.alpha)
    else:
        backbone.network.to(torch.float32).requires_grad_(True)
    return DenoisePolicy(backbone, sampler, seed=seed, lora=model.train == "lora")


def _backbone(pipeline: str) -> Callable[[Any, Model], Any]:
    def sd3(pipe, model: Model):
        from flows.backbones.sd3 import SD3

        return SD3(pipe, resolution=model.resolution, text_length=model.text_length)

    def flux(pipe, model: Model):
        from flows.backbones.flux import Flux

        return Flux(
            pipe,
            resolution=model.resolution,
            text_length=model.text_length,
            embedded_guidance=model.embedded_guidance,
        )

    known = {"StableDiffusion3Pipeline": sd3, "FluxPipeline": flux}
    if pipeline not in known:
        raise ConfigError(f"recipe.model.id: expected one of {', '.join(known)}, got a {pipeline}. Choose another model.")
    return known[pipeline]


def _missing(model_id: str, place: str, error: Exception) -> MissingError:
    detail = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    advice = f"Fetch it with `hf download {model_id}`, or name a local folder."
    if Path(place).exists():
        advice = "The folder is there but cannot be read: a file in it is damaged or missing; copy or export it again."
    elif type(error).__name__ == "GatedRepoError":
        advice = f"Accept its terms on the model page, then `hf auth login` and `hf download {model_id}`."
    return MissingError(f"recipe.model.id: expected a loadable diffusers pipeline, got {model_id!r} ({detail}). {advice}")
