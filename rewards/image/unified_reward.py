"""UnifiedReward: a vision-language model trained to grade pictures, asked over OpenAI's chat interface."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rewards.facts import Facts
from rewards.image.chat import Chat, template_text
from rewards.pictures import as_pil, check_pictures
from studio.post import Patience
from studio.types import Prompts, Scores

if TYPE_CHECKING:
    from torch import Tensor

SIDE = 512  # pixels that version 1.5 was asked with
MODELS = {"1.5": "CodeGoat24/UnifiedReward-7b-v1.5", "2.0": "CodeGoat24/UnifiedReward-2.0-qwen3vl-8b"}
ASPECTS = ("Alignment", "Coherence", "Style")
QUESTIONS = {
    "1.5": "Grade this picture of the caption for alignment with it and for overall quality, from 1 to 5.\n"
    "Caption: {prompt}\nEnd with one line: Final Score: <number>",
    "2.0": "Grade this picture of the caption, each from 1 to 5, in three lines.\nCaption: {prompt}\n"
    "Alignment Score: <number>\nCoherence Score: <number>\nStyle Score: <number>",
}


@dataclass(frozen=True)
class UnifiedReward:
    """1.5: x / 5 of the answer's "Final Score: x";  2.0: (mean of alignment, coherence and style - 1) / 4.

    An answer without its scores, or with one outside 1 to 5, is missing; flow_grpo calls it 0.  The model was trained on
    a wording of its own: give it as `question` for published numbers.  Source: UnifiedReward (arXiv:2503.05236).
    """

    version: Literal["1.5", "2.0"] = "1.5"
    url: str = "http://127.0.0.1:17140/v1"
    model: str | None = None  # name on the server; None is the published one of this version
    question: str | None = None  # with {prompt}, or the path of a .txt file that holds it; None is a short one of ours
    workers: int = 8  # pictures in flight
    attempts: int = 3
    timeout: float = 120.0  # seconds
    on_error: Literal["fail", "mask"] = "fail"

    name: ClassVar[str] = "unified_reward"
    reads: ClassVar[str] = "image"
    differentiable: ClassVar[bool] = False
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    license: ClassVar[str] = "MIT"
    facts: ClassVar[Facts] = Facts(
        "UnifiedReward (arXiv:2503.05236)", f"{SIDE}x{SIDE} (1.5), PNG, then the server's own", "0.2 to 1 (1.5)"
    )

    @property
    def model_id(self) -> str:
        return self.model or MODELS[self.version]

    @property
    def chat(self) -> Chat:
        return Chat(self.name, self.url, self.model_id, self.workers, Patience(self.attempts, timeout=self.timeout), self.on_error)

    def check(self, prompts: Prompts) -> None:
        """ConfigError when address or question cannot work."""
        self.chat.check()
        template_text(self.question or QUESTIONS[self.version], "reward 'unified_reward'")

    def __call__(self, samples: Tensor, prompts: Prompts) -> Scores:
        """Scores of pictures [B, 3, H, W] in [0, 1]."""
        check_pictures(self.name, samples)
        template = template_text(self.question or QUESTIONS[self.version], "reward 'unified_reward'")
        pictures = as_pil(samples)
        if self.version == "1.5":
            pictures = [picture.resize((SIDE, SIDE)) for picture in pictures]
        asked = [template.replace("{prompt}", text) for text in prompts.text]
        read = final_score if self.version == "1.5" else mean_of_aspects
        return self.chat.scores(pictures, asked, read, max_tokens=1024)


def final_score(choice: dict[str, Any]) -> float | None:
    """x / 5 of the last "Final Score: x" in an answer."""
    x = _number(choice, r"Final Score")
    return None if x is None else x / 5


def mean_of_aspects(choice: dict[str, Any]) -> float | None:
    """(mean of the three scores - 1) / 4."""
    scores = [_number(choice, rf"{aspect} Score") for aspect in ASPECTS]
    known = [score for score in scores if score is not None]
    return (sum(known) / 3 - 1) / 4 if len(known) == 3 else None


def _number(choice: dict[str, Any], label: str) -> float | None:
    """The last number from 1 to 5 after a label, which may be bold or say its range: `**Style Score (1-5):** 4.5`."""
    answer = str((choice.get("message") or {}).get("content") or "")
    found = re.findall(label + r"\W*?(?:\(1-5\))?\s*:\W*?(\d+(?:\.\d+)?)", answer, re.IGNORECASE)
    return float(found[-1]) if found and 1 <= float(found[-1]) <= 5 else None
