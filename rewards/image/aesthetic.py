"""How beautiful a picture is, as learned from human ratings: the LAION predictor on CLIP embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from rewards.facts import Facts
from rewards.image.clip import load_encoder
from rewards.image.head import linear_head
from rewards.pictures import check_pictures
from rewards.weights import device_of, fill, read_weights, weight_file
from studio.types import Prompts

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Aesthetic:
    """head(e / |e|) of the CLIP image embedding e, raw, about 1 to 10.

    Source: LAION's improved aesthetic predictor as in DDPO (arXiv:2305.13301).  The related predictor "v2.5" takes the
    normalized pooled output of SigLIP instead; its code is AGPL-3.0 and no part of this project.
    """

    model: str = "openai/clip-vit-large-patch14"
    head: str = "."  # folder or Hub id[@revision] with the head's weights
    file: str = "sac+logos+ava1-l14-linearMSE.pth"  # in `head`, as published; its converted .safetensors is read
    device: str = "auto"
    batch_size: int = 32  # pictures per forward

    name: ClassVar[str] = "aesthetic"
    reads: ClassVar[str] = "image"
    differentiable: ClassVar[bool] = True
    range: ClassVar[tuple[float, float]] = (-float("inf"), float("inf"))  # linear: usual pictures lie between 1 and 10
    license: ClassVar[str] = "Apache-2.0 (head), MIT (CLIP)"
    facts: ClassVar[Facts] = Facts(
        "LAION improved aesthetic predictor", "shortest side to 224, cut the center, CLIP's mean and std", "1 to 10, not bounded"
    )

    @property
    def model_id(self) -> str:
        return f"{self.model} + {self.file}"

    def __call__(self, samples: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B] float32 of pictures [B, 3, H, W] in [0, 1], with their gradients; the prompts do not matter."""
        import torch

        check_pictures(self.name, samples)
        encoder = load_encoder(self.model, self.model, self.device)
        head = load_head(self.head, self.file, encoder.model.config.projection_dim, self.device)
        return torch.cat([head(encoder.embed_images(x))[:, 0] for x in samples.split(self.batch_size)]).to(samples.device)


@lru_cache(maxsize=2)
def load_head(place: str, name: str, width: int, device: str) -> nn.Module:
    """The frozen head; its layers are called `layers.0` to `layers.7` in the published file."""
    file = weight_file(place, name)
    head = linear_head(width)
    fill(head, {key.removeprefix("layers."): value.float() for key, value in read_weights(file).items()}, file)
    return head.to(device_of(device)).eval().requires_grad_(False)
