"""Completions that are written in windows of tokens: what a window cut short goes on in the next iteration (T-PPO)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from studio.annotation import Component, Kind
from studio.errors import ConfigError
from studio.types import Prompts, Rollout

SAID = ("logp", "entropy", "value")  # of tokens of earlier windows, as it was said when they were drawn


@dataclass(frozen=True)
class WindowPrompts:
    """Another source's prompts; unfinished completions keep their places in the batch, new prompts take those that are free.

    Every iteration writes at most `window` tokens of a row (arXiv:2506.15050). Info carries what a row has written so far.
    """

    of: Annotated[Component, Kind("prompts")]
    window: Annotated[int, Field(ge=1)] = 16  # tokens of a completion per iteration

    def check(self) -> list[str]:
        """Warnings of the source."""
        return self.of.options.check()

    def check_recipe(self, recipe: Any, processes: int) -> None:
        """ConfigError where a row cannot go on by itself."""
        if recipe.algorithm.name != "t_ppo" or recipe.policy.name != "text":
            raise ConfigError(
                "recipe.prompts: expected algorithm t_ppo and policy text for prompts 'windows', got "
                f"{recipe.algorithm.name!r} and {recipe.policy.name!r}: other algorithms take an unfinished row for a failed "
                f"one. Use {self.of.name!r} alone."
            )
        if recipe.train.group_size != 1:
            raise ConfigError(
                f"recipe.train.group_size: expected 1 for prompts 'windows', as each row ends in its own iteration, got "
                f"{recipe.train.group_size}. Set it to 1 and raise groups_per_step."
            )
        sampling = recipe.policy.options.sampling
        if sampling.tools is not None or sampling.roll_in or sampling.pairs or sampling.stop:
            raise ConfigError(
                "recipe.policy.sampling: expected rows that the policy writes alone and ends itself for prompts 'windows', got "
                "tools, roll_in, pairs or stop. Remove them."
            )
        plain(self.of.options, "windows")

    def build(self, seed: int) -> Unfinished:
        return Unfinished(self.of.options.build(seed), self.window)

    def held_out(self, count: int) -> Prompts:
        return self.of.options.held_out(count)


class Unfinished:
    """The rows that the last window cut, then new prompts of the inner source; both are its state."""

    def __init__(self, source: Any, window: int) -> None:
        self.source, self.window = source, window
        self.waiting: list[dict[str, Any]] = []  # rows that go on: text, key, info

    @property
    def prompts(self) -> Prompts:
        """The inner source's list, where it has one."""
        return getattr(self.source, "prompts", Prompts([], [], []))

    def next(self, count: int) -> Prompts:
        old, new = self.waiting[:count], self.source.next(max(0, count - len(self.waiting)))
        start = {"size": self.window, "token": []} | {name: [] for name in SAID}
        return Prompts(
            [row["text"] for row in old] + new.text,
            [row["key"] for row in old] + new.key,
            [row["info"] for row in old] + [{**info, "window": start} for info in new.info],
        )

    def update(self, rollout: Rollout) -> None:
        """Keeps the rows that were cut, with all that they have written."""
        self.waiting = []
        for row, info in enumerate(rollout.prompts.info):
            if rollout.cut is not None and rollout.cut[row]:
                written = len(info["window"]["token"]) + self.window
                said = {name: getattr(rollout.old, name) for name in SAID}
                so_far = {name: [] if x is None else x[row, :written].tolist() for name, x in said.items()}
                so_far |= {"size": self.window, "token": rollout.old.token[row, :written].tolist()}  # type: ignore[index]
                self.waiting.append(
                    {"text": rollout.prompts.text[row], "key": rollout.prompts.key[row], "info": {**info, "window": so_far}}
                )
        self.source.update(rollout)

    def state_dict(self) -> dict[str, Any]:
        return {"waiting": self.waiting, "source": self.source.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.waiting = state["waiting"]
        self.source.load_state_dict(state["source"])


def plain(options: Any, name: str) -> None:
    """ConfigError where a source that says how rows are sampled stands inside another one."""
    if hasattr(options, "check_recipe"):
        raise ConfigError(
            f"recipe.prompts.of: expected a source of prompts inside {name!r}, got {type(options).__name__}, which wraps one "
            "itself. Use one of the two."
        )
