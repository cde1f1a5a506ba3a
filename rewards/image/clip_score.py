"""CLIPScore with the published models, and its SigLIP relative."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from rewards.facts import Facts
from rewards.image.clip import ClipReward, load_encoder
from studio.types import Prompts

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ClipScore:
    """cos(text, image) of a published CLIP, which equals its logit / 100.

    Source: CLIPScore (arXiv:2104.08718) as in flow_grpo, without the factor 2.5 and the cut at zero.
    """

    model: str = "openai/clip-vit-large-patch14"  # MixGRPO has apple/DFN5B-CLIP-ViT-H-14-384, under Apple's model license
    device: str = "auto"
    batch_size: int = 32  # pictures per forward

    name: ClassVar[str] = "clip_score"
    reads: ClassVar[str] = "image"
    differentiable: ClassVar[bool] = True
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    license: ClassVar[str] = "MIT (weights of OpenAI)"
    facts: ClassVar[Facts] = Facts("CLIPScore (arXiv:2104.08718)", "shortest side to 224, cut the center, CLIP's mean and std")

    @property
    def model_id(self) -> str:
        return self.model

    def __call__(self, samples: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B] float32 of pictures [B, 3, H, W] in [0, 1], with their gradients."""
        return ClipReward(self.model, device=self.device, batch_size=self.batch_size)(samples, prompts)


@dataclass(frozen=True)
class SiglipScore:
    """cos(text, image) of SigLIP, or the probability σ(exp(logit_scale)·cos + logit_bias) that the pair belongs together.

    Source: SigLIP (arXiv:2303.15343).  The probability is close to 0 or 1 for most pairs: the cosine is easier to train on.
    """

    model: str = "google/siglip-so400m-patch14-384"
    scale: Literal["cosine", "probability"] = "cosine"
    device: str = "auto"
    batch_size: int = 16  # pictures per forward

    name: ClassVar[str] = "siglip"
    reads: ClassVar[str] = "image"
    differentiable: ClassVar[bool] = True
    license: ClassVar[str] = "Apache-2.0 (weights of Google)"
    facts: ClassVar[Facts] = Facts("SigLIP (arXiv:2303.15343)", "384x384 whatever the shape, mean and std 0.5; texts padded")

    @property
    def range(self) -> tuple[float, float]:
        return (-1.0, 1.0) if self.scale == "cosine" else (0.0, 1.0)

    @property
    def model_id(self) -> str:
        return self.model

    def __call__(self, samples: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B] float32 of pictures [B, 3, H, W] in [0, 1], with their gradients."""
        score = "cosine" if self.scale == "cosine" else "logit"
        value = ClipReward(self.model, scale=score, device=self.device, batch_size=self.batch_size)(samples, prompts)
        if self.scale == "cosine":
            return value
        bias = load_encoder(self.model, self.model, self.device).model.logit_bias
        return (value + bias.to(value.device)).sigmoid()
