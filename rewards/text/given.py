"""What a reward of texts is given: completions, what their prompts say, and other rewards by name."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rewards import REWARDS
from rewards.score import checked_scores
from studio.errors import ConfigError, ShapeError
from studio.names import suggestion
from studio.types import Prompts, Scores

if TYPE_CHECKING:
    from studio.protocols import RewardFn


def check_texts(name: str, samples: Any) -> None:
    """ShapeError unless samples are a list of texts."""
    if not isinstance(samples, list) or not all(isinstance(text, str) for text in samples):
        got = type(samples).__name__ if not isinstance(samples, list) else "other things in the list"
        raise ShapeError(f"reward {name!r}: samples are {got}, expected a list of B texts. Use a policy that writes text.")


def needed(name: str, prompts: Prompts, row: int, field: str) -> Any:
    """info[field] of a prompt; ConfigError when it is not there."""
    value = prompts.info[row].get(field)
    if value is None:
        raise ConfigError(
            f"reward {name!r}: expected info[{field!r}] of every prompt, got none for prompt {row} ({prompts.text[row][:60]!r}). "
            f"Add {field!r} to its record, or choose another reward."
        )
    return value


def length_of(text: str, info: Mapping[str, Any]) -> int:
    """Tokens of a completion where the policy tells them in info["tokens"], else characters."""
    return int(info.get("tokens", len(text)))


def reward_named(name: str, options: Mapping[str, Any], where: str) -> RewardFn:
    """The reward of the table with these options, for a reward that asks another one; it must read texts."""
    if name not in REWARDS:
        raise ConfigError(f"{where}: no reward is named {name!r}{suggestion(name, REWARDS)} (known: {', '.join(sorted(REWARDS))})")
    module, _, attribute = REWARDS[name].partition(":")
    try:
        made = getattr(import_module(module), attribute)(**options)
    except TypeError as problem:
        raise ConfigError(
            f"{where}: expected options of reward {name!r}, got {dict(options)}: {problem}. Correct them."
        ) from problem
    if made.reads != "text":
        raise ConfigError(f"{where}: expected a reward that reads text, got {name!r}, which reads {made.reads}. Name another.")
    return made


def scores_of(reward: RewardFn, samples: list[str], prompts: Prompts) -> Scores:
    """Checked scores of another reward, all [B], present filled in."""
    return checked_scores(str(getattr(reward, "name", type(reward).__name__)), reward(samples, prompts), len(samples))
