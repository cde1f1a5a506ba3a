"""Human preference of a picture given its prompt, as learned by ImageReward: BLIP reads both, a small head scores."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from rewards.facts import Facts
from rewards.image.head import linear_head
from rewards.pictures import check_pictures
from rewards.weights import device_of, fetch, fill, read_weights, split_revision, weight_file
from studio.errors import MissingError
from studio.types import Prompts

if TYPE_CHECKING:
    from torch import Tensor, nn

MEAN, STD = 0.16717363, 1.03333950  # of the raw score over the authors' data
PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
LENGTH = 35  # tokens of a text
# BLIP's own names of the vision tower -> those of transformers; the text tower has the same names in both
NAMES = (
    (r"^blip\.text_encoder\.", "text."),
    (r"^blip\.visual_encoder\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^blip\.visual_encoder\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^blip\.visual_encoder\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^blip\.visual_encoder\.norm\.", "vision.post_layernorm."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.norm([12])\.", r"vision.encoder.layers.\1.layer_norm\2."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"vision.encoder.layers.\1.self_attn.projection."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.qkv\.", r"vision.encoder.layers.\1.self_attn.qkv."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.mlp\.", r"vision.encoder.layers.\1.mlp."),
    (r"^mlp\.layers\.", "head."),
)


@dataclass(frozen=True)
class ImageReward:
    """(head(h) - 0.16717363) / 1.03333950, h the first output of BLIP's text tower attending to the picture; mean 0, std 1.

    Source: ImageReward (arXiv:2304.05977).  Every picture is read with its own prompt only, B pairs and not B x B.
    """

    model: str = "THUDM/ImageReward"  # folder or Hub id[@revision] with the weights
    file: str = "ImageReward.pt"  # as published; its converted .safetensors is read
    blip: str = "Salesforce/blip-itm-large-coco"  # where the sizes of BLIP-large and its tokenizer are
    device: str = "auto"
    batch_size: int = 16  # pairs per forward

    name: ClassVar[str] = "image_reward"
    reads: ClassVar[str] = "image"
    differentiable: ClassVar[bool] = True
    range: ClassVar[tuple[float, float]] = (-float("inf"), float("inf"))
    license: ClassVar[str] = "Apache-2.0 (ImageReward), BSD-3-Clause (BLIP)"
    facts: ClassVar[Facts] = Facts(
        "ImageReward (arXiv:2304.05977)", "shortest side to 224, cut the center, CLIP's mean and std; 35 tokens", "mean 0, std 1"
    )

    @property
    def model_id(self) -> str:
        return f"{self.model}/{self.file}"

    def __call__(self, samples: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B] float32 of pictures [B, 3, H, W] in [0, 1], with their gradients."""
        import torch

        check_pictures(self.name, samples)
        network, tokenizer = load_image_reward(self.model, self.file, self.blip, self.device)
        scores = []
        for start in range(0, len(samples), self.batch_size):
            rows = slice(start, start + self.batch_size)
            words = tokenizer(prompts.text[rows], padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
            scores.append(network(samples[rows], words.input_ids, words.attention_mask))
        return ((torch.cat(scores) - MEAN) / STD).to(samples.device)


def build_network(vision_config: Any, text_config: Any) -> nn.Module:
    """BLIP's two towers of transformers and the head, with random weights."""
    import torch.nn.functional as F
    from torch import nn
    from transformers import BlipTextModel, BlipVisionModel

    class PairScore(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision = BlipVisionModel(vision_config)
            self.text = BlipTextModel(text_config, add_pooling_layer=False)
            self.head = linear_head(text_config.hidden_size)

        def forward(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
            """Raw scores [B] of pictures [B, 3, H, W] in [0, 1] and tokens [B, L]."""
            weight = self.head[0].weight
            images = images.to(weight)
            side = vision_config.image_size
            scale = side / min(images.shape[-2:])
            size = [round(length * scale) for length in images.shape[-2:]]
            if images.shape[-2:] != (*size,):
                images = F.interpolate(images, size=size, mode="bicubic", antialias=True).clamp(0, 1)
            top, left = (size[0] - side) // 2, (size[1] - side) // 2
            mean, std = (weight.new_tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
            pixels = (images[:, :, top : top + side, left : left + side] - mean) / std
            seen = self.vision(pixel_values=pixels).last_hidden_state
            read = self.text(ids.to(weight.device), attention_mask=mask.to(weight.device), encoder_hidden_states=seen)
            return self.head(read.last_hidden_state[:, 0])[:, 0]

    return PairScore().float()


@lru_cache(maxsize=1)
def load_image_reward(place: str, name: str, blip: str, device: str) -> tuple[nn.Module, Any]:
    """The frozen network with all its weights from one file, and the tokenizer."""
    from transformers import AutoTokenizer, BlipConfig

    where, revision = split_revision(blip)
    try:
        config = BlipConfig.from_pretrained(where, revision=revision)
        tokenizer = AutoTokenizer.from_pretrained(where, revision=revision)
    except (OSError, ValueError) as problem:
        first = str(problem).splitlines()[0]
        raise MissingError(
            f"reward 'image_reward': expected BLIP's config and tokenizer in {blip}, got {first} {fetch(blip)}"
        ) from problem
    file = weight_file(place, name)
    weights = rename(read_weights(file))
    if (positions := weights.get("vision.embeddings.position_embedding")) is not None:
        # trained on 224 pixels, and the config is of a BLIP for 384: one position a patch, and one for the class
        config.vision_config.image_size = math.isqrt(positions.shape[1] - 1) * config.vision_config.patch_size
    network = build_network(config.vision_config, config.text_config)
    fill(network, weights, file)
    return network.to(device_of(device)).eval().requires_grad_(False), tokenizer


def rename(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published file's names as ours; what does not belong to the score (position ids, BLIP's other heads) is left out."""
    named = {}
    for key, value in weights.items():
        for pattern, ours in NAMES:
            if re.search(pattern, key) and not key.endswith("position_ids"):
                named[re.sub(pattern, ours, key)] = value.float()
                break
    return named
