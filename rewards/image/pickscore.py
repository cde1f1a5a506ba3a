"""Human preference of a picture given its prompt, as learned by PickScore."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rewards.image.clip import ClipReward
from studio.types import Prompts

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PickScore:
    """exp(logit_scale)·cos(text, image) / divisor.

    Source: PickScore (arXiv:2305.01569); the divisor 26, which brings usual scores near 1, is that of flow_grpo.
    """

    model: str = "yuvalkirstain/PickScore_v1"
    processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    divisor: float = 26.0
    device: str = "auto"
    batch_size: int = 16

    name: ClassVar[str] = "pickscore"
    reads: ClassVar[str] = "image"
    differentiable: ClassVar[bool] = True
    license: ClassVar[str] = "code MIT; weights: see the model card"

    @property
    def range(self) -> tuple[float, float]:
        return (-100 / self.divisor, 100 / self.divisor)

    @property
    def model_id(self) -> str:
        return self.model

    def __call__(self, samples: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B] float32 of pictures [B, 3, H, W] in [0, 1], with their gradients."""
        clip = ClipReward(self.model, self.processor, "logit", self.device, self.batch_size)
        return clip(samples, prompts) / self.divisor
