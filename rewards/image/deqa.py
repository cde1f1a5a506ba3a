"""Technical quality of a picture by DeQA, whose code only its own environment can run: over HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from rewards.facts import Facts
from rewards.remote import Remote
from studio.types import Prompts, Scores

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Deqa:
    """score / 5, the server's score being 1 (bad) to 5 (excellent).

    Source: DeQA-Score (arXiv:2501.11561) as in flow_grpo, whose server speaks pickle; this one speaks the protocol of
    `studio serve`: in DeQA's environment, `studio serve function --as deqa target=module:function` around its `score`.
    """

    urls: tuple[str, ...] = ("http://127.0.0.1:18086",)
    batch_size: int = 16  # pictures per request
    attempts: int = 3
    timeout: float = 120.0  # seconds
    on_error: Literal["fail", "mask"] = "fail"

    name: ClassVar[str] = "deqa"
    reads: ClassVar[str] = "image"
    differentiable: ClassVar[bool] = False
    range: ClassVar[tuple[float, float]] = (0.2, 1.0)
    license: ClassVar[str] = "MIT"
    model_id: ClassVar[str | None] = "zhiyuanyou/DeQA-Score-Mix3"
    facts: ClassVar[Facts] = Facts("DeQA-Score (arXiv:2501.11561)", "round(255·x) as PNG, then the server's own", "0.2 to 1")

    @property
    def remote(self) -> Remote:
        return Remote(self.urls, self.name, self.batch_size, self.attempts, timeout=self.timeout, on_error=self.on_error)

    def check(self, prompts: Prompts) -> None:
        """RewardError before sampling, when the server does not answer."""
        self.remote.check(prompts)

    def __call__(self, samples: Tensor, prompts: Prompts) -> Scores:
        """Scores of pictures [B, 3, H, W] in [0, 1]; the prompts do not matter."""
        scores = self.remote(samples, prompts)
        return Scores(scores.value / 5, scores.present, scores.parts)
