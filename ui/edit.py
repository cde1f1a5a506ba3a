"""What the page Launch sent: every part of it is looked at before it is used."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from studio.errors import ConfigError
from ui.draft import KEY

LARGEST = 200_000  # characters of a recipe's text
MOST = 1000  # changed fields


@dataclass(frozen=True)
class Edit:
    """The state of the form in a browser."""

    changes: dict[str, str] = field(default_factory=dict)  # path -> text in the field
    structure: dict[str, str | None] = field(default_factory=dict)  # block -> what it becomes; None = it goes
    text: str | None = None  # the recipe as YAML, where it is edited as such
    name: str = ""
    processes: int = 1
    gpus: str = ""
    waits: bool = False  # in the queue

    @classmethod
    def of(cls, event: gr.EventData) -> Edit:
        """From the data of an event; ConfigError for what no form of ours sends, or a person cannot mean."""
        text = sent(event, "text")
        if text is not None and not (isinstance(text, str) and len(text) <= LARGEST):
            raise ConfigError(f"recipe: expected at most {LARGEST} characters of YAML, got more. Shorten it.")
        return cls(
            _texts(sent(event, "changes")),
            _texts(sent(event, "structure")),
            text,
            str(sent(event, "name") or "").strip(),
            _processes(sent(event, "processes")),
            _gpus(str(sent(event, "gpus") or "")),
            sent(event, "waits") is True,
        )


def sent(event: gr.EventData, name: str) -> Any:
    """A part of an event's data; None where there is none, whatever else was sent."""
    try:
        return getattr(event, name, None)
    except TypeError:  # no mapping
        return None


def serial_of(event: gr.EventData) -> int:
    """Which question of its page an event is: the answer carries the number, so that the page knows what is out of date."""
    serial = sent(event, "serial")
    return serial if isinstance(serial, int) else 0


def _texts(given: Any) -> dict[str, Any]:
    given = given if isinstance(given, Mapping) else {}
    good = len(given) <= MOST and all(isinstance(k, str) and KEY.fullmatch(k) for k in given)
    if not good or not all(v is None or (isinstance(v, str) and len(v) <= LARGEST) for v in given.values()):
        raise ConfigError("form: expected fields of this recipe, got something else. Load the page again.")
    return dict(given)


def _processes(given: Any) -> int:
    text = str(given or 1).strip()
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise ConfigError(f"processes: expected a number from 1 to 1024, one for each GPU, got {text!r}. Change it.")
    return int(text)


def _gpus(text: str) -> str:
    """GPU numbers as CUDA_VISIBLE_DEVICES takes them."""
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if not all(re.fullmatch(r"\d{1,4}", part) for part in parts) or len({*parts}) < len(parts):
        raise ConfigError(f"GPUs: expected different numbers with commas between them, such as 0,1, got {text!r}. Change them.")
    return ",".join(parts)
