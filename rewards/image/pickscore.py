"""Human preference of a picture given its prompt, as learned by PickScore: as a number, and among a prompt's pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from rewards.candidates import by_key
from rewards.facts import Facts
from rewards.image.clip import ClipReward
from studio.types import Prompts, Scores

if TYPE_CHECKING:
    from torch import Tensor

MODEL, PROCESSOR = "yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
LICENSE = "code MIT; weights: see the model card"
INPUT = "shortest side to 224, cut the center, CLIP's mean and std; 77 tokens"


@dataclass(frozen=True)
class PickScore:
    """exp(logit_scale)·cos(text, image) / divisor.

    Source: PickScore (arXiv:2305.01569); the divisor 26, which brings usual scores near 1, is that of flow_grpo.
    """

    model: str = MODEL
    processor: str = PROCESSOR
    divisor: float = 26.0
    device: str = "auto"
    batch_size: int = 16

    name: ClassVar[str] = "pickscore"
    reads: ClassVar[str] = "image"
    differentiable: ClassVar[bool] = True
    license: ClassVar[str] = LICENSE
    facts: ClassVar[Facts] = Facts("PickScore (arXiv:2305.01569)", INPUT, "near 1; MixGRPO centers the undivided score at 18")

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


@dataclass(frozen=True)
class PickScoreRank:
    """Which of a prompt's pictures would be picked: s = exp(logit_scale)·cos(text, image) compared within the group.

    probability  exp(s_i) / Σ_j exp(s_j) over the K pictures of the prompt (PickScore, arXiv:2305.01569)
    rank         (number of pictures with a lower s) / K (Flow-Factory; equal pictures share the lower rank)

    Scores of different prompts, and of groups of different size, do not compare.
    """

    how: Literal["probability", "rank"] = "probability"
    model: str = MODEL
    processor: str = PROCESSOR
    device: str = "auto"
    batch_size: int = 16

    name: ClassVar[str] = "pickscore_rank"
    reads: ClassVar[str] = "image"
    differentiable: ClassVar[bool] = False  # through a call, yes; but the loop compares once every picture's graph is gone
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    license: ClassVar[str] = LICENSE
    facts: ClassVar[Facts] = Facts("PickScore (arXiv:2305.01569)", INPUT, "mean 1/K over a prompt's K pictures as probability")

    @property
    def model_id(self) -> str:
        return self.model

    def alone(self) -> PickScore:
        """The score of a picture by itself, before it is compared."""
        return PickScore(self.model, self.processor, 1.0, self.device, self.batch_size)

    def compare(self, scores: Scores, group: Tensor) -> Scores:
        """Probabilities or ranks [B] within groups [B] of the present scores."""
        import torch

        value = torch.zeros_like(scores.value)
        present = torch.ones_like(group, dtype=torch.bool) if scores.present is None else scores.present
        for one in torch.unique(group[present]):
            rows = (present & (group == one)).nonzero().flatten()
            s = scores.value[rows]
            among = s.softmax(0) if self.how == "probability" else (s[:, None] > s).float().mean(1)
            value = value.index_copy(0, rows, among)
        return Scores(value, scores.present, scores.parts)

    def __call__(self, samples: Tensor, prompts: Prompts) -> Scores:
        """Scores of pictures [B, 3, H, W] in [0, 1]; a prompt's pictures must all be among them."""
        score = self.alone()(samples, prompts)
        return self.compare(Scores(score), by_key(prompts).to(score.device))
