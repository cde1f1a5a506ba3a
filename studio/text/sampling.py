"""How completions are drawn: settings only, so that a recipe is read without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field


@dataclass(frozen=True)
class Tools:
    """Which function answers, and how calls and answers are written."""

    target: str = "calculator"  # a bundled name, or module:function that takes the call's text and returns the answer's
    begin: str = "<call>"
    end: str = "</call>"
    answer: str = "<result>{}</result>"  # what is put behind a call
    calls: Annotated[int, Field(ge=1)] = 4  # of a completion; later ones are not answered
    longest: Annotated[int, Field(ge=1)] = 64  # characters of an answer

    def __post_init__(self) -> None:
        if "{}" not in self.answer:
            raise ValueError(f"answer: expected a text with {{}} where the answer goes, got {self.answer!r}. Add it.")


@dataclass(frozen=True)
class Sampling:
    """Nothing cuts the distribution (no top-k, no top-p): what is trained is what was drawn from."""

    limit: Annotated[int, Field(ge=1)] = 64  # tokens of a completion
    batch: Annotated[int, Field(ge=1)] | None = None  # completions written at a time; None = as many as are replayed at a time
    temperature: Annotated[float, Field(gt=0)] = 1.0  # of rollouts; likelihoods are taken at it
    eval_temperature: Annotated[float, Field(ge=0)] = 1.0  # 0 = the likeliest token
    stop: list[str] = field(default_factory=list)  # strings that end a completion, besides the model's own end
    chat: Literal["auto", "on", "off"] = "auto"  # put prompts into the tokenizer's chat template; auto = where it has one
    system: str = ""  # system message of the chat
    pairs: bool = False  # the first two rows of a group are the record's `chosen` and `rejected` answers
    roll_in: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of rows that start with a part of the record's reference answer
    reference: str = "solution"  # field of that answer
    tools: Tools | None = None  # which the policy may call while it writes
    monitor: Annotated[int, Field(ge=0)] = 5  # iterations between looks at signs of over-optimization; 0 = never
    train_cut: bool = True  # whether completions cut at the limit train; false is DAPO's mask of overlong answers
