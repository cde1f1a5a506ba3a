"""Asking a language model about pictures or texts, over any server with OpenAI's chat interface."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rewards.pictures import as_png
from studio.errors import ConfigError, RewardError
from studio.post import Patience, Service, ask, check_url
from studio.types import Scores

if TYPE_CHECKING:
    from PIL import Image

KEY = "JUDGE_API_KEY"  # name of the environment variable that holds the server's key


@dataclass(frozen=True)
class Chat:
    """A server and how it is asked; answers are greedy."""

    reward: str  # whose errors these are
    url: str  # ends in /v1
    model: str
    workers: int = 8  # questions in flight
    patience: Patience = Patience()
    on_error: Literal["fail", "mask"] = "fail"

    def check(self) -> None:
        """ConfigError when the address cannot be one of this interface."""
        check_url(self.url, f"reward {self.reward!r}")
        if not self.url.rstrip("/").endswith("/v1"):
            raise ConfigError(f"reward {self.reward!r}: expected a url that ends in /v1, got {self.url!r}. Add /v1.")

    def scores(
        self,
        pictures: Sequence[Image.Image | None],
        texts: Sequence[str],
        read: Callable[[dict[str, Any]], float | None],
        **options: Any,
    ) -> Scores:
        """`read` of the answer about every picture (None = text alone); a row whose answer cannot be read is missing, never 0."""
        import torch

        self.check()

        def one(picture: Image.Image | None, text: str) -> float | None:
            try:
                return read(self._answer(picture, text, options))
            except RewardError:
                if self.on_error == "fail":
                    raise
                return None

        with ThreadPoolExecutor(max_workers=self.workers, thread_name_prefix=self.reward) as workers:
            values = list(workers.map(one, pictures, texts))
        present = torch.tensor([value is not None for value in values], dtype=torch.bool)
        return Scores(torch.tensor([value or 0.0 for value in values]), present)

    def _answer(self, picture: Image.Image | None, text: str, options: dict[str, Any]) -> dict[str, Any]:
        content: Any = text
        if picture is not None:
            image = f"data:image/png;base64,{base64.b64encode(as_png(picture)).decode()}"
            content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": text}]
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], "temperature": 0} | options
        service = Service(
            f"reward {self.reward!r}", (self.url,), KEY, self.patience, "Check the address and the name of the model."
        )
        answer = ask(service, "/chat/completions", body)
        try:
            return answer["choices"][0]
        except (KeyError, IndexError, TypeError) as problem:
            raise RewardError(
                f"{service.where}: expected a chat completion, got {str(answer)[:200]}. Check the server at {self.url}."
            ) from problem


def template_text(template: str, where: str) -> str:
    """A template with {prompt}, given as text or as the path of a .txt file."""
    try:
        text = Path(template).read_text(encoding="utf-8") if template.endswith(".txt") else template
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigError(
            f"{where}: expected a template in a text file, got {problem}. Check its path, or give the text."
        ) from problem
    if "{prompt}" not in text:
        raise ConfigError(f"{where}: expected a template with {{prompt}}, got {text[:80]!r}. Say where the prompt goes.")
    return text
