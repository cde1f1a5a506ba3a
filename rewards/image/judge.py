"""A vision-language model as a judge of yes or no."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rewards.facts import Facts
from rewards.image.chat import Chat, template_text
from rewards.pictures import as_pil, check_pictures
from studio.post import Patience
from studio.types import Prompts, Scores

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class VlmJudge:
    """P(Yes) / (P(Yes) + P(No)) of the first token of the answer, from its 20 likeliest.

    A token counts in any case and with blanks around it.  An answer whose first tokens hold neither is missing.
    Source: Flow-Factory.
    """

    url: str = "http://127.0.0.1:8000/v1"  # of a server with OpenAI's chat interface that returns logprobs
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct"
    question: str = 'Does this picture show "{prompt}"? Answer Yes or No.'  # or the path of a .txt file that holds it
    workers: int = 8  # pictures in flight
    attempts: int = 3
    timeout: float = 120.0  # seconds
    on_error: Literal["fail", "mask"] = "fail"

    name: ClassVar[str] = "vlm_judge"
    reads: ClassVar[str] = "image"
    differentiable: ClassVar[bool] = False
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    license: ClassVar[str] = "the model's own"
    facts: ClassVar[Facts] = Facts("Flow-Factory", "round(255·x) as PNG, then the server's own", "depends on model and question")

    @property
    def model_id(self) -> str:
        return self.model

    @property
    def chat(self) -> Chat:
        return Chat(self.name, self.url, self.model, self.workers, Patience(self.attempts, timeout=self.timeout), self.on_error)

    def check(self, prompts: Prompts) -> None:
        """ConfigError when address or question cannot work."""
        self.chat.check()
        template_text(self.question, "reward 'vlm_judge'")

    def __call__(self, samples: Tensor, prompts: Prompts) -> Scores:
        """Scores of pictures [B, 3, H, W] in [0, 1]."""
        check_pictures(self.name, samples)
        template = template_text(self.question, "reward 'vlm_judge'")
        asked = [template.replace("{prompt}", text) for text in prompts.text]
        return self.chat.scores(as_pil(samples), asked, yes_share, max_tokens=1, logprobs=True, top_logprobs=20)


def yes_share(choice: dict[str, Any]) -> float | None:
    """P(Yes) / (P(Yes) + P(No)) of a chat completion's first token; None when neither is among the likeliest."""
    try:
        likeliest = choice["logprobs"]["content"][0]["top_logprobs"]
        seen = [(str(one["token"]).strip().lower(), math.exp(float(one["logprob"]))) for one in likeliest]
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    yes = sum(p for token, p in seen if token == "yes")
    no = sum(p for token, p in seen if token == "no")
    return yes / (yes + no) if yes + no > 0 else None
