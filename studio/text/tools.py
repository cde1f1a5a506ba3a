"""Tools in the middle of a completion: the policy writes a call, the answer is put behind it and is not trained on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, tensor

from studio.errors import ConfigError
from studio.text.sampling import Tools
from studio.text.tasks.expression import parse

BUNDLED = {"calculator": lambda asked: str(parse(asked.strip()).value)}


class ToolUser:
    """Answers the calls that rows end with."""

    def __init__(self, tokenizer: Any, tools: Tools) -> None:
        self.tokenizer, self.tools, self.function = tokenizer, tools, load(tools.target)

    def answers(self, rows: Sequence[Tensor]) -> list[Tensor | None]:
        """For every row of tokens so far: those of the answer when it ends with a call, else None."""
        return [self._answer(self.tokenizer.decode(row.tolist(), skip_special_tokens=True)) for row in rows]

    def _answer(self, text: str) -> Tensor | None:
        tools = self.tools
        if not text.endswith(tools.end) or text.count(tools.end) > tools.calls:
            return None
        asked = text.removesuffix(tools.end).rpartition(tools.begin)[2]
        told = tools.answer.format(answer_of(self.function, asked)[: tools.longest])
        return tensor(self.tokenizer(told, add_special_tokens=False)["input_ids"])


def answer_of(function: Callable[[str], Any], asked: str) -> str:
    """What the tool says; an error of the tool is an answer as well, for the policy to learn from."""
    try:
        return str(function(asked))
    except Exception as problem:
        return f"error: {problem}"


def load(target: str) -> Callable[[str], Any]:
    """A bundled tool by name, or the user's `module:function`, found in the current folder or among installed packages."""
    if target in BUNDLED:
        return BUNDLED[target]
    module, colon, attribute = target.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        if not colon:
            raise ImportError("no ':' in it")
        function = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as problem:
        raise ConfigError(
            f"recipe.policy.sampling.tools.target: expected {' or '.join(BUNDLED)}, or module:function, got {target!r} "
            f"({problem}). Check the name and the folder."
        ) from problem
    return function
