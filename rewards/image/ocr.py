"""Is the text of the prompt written in the picture?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rewards.facts import Facts
from rewards.image.ocr_engines import ENGINES
from rewards.pictures import as_uint8, check_pictures
from rewards.weights import require
from studio.errors import ConfigError
from studio.types import Prompts, Scores

if TYPE_CHECKING:
    from torch import Tensor

QUOTED = re.compile(r'"([^"]*)"')


@dataclass(frozen=True)
class Ocr:
    """1 if the target is a substring of what was read, else 1 - min(lev(read, target), n) / n, n the target's length.

    Both are lower-cased and lose their spaces; read is all lines joined; lev is the Levenshtein distance.  The target
    is `info["target_text"]`, else the text between the first pair of double quotes, else the whole prompt.
    Source: flow_grpo (arXiv:2505.05470).  Deviations: it crashes on a prompt without quotes; and a picture on which the
    engine fails is missing here, 0 there.  A picture without text is no failure: it scores 0.
    """

    engine: Literal["rapidocr", "tesseract"] = "rapidocr"  # tesseract: the command of that name must be installed

    name: ClassVar[str] = "ocr"
    reads: ClassVar[str] = "image"
    differentiable: ClassVar[bool] = False
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    license: ClassVar[str] = "Apache-2.0 (engine and models)"
    facts: ClassVar[Facts] = Facts(
        "Flow-GRPO (arXiv:2505.05470)", "round(255·x), then the engine's own", "1 for the target in clear print", extra="ocr"
    )

    @property
    def model_id(self) -> str:
        return {"rapidocr": "PP-OCR models inside the rapidocr package", "tesseract": "tesseract, language eng"}[self.engine]

    def check(self, prompts: Prompts) -> None:
        """ConfigError for the first prompt that asks for no text."""
        for text, info in zip(prompts.text, prompts.info, strict=True):
            target_of(text, info)

    def __call__(self, samples: Tensor, prompts: Prompts) -> Scores:
        """Scores of pictures [B, 3, H, W] in [0, 1]; missing where the engine fails on a picture."""
        import torch

        check_pictures(self.name, samples)
        targets = [target_of(text, info) for text, info in zip(prompts.text, prompts.info, strict=True)]
        read = ENGINES[self.engine]()
        lines = [read(picture) for picture in as_uint8(samples)]
        scores = [None if one is None else ocr_score("".join(one), target) for one, target in zip(lines, targets, strict=True)]
        present = torch.tensor([score is not None for score in scores])
        return Scores(torch.tensor([score or 0.0 for score in scores]), present)


def target_of(text: str, info: Mapping[str, Any]) -> str:
    """The text that a prompt asks for; ConfigError when there is none."""
    quoted = QUOTED.search(text)
    target = str(info.get("target_text") or (quoted.group(1) if quoted else text))
    if not squeeze(target):
        raise ConfigError(f"reward 'ocr': prompt {text!r}: expected text to render, got {target!r}. Quote the words to be written.")
    return target


def ocr_score(read: str, target: str) -> float:
    """The formula of `Ocr` for one picture."""
    read, target = squeeze(read), squeeze(target)
    if target in read:
        return 1.0
    distance = require("rapidfuzz.distance", "ocr", "ocr").Levenshtein.distance(read, target)
    return 1 - min(distance, len(target)) / len(target)


def squeeze(text: str) -> str:
    """Lower case, without white space."""
    return "".join(text.lower().split())
