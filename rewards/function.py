"""A reward that the user wrote: any callable that can be imported."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal

from rewards.facts import Facts
from studio.errors import ConfigError
from studio.types import Prompts


@dataclass(frozen=True)
class Function:
    """target(samples, prompts) -> numbers [B], higher is better; in a list, None is a missing score.

    `target` is `module:function`, found in the current folder or among the installed packages.  Samples are pictures
    [B, 3, H, W] in [0, 1] or texts; prompts have `text`, `key` and `info`.  Importing a module runs its code.
    """

    target: str = ""  # module:function
    reads: Literal["image", "text", "states"] = "image"
    differentiable: bool = False  # whether gradients pass through the function

    name: ClassVar[str] = "function"
    range: ClassVar[tuple[float, float]] = (-float("inf"), float("inf"))
    license: ClassVar[str] = "yours"
    facts: ClassVar[Facts] = Facts("the user", "none")

    @property
    def model_id(self) -> str | None:
        return self.target or None

    def check(self, prompts: Prompts) -> None:
        """ConfigError when the function cannot be imported."""
        load(self.target)

    def __call__(self, samples: Any, prompts: Prompts) -> Any:
        """The function's scores; a list may hold None where a sample has no score."""
        result = load(self.target)(samples, prompts)
        return from_list(result) if isinstance(result, list | tuple) else result


def load(target: str) -> Any:
    """The callable `module:function`; ConfigError when there is none."""
    module, colon, attribute = target.partition(":")
    if not (module and colon and attribute):
        raise ConfigError(f"reward 'function': expected target=module:function, got {target!r}. Name a function to import.")
    here = str(Path.cwd())
    if here not in sys.path:  # the installed command does not look into the current folder
        sys.path.append(here)
    try:
        function = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as problem:
        raise ConfigError(
            f"reward 'function': expected {attribute!r} in module {module!r}, got: {problem}. Check the name and the folder."
        ) from problem
    if not callable(function):
        raise ConfigError(f"reward 'function': expected {target} to be a function, got {type(function).__name__}. Name a function.")
    return function


def from_list(numbers: list | tuple) -> Any:
    """Numbers or None -> Scores with None as missing."""
    import torch

    from studio.types import Scores

    value = torch.tensor([0.0 if number is None else float(number) for number in numbers])
    return Scores(value, torch.tensor([number is not None for number in numbers]))
