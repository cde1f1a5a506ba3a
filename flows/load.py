"""From the `model` block of a recipe to a backbone: which pipeline, where it lies, and what may go wrong on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from flows.blueprint import RandomText, blueprints, random_pipeline
from studio.errors import ConfigError, MissingError
from studio.names import suggestion

if TYPE_CHECKING:
    from flows.embeddings import PromptEncoder
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
    pruned: str | None = None  # folder of a pruned network (RUN/pruned) that takes the place of the pipeline's own
    random: str | None = None  # instead of id: a blueprint (sd35-medium, flux-dev, sdxl ...) with random weights, to measure
    train: Literal["lora", "full"] = "lora"
    lora: Lora = field(default_factory=Lora)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of frozen weights; what is trained stays float32
    device: str = "auto"
    resolution: int | None = None  # pixels; None = the pipeline's own
    text_length: Annotated[int, Field(ge=1)] = 256  # tokens of the T5 encoder; 1 leaves out the bundled model's silent one
    embedded_guidance: Annotated[float, Field(ge=0)] = 3.5  # FLUX.1-dev's guidance embedding
    revision: str | None = None
    attention: Literal["auto", "native", "flash", "xformers"] = "auto"  # kernel, tried by one real call
    gradient_checkpointing: bool = False  # recompute blocks in the backward pass: a third more time, a fraction of the memory
    cache: Literal["auto", "on", "off"] = "auto"  # prompt embeddings on disk; auto = for all but bundled and random models
    offload_encoders: Literal["auto", "on", "off"] = "auto"  # text encoders off the GPU between prompts; auto = on a GPU

    def __post_init__(self) -> None:
        if self.random is None:
            return
        known = blueprints()
        if self.random not in known:
            raise ValueError(
                f"model.random: expected one of {', '.join(known)}, got {self.random!r}{suggestion(self.random, known)}."
            )
        if self.id != "shapes":
            raise ValueError(f"model: expected id or random, got both {self.id!r} and {self.random!r}. Remove one.")

    @property
    def name(self) -> str:
        """What to call this model in messages."""
        return self.random or self.id

    @property
    def cached(self) -> bool:
        return self.cache == "on" or (self.cache == "auto" and self.id not in BUNDLED and self.random is None)


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
    from diffusers.utils import logging

    from flows.attention import blank_condition, set_attention
    from flows.embeddings import text_encoders

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = device_of(model)
    pipeline = _random(model, device) if model.random else _stored(model)
    waiting = text_encoders(pipeline) if _offloads(model, device) else {}
    for name, component in pipeline.components.items():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False).to("cpu" if name in waiting else device)
    pipeline.vae.to(torch.float32, memory_format=torch.channels_last)  # convolutions are a quarter faster, on a CPU too
    backbone = wrap(pipeline, model)
    if model.random:
        backbone.encode = RandomText(blueprints()[model.random], model.text_length, getattr(torch, model.dtype))
    if model.gradient_checkpointing:
        backbone.network.enable_gradient_checkpointing()

    def call() -> torch.Tensor:
        draws = torch.Generator().manual_seed(0)
        x = torch.randn((1, *backbone.latent_shape), generator=draws).to(device)
        return backbone.velocity(x, x.new_full((1,), 0.5), blank_condition(backbone.network, 1, 8))

    backbone.attention = set_attention(backbone.network, model.attention, call)
    return backbone


def prompt_encoder(backbone: Any, model: Model) -> PromptEncoder:
    """The backbone's `encode`, with its memory on disk and its encoders off the GPU as the recipe says."""
    import torch

    from flows.embeddings import EmbeddingStore, PromptEncoder, cache_folder, encoder_fingerprint, text_encoders

    device, store = device_of(model), None
    if model.cached:
        mark = encoder_fingerprint(
            backbone.pipeline, snapshot(model), model_id=model.id, revision=model.revision, text_length=model.text_length
        )
        store = EmbeddingStore(cache_folder(), mark)
    encoders = list(text_encoders(backbone.pipeline).values())
    return PromptEncoder(
        backbone.encode, device=torch.device(device), store=store, encoders=encoders, offload=_offloads(model, device)
    )


def snapshot(model: Model) -> Path | None:
    """The folder whose files were loaded: the one named, or the Hub's snapshot on this disk."""
    from huggingface_hub import try_to_load_from_cache

    place = Path(locate(model.id))
    if place.is_dir():
        return place
    index = try_to_load_from_cache(model.id, "model_index.json", revision=model.revision)
    return Path(index).parent if isinstance(index, str) else None


def device_of(model: Model) -> str:
    """The recipe's device; auto is this process's own GPU where there is one."""
    import os

    import torch

    if model.device != "auto":
        return model.device
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


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
    encode = prompt_encoder(backbone, model)
    return DenoisePolicy(backbone, sampler, seed=seed, lora=model.train == "lora", encode=encode)


def _stored(model: Model) -> Any:
    import torch
    from diffusers import DiffusionPipeline

    place, dtype = locate(model.id), getattr(torch, model.dtype)
    parts: Any = {part: network.to(dtype) for part, network in pruned_parts(Path(place), model.pruned).items()}
    try:
        return DiffusionPipeline.from_pretrained(place, dtype=dtype, revision=model.revision, **parts)
    except Exception as error:  # whatever a loader raises for a missing, gated or broken model means the same to a user
        raise _missing(model.id, place, error) from error


def pruned_parts(place: Path, own: str | None = None) -> dict[str, Any]:
    """Networks of this pipeline folder that pruning.json stands beside, or the one in the folder `own`.

    Checked, and read without running code of the folder.
    """
    found = [place / part for part in ("transformer", "unet") if (place / part / "pruning.json").is_file()]
    if own is None and not found:
        return {}
    from flows.adapter import component
    from pruning.compact import load_compact

    if own is not None:
        network = load_compact(Path(own).expanduser())
        return {component(network): network}
    return {folder.name: load_compact(folder) for folder in found}


def _random(model: Model, device: str) -> Any:
    import torch

    return random_pipeline(blueprints()[model.random or ""], device=device, dtype=getattr(torch, model.dtype), seed=0)


def _offloads(model: Model, device: str) -> bool:
    """Bundled encoders are small enough to stay."""
    wanted = model.offload_encoders == "on" or (model.offload_encoders == "auto" and model.id not in BUNDLED)
    return wanted and device != "cpu"


def wrap(pipeline: Any, model: Model) -> Any:
    """The backbone of a pipeline, by the pipeline's class."""

    def sd3(pipe, model: Model):
        from flows.backbones.sd3 import SD3

        config = pipe.transformer.config
        _check_resolution(model, pipe.vae_scale_factor * config.patch_size, most=config.pos_embed_max_size)
        return SD3(pipe, resolution=model.resolution, text_length=model.text_length)

    def flux(pipe, model: Model):
        from flows.backbones.flux import Flux

        _check_resolution(model, pipe.vae_scale_factor * 2)
        return Flux(
            pipe,
            resolution=model.resolution,
            text_length=model.text_length,
            embedded_guidance=model.embedded_guidance,
        )

    def sdxl(pipe, model: Model):
        from flows.backbones.sdxl import SDXL

        _check_resolution(model, pipe.vae_scale_factor)
        return SDXL(pipe, resolution=model.resolution)

    known = {"StableDiffusion3Pipeline": sd3, "FluxPipeline": flux, "StableDiffusionXLPipeline": sdxl}
    kind = type(pipeline).__name__
    if kind not in known:
        raise ConfigError(f"recipe.model.id: expected one of {', '.join(known)}, got a {kind}. Choose another model.")
    return known[kind](pipeline, model)


def _check_resolution(model: Model, patch: int, most: int | None = None) -> None:
    """ConfigError unless the size is of whole patches of so many pixels, and of at most `most` of them along a side."""
    size = model.resolution
    if size is None or (size >= patch and size % patch == 0 and (most is None or size <= most * patch)):
        return
    limit = "" if most is None else f" up to {most * patch}"
    raise ConfigError(
        f"recipe.model.resolution: expected a multiple of {patch}{limit} for {model.name}, got {size}. Choose such a size, or none "
        "for the model's own."
    )


def _missing(model_id: str, place: str, error: Exception) -> MissingError:
    detail = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    advice = f"Fetch it with `hf download {model_id}`, or name a local folder."
    if Path(place).exists():
        advice = "The folder is there but cannot be read: a file in it is damaged or missing; copy or export it again."
    elif "trust_remote_code" in str(error):
        advice = (
            f"It has code of its own. A pruned pipeline loads without it from a folder: `hf download {model_id} --local-dir DIR`."
        )
    elif type(error).__name__ == "GatedRepoError":
        advice = f"Accept its terms on the model page, then `hf auth login` and `hf download {model_id}`."
    return MissingError(f"recipe.model.id: expected a loadable diffusers pipeline, got {model_id!r} ({detail}). {advice}")
