"""How much a picture resembles a reference picture: for editing, and for staying near where one began."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rewards.facts import Facts
from rewards.image.clip import load_encoder
from rewards.pictures import check_pictures, read_picture
from studio.errors import ConfigError
from studio.types import Prompts

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ImageSimilarity:
    """Cosine of the CLIP embeddings of a picture and of the reference named in its prompt's info.

    `info["reference"]` is the path of a picture file, or a tensor [3, H, W] in [0, 1].  Source: Flow-Factory's edit tasks.
    """

    model: str = "openai/clip-vit-large-patch14"
    device: str = "auto"
    batch_size: int = 32  # pictures per forward

    name: ClassVar[str] = "image_similarity"
    reads: ClassVar[str] = "image"
    differentiable: ClassVar[bool] = True
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    license: ClassVar[str] = "MIT (weights of OpenAI)"
    facts: ClassVar[Facts] = Facts("Flow-Factory", "the model's own, for both pictures", "1 for the reference itself")

    @property
    def model_id(self) -> str:
        return self.model

    def check(self, prompts: Prompts) -> None:
        """ConfigError for the first prompt without a reference that can be read."""
        for text, info in zip(prompts.text, prompts.info, strict=True):
            reference_of(text, info)

    def __call__(self, samples: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B] float32 of pictures [B, 3, H, W] in [0, 1], with their gradients."""
        import torch

        check_pictures(self.name, samples)
        encoder = load_encoder(self.model, self.model, self.device)
        references = [reference_of(text, info) for text, info in zip(prompts.text, prompts.info, strict=True)]
        with torch.no_grad():  # a group shares its reference: each is embedded once
            known = {id(picture): encoder.embed_images(picture[None])[0] for picture in references}
        wanted = torch.stack([known[id(picture)] for picture in references])
        chunks = zip(samples.split(self.batch_size), wanted.split(self.batch_size), strict=True)
        return torch.cat([(encoder.embed_images(x) * other).sum(-1) for x, other in chunks]).to(samples.device)


def reference_of(text: str, info: Mapping[str, Any]) -> Tensor:
    """The reference [3, H, W] of a prompt; ConfigError when there is none."""
    import torch

    given = info.get("reference")
    if isinstance(given, torch.Tensor):
        return given
    try:
        if not isinstance(given, str | Path):
            raise ValueError("no info['reference']" if given is None else type(given).__name__)
        return _read(str(given))
    except (OSError, ValueError) as problem:
        raise ConfigError(
            f"reward 'image_similarity': prompt {text!r}: expected a reference picture, got: {problem}. "
            "Give the path of one as info['reference']."
        ) from problem


@lru_cache(maxsize=256)
def _read(path: str) -> Tensor:
    return read_picture(path)
