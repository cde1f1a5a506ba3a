"""A language model as a judge of completions, over any server with OpenAI's chat interface."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from rewards.facts import Facts
from rewards.image.chat import Chat, template_text
from rewards.image.judge import yes_share
from rewards.text.given import check_texts
from studio.errors import ConfigError
from studio.post import Patience
from studio.types import Prompts, Scores

PLACES = re.compile(r"\{(prompt|completion|answer)\}")


@dataclass(frozen=True)
class TextJudge:
    """yes    P(Yes) / (P(Yes) + P(No)) of the first token of the answer;  score  (x - low) / (high - low) of its last number.

    {prompt}, {completion} and {answer} (info["answer"]) in the question are replaced once each, so that a completion cannot
    smuggle in more of them; it can still talk to the judge.  An answer without what is looked for is missing, never 0.
    """

    url: str = "http://127.0.0.1:8000/v1"  # of a server with OpenAI's chat interface
    model: str = "Qwen/Qwen2.5-7B-Instruct"
    question: str = "Question:\n{prompt}\n\nAnswer:\n{completion}\n\nIs the answer right and complete? Say Yes or No."
    read: Literal["yes", "score"] = "yes"
    low: float = 1.0  # of the scale that the question asks for, with read=score
    high: float = 10.0
    workers: int = 8  # completions in flight
    attempts: int = 3
    timeout: float = 120.0  # seconds
    on_error: Literal["fail", "mask"] = "fail"

    name: ClassVar[str] = "text_judge"
    reads: ClassVar[str] = "text"
    differentiable: ClassVar[bool] = False
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    license: ClassVar[str] = "the model's own"
    facts: ClassVar[Facts] = Facts("a chat model as judge", "question with prompt and completion", "depends on model and question")

    @property
    def model_id(self) -> str:
        return self.model

    @property
    def chat(self) -> Chat:
        return Chat(self.name, self.url, self.model, self.workers, Patience(self.attempts, timeout=self.timeout), self.on_error)

    def check(self, prompts: Prompts) -> None:
        """ConfigError when address, question or scale cannot work."""
        self.chat.check()
        where = f"reward {self.name!r}"
        if "{completion}" not in template_text(self.question, where):
            raise ConfigError(f"{where}: expected a question with {{completion}}, got none. Say where the completion goes.")
        if not self.low < self.high:
            raise ConfigError(f"{where}: expected low < high, got {self.low} and {self.high}. Give the scale of the question.")

    def __call__(self, samples: list[str], prompts: Prompts) -> Scores:
        """Scores of completions [B]."""
        check_texts(self.name, samples)
        template = template_text(self.question, f"reward {self.name!r}")
        asked = [
            filled(template, prompt=prompt, completion=text, answer=str(info.get("answer", "")))
            for text, prompt, info in zip(samples, prompts.text, prompts.info, strict=True)
        ]
        if self.read == "yes":
            return self.chat.scores([None] * len(asked), asked, yes_share, max_tokens=1, logprobs=True, top_logprobs=20)
        return self.chat.scores([None] * len(asked), asked, self._graded, max_tokens=1024)

    def _graded(self, choice: dict[str, Any]) -> float | None:
        found = re.findall(r"-?\d+(?:\.\d+)?", str((choice.get("message") or {}).get("content") or ""), re.ASCII)
        if not found or not self.low <= float(found[-1]) <= self.high:
            return None
        return (float(found[-1]) - self.low) / (self.high - self.low)


def filled(template: str, **texts: str) -> str:
    """The template with its places filled in one pass: what is put in is not searched for places again."""
    return PLACES.sub(lambda place: texts[place.group(1)], template)
