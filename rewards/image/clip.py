"""How well a picture fits its prompt according to a CLIP or SigLIP model; differentiable in the picture."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from rewards.facts import Facts
from rewards.pictures import check_pictures
from rewards.weights import device_of, fetch, split_revision
from studio.errors import ConfigError, MissingError
from studio.types import Prompts

if TYPE_CHECKING:
    from torch import Tensor

BUNDLED = "bundled"
FAMILIES = ("clip", "siglip")
REMEMBERED_TEXTS = 4096


@dataclass(frozen=True)
class ClipReward:
    """Cosine of image and text embedding, or with `scale="logit"` exp(logit_scale) times it (no bias of SigLIP).

    Source: CLIPScore as in flow_grpo, without its cut at zero.  The model is loaded at the first call.
    """

    model: str = BUNDLED  # Hub id[@revision] or folder of a CLIPModel or SiglipModel; "bundled" is the small scorer we ship
    processor: str | None = None  # where tokenizer and image settings are, when not with the model
    scale: Literal["cosine", "logit"] = "cosine"
    device: str = "auto"  # "auto" is cuda when there is one
    batch_size: int = 64  # pictures per forward

    name: ClassVar[str] = "clip"
    reads: ClassVar[str] = "image"
    differentiable: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts("CLIPScore (arXiv:2104.08718)", "the model's own: resize, cut the center, normalize")

    @property
    def range(self) -> tuple[float, float]:
        return (-1.0, 1.0) if self.scale == "cosine" else (-100.0, 100.0)  # CLIP keeps exp(logit_scale) <= 100

    @property
    def license(self) -> str:
        return "Apache-2.0" if self.model == BUNDLED else f"see the card of {self.model}"

    @property
    def model_id(self) -> str:
        return self.model

    def __call__(self, samples: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B] float32 of pictures [B, 3, H, W] in [0, 1], on their device and with their gradients."""
        import torch

        encoder = load_encoder(self.model, self.processor or self.model, self.device)
        texts = encoder.embed_texts(prompts.text)
        chunks = zip(samples.split(self.batch_size), texts.split(self.batch_size), strict=True)
        with torch.set_grad_enabled(torch.is_grad_enabled() and samples.requires_grad):
            cosine = torch.cat([(encoder.embed_images(x) * text).sum(-1) for x, text in chunks])
        return (cosine * encoder.scale if self.scale == "logit" else cosine).to(samples.device)


@dataclass(frozen=True)
class ImageSettings:
    """What an image processor does, as numbers: resize, cut the center, normalize."""

    edge: int | None  # length of the shortest side after resizing; None: straight to `height` x `width`
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mode: str  # of torch.nn.functional.interpolate


class ClipEncoder:
    """A frozen float32 model with its tokenizer; remembers the embeddings of texts, which repeat in every group."""

    def __init__(self, model, tokenizer, settings: ImageSettings):
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.scale = math.exp(model.logit_scale.item())
        self._texts: OrderedDict[str, Tensor] = OrderedDict()

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit vectors [B, D] of pictures [B, 3, H, W] in [0, 1]; differentiable."""
        pixels = preprocess(images.to(self.model.device).float(), self.settings)
        return _unit(self.model.get_image_features(pixel_values=pixels))

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [B, D] of texts; every text is encoded once."""
        import torch

        unknown = [text for text in dict.fromkeys(texts) if text not in self._texts]
        known = {text: self._texts[text] for text in texts if text in self._texts}
        for start in range(0, len(unknown), 256):
            part = unknown[start : start + 256]
            with torch.no_grad():
                known |= zip(part, _unit(self.model.get_text_features(**self._tokens(part))), strict=True)
        for text in dict.fromkeys(texts):
            self._texts[text] = known[text]
            self._texts.move_to_end(text)
        while len(self._texts) > REMEMBERED_TEXTS:
            self._texts.popitem(last=False)
        return torch.stack([known[text] for text in texts])

    def _tokens(self, texts: list[str]):
        length = self.model.config.text_config.max_position_embeddings
        # SigLIP was trained on padded texts; for CLIP padding does not matter.
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return tokens.to(self.model.device)


def preprocess(images: Tensor, settings: ImageSettings) -> Tensor:
    """The image processor as tensor operations: [B, 3, H, W] in [0, 1] -> normalized [B, 3, height, width].

    A picture that already has the size of the model is not resized.
    """
    import torch.nn.functional as F

    check_pictures("clip", images)
    high, wide = settings.height, settings.width
    if images.shape[-2:] != (high, wide):
        size = (high, wide) if settings.edge is None else _fit_shortest(*images.shape[-2:], settings.edge)
        images = F.interpolate(images, size=size, mode=settings.mode, antialias=True).clamp(0, 1)
        top, left = (size[0] - high) // 2, (size[1] - wide) // 2
        images = images[:, :, top : top + high, left : left + wide]
    mean, std = (images.new_tensor(values)[:, None, None] for values in (settings.mean, settings.std))
    return (images - mean) / std


def model_folder(model: str) -> str:
    """The folder of the bundled scorer for "bundled", else the name as it is."""
    return str(files("flows.shapes") / "scorer") if model == BUNDLED else model


@lru_cache(maxsize=4)
def load_encoder(model: str, processor: str, device: str) -> ClipEncoder:
    """Model, tokenizer and image settings from the Hub, its cache or a folder; loaded once per process and device."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    (place, revision), (words, at) = split_revision(model_folder(model)), split_revision(model_folder(processor))
    try:
        _check_family(place, revision)
        network, report = AutoModel.from_pretrained(
            place, revision=revision, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(words, revision=at)
        settings = image_settings(AutoImageProcessor.from_pretrained(words, revision=at))
    except SafetensorError as problem:
        raise MissingError(_broken(place, problem)) from problem
    except OSError as problem:  # not found, not cached, offline, gated: transformers and the Hub raise kinds of OSError
        raise MissingError(_absent(place, words, problem)) from problem
    if report["missing_keys"]:
        raise MissingError(
            f"reward model {place!r}: expected all weights of the model, got a file without "
            f"{len(report['missing_keys'])} of them ({min(report['missing_keys'])}, ...). {_fetch(place)}"
        )
    if len(tokenizer) < 0.9 * network.config.text_config.vocab_size:  # without its files a tokenizer loads, and knows no word
        raise MissingError(
            f"reward model {place!r}: expected a tokenizer of {network.config.text_config.vocab_size} tokens, "
            f"got {len(tokenizer)} from {words!r}. {_fetch(words)}"
        )
    return ClipEncoder(network.to(device_of(device)).eval().requires_grad_(False), tokenizer, settings)


def _check_family(place: str, revision: str | None) -> None:
    from transformers import AutoConfig

    try:
        family = AutoConfig.from_pretrained(place, revision=revision).model_type
    except ValueError as problem:  # a folder without config.json, or one that names no model type
        raise MissingError(_absent(place, place, problem)) from problem
    if family not in FAMILIES:
        raise ConfigError(
            f"reward model {place!r}: expected a model of type {' or '.join(FAMILIES)}, got {family!r}. "
            "Name a CLIP or SigLIP checkpoint."
        )


def image_settings(processor) -> ImageSettings:
    """The numbers of a CLIPImageProcessor or SiglipImageProcessor."""
    edge = processor.size.get("shortest_edge")
    final = processor.crop_size if edge is not None else processor.size
    mode = {2: "bilinear", 3: "bicubic"}[int(processor.resample)]
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    return ImageSettings(edge, final["height"], final["width"], mean, std, mode)


def _fit_shortest(height: int, width: int, edge: int) -> tuple[int, int]:
    if height <= width:
        return edge, int(edge * width / height)
    return int(edge * height / width), edge


def _unit(output) -> Tensor:
    # transformers 5 returns an output object, transformers 4 the tensor
    vectors = getattr(output, "pooler_output", output)
    return vectors / vectors.norm(dim=-1, keepdim=True)


def _absent(place: str, words: str, problem: Exception) -> str:
    wanted = "a CLIP or SigLIP model with tokenizer and image processor"
    where = f"reward model {place!r}" if words == place else f"reward model {place!r} with processor {words!r}"
    first = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
    steps = " ".join(dict.fromkeys([_fetch(place), _fetch(words)]))
    return f"{where}: expected {wanted}, got {type(problem).__name__}: {first} {steps}"


def _broken(place: str, problem: Exception) -> str:
    file = _broken_file(place)
    return f"reward model {file}: expected a safetensors file, got a damaged one ({problem}). {_fetch(place)}"


def _broken_file(place: str) -> str:
    """The first weight file of this model that cannot be opened."""
    from huggingface_hub import snapshot_download
    from safetensors import SafetensorError, safe_open

    folder = Path(place) if Path(place).is_dir() else Path(snapshot_download(place, local_files_only=True))
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError:
            return str(file)
    return str(folder)


def _fetch(place: str) -> str:
    if place == model_folder(BUNDLED):
        return "It ships with the package: reinstall alignment-studio, or make it with `studio pretrain shapes`."
    return fetch(place)
