"""Human preference of a picture given its prompt, as learned by HPSv2 and HPSv2.1 on an open_clip ViT-H-14."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rewards.facts import Facts
from rewards.pictures import check_pictures
from rewards.weights import device_of, fill, read_weights, weight_file
from studio.errors import ConfigError
from studio.types import Prompts

if TYPE_CHECKING:
    from torch import Tensor

FILES = {"v2": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}
Fit = Literal["pad", "crop"]


@dataclass(frozen=True)
class HPSv2:
    """cos(text, image) without a scale, usually 0.2 to 0.35.

    Source: Human Preference Score v2 (arXiv:2306.09341).  Scores of v2 and v2.1 do not compare.  `fit` says how a picture
    becomes a square: "pad" scales the longest side and adds black (HPS itself, DiffusionNFT), "crop" scales the shortest
    and cuts the center (SRPO).
    """

    version: Literal["v2", "v2.1"] = "v2.1"
    model: str = "xswu/HPSv2"  # folder or Hub id[@revision] with the weights
    file: str | None = None  # name of the weights there; None is the published one of this version
    architecture: str = "ViT-H-14"  # of open_clip, or the path of a model config in its JSON format
    fit: Fit = "pad"
    device: str = "auto"
    batch_size: int = 16  # pictures per forward

    name: ClassVar[str] = "hpsv2"
    reads: ClassVar[str] = "image"
    differentiable: ClassVar[bool] = True
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    license: ClassVar[str] = "Apache-2.0"
    facts: ClassVar[Facts] = Facts(
        "HPSv2 (arXiv:2306.09341)", "longest side to 224, black bars, CLIP's mean and std; 77 tokens", "0.2 to 0.35"
    )

    @property
    def model_id(self) -> str:
        return f"{self.model}/{self.file or FILES[self.version]}"

    def __call__(self, samples: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B] float32 of pictures [B, 3, H, W] in [0, 1], with their gradients."""
        import torch
        from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

        check_pictures(self.name, samples)
        network = load_hps(self.model, self.file or FILES[self.version], self.architecture, self.device)
        texts = embed_texts(network, prompts.text)
        side, device = network.visual.image_size[0], texts.device
        mean, std = (torch.tensor(x, device=device)[:, None, None] for x in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
        cosines = []
        for x, text in zip(samples.split(self.batch_size), texts.split(self.batch_size), strict=True):
            pixels = (to_square(x.to(device).float(), side, self.fit) - mean) / std
            cosines.append((network.encode_image(pixels, normalize=True) * text).sum(-1))
        return torch.cat(cosines).to(samples.device)


def to_square(images: Tensor, side: int, fit: Fit) -> Tensor:
    """[B, 3, H, W] in [0, 1] -> [B, 3, side, side]: the longest side fits and the rest is black, or the shortest and is cut."""
    import torch.nn.functional as F

    high, wide = images.shape[-2:]
    scale = side / (max if fit == "pad" else min)(high, wide)
    size = (round(high * scale), round(wide * scale))
    if size != (high, wide):
        images = F.interpolate(images, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    if fit == "crop":
        top, left = (size[0] - side) // 2, (size[1] - side) // 2
        return images[:, :, top : top + side, left : left + side]
    down, across = side - size[0], side - size[1]
    return F.pad(images, (across // 2, across - across // 2, down // 2, down - down // 2))


def embed_texts(network: Any, texts: Sequence[str]) -> Tensor:
    """Unit vectors [B, D]; a text that repeats is encoded once."""
    import torch
    from open_clip import SimpleTokenizer

    distinct = list(dict.fromkeys(texts))
    with torch.no_grad():
        tokens = SimpleTokenizer(context_length=network.context_length)(distinct).to(network.logit_scale.device)
        vectors = network.encode_text(tokens, normalize=True)
    return vectors[[distinct.index(text) for text in texts]]


@lru_cache(maxsize=2)
def load_hps(place: str, name: str, architecture: str, device: str) -> Any:
    """A frozen float32 CLIP of open_clip with all its weights from one file."""
    from open_clip import CLIP

    file = weight_file(place, name)
    network = CLIP(**_config(architecture))
    fill(network, {key: value.float() for key, value in read_weights(file).items()}, file)
    return network.to(device_of(device)).eval().requires_grad_(False)


def _config(architecture: str) -> dict[str, Any]:
    from open_clip import get_model_config

    if architecture.endswith(".json") and Path(architecture).is_file():
        return json.loads(Path(architecture).read_text(encoding="utf-8"))
    config = get_model_config(architecture)
    if config is None:
        raise ConfigError(
            f"reward 'hpsv2': expected architecture to be a name of open_clip or a .json file, got {architecture!r}. "
            "The published weights are of ViT-H-14."
        )
    return config
