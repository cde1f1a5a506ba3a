"""Thoughts that are cut at several budgets of tokens, with answers asked for at every cut (BRPO of AnytimeReasoner)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from studio.annotation import Component, Kind
from studio.errors import ConfigError
from studio.prompts.windows import plain
from studio.types import Prompts, Rollout


@dataclass(frozen=True)
class BudgetPrompts:
    """Another source's prompts; rows of a group are thoughts, each followed by `answers` answers at each of its `cuts` cuts.

    Budget i is thinking·i/cuts tokens, i = 1 .. cuts; at a cut the mark is put behind the thought and an answer is written. A
    thought that wrote the mark itself is over. So train.group_size is thoughts · (1 + cuts·answers).  arXiv:2505.13438.
    """

    of: Annotated[Component, Kind("prompts")]
    thinking: Annotated[int, Field(ge=1)] = 24  # tokens of the largest budget
    cuts: Annotated[int, Field(ge=1)] = 4  # S
    answers: Annotated[int, Field(ge=1)] = 2  # A, of a thought at each cut; two are needed to compare them
    longest: Annotated[int, Field(ge=1)] = 12  # tokens of an answer, its end included
    mark: str = "#"  # what ends a thought and begins an answer; </think> of reasoning models

    def __post_init__(self) -> None:
        if self.thinking % self.cuts:
            raise ValueError(f"thinking: expected a multiple of cuts = {self.cuts}, got {self.thinking}. Change one of the two.")
        if not self.mark:
            raise ValueError("mark: expected a text, got none. Use the one behind which rewards look for the answer.")

    @property
    def rows(self) -> int:
        """Of a thought with its answers."""
        return 1 + self.cuts * self.answers

    def check(self) -> list[str]:
        """Warnings of the source."""
        return self.of.options.check()

    def check_recipe(self, recipe: Any, processes: int) -> None:
        """ConfigError where rows are not what this source says."""
        if recipe.algorithm.name != "brpo" or recipe.policy.name != "text":
            raise ConfigError(
                f"recipe.prompts: expected algorithm brpo and policy text for prompts 'budgets', got {recipe.algorithm.name!r} and "
                f"{recipe.policy.name!r}: only it credits thoughts with their answers. Use {self.of.name!r} alone."
            )
        train, sampling = recipe.train, recipe.policy.options.sampling
        part = sampling.batch or train.groups_per_step * train.group_size // processes // train.gradient_accumulation_steps
        if train.group_size % self.rows or part % self.rows or train.groups_per_step * train.group_size // processes % self.rows:
            raise ConfigError(
                f"recipe.train.group_size: expected thoughts × (1 + cuts × answers) = a multiple of {self.rows} rows, in every "
                f"part of every process too, got groups of {train.group_size} and parts of {part}. Four thoughts are "
                f"{4 * self.rows} rows."
            )
        if sampling.tools is not None or sampling.roll_in or sampling.pairs:
            raise ConfigError(
                "recipe.policy.sampling: expected rows that the policy writes alone for prompts 'budgets', got tools, roll_in or "
                "pairs. Remove them."
            )
        if sampling.limit < self.thinking + len(self.mark) + self.longest:
            raise ConfigError(
                f"recipe.policy.sampling.limit: expected room for thinking + mark + longest = {self.thinking} + {len(self.mark)} + "
                f"{self.longest} tokens, got {sampling.limit}. Raise it."
            )
        plain(self.of.options, "budgets")

    def build(self, seed: int) -> Budgeted:
        told = {"thinking": self.thinking, "cuts": self.cuts, "answers": self.answers, "longest": self.longest, "mark": self.mark}
        return Budgeted(self.of.options.build(seed), told)

    def held_out(self, count: int) -> Prompts:
        """Without budgets: evaluations let the policy think as long as it likes."""
        return self.of.options.held_out(count)


class Budgeted:
    """The inner source, whose prompts say in info how they are sampled."""

    def __init__(self, source: Any, budgets: dict[str, Any]) -> None:
        self.source, self.budgets = source, budgets

    @property
    def prompts(self) -> Prompts:
        """The inner source's list, where it has one."""
        return getattr(self.source, "prompts", Prompts([], [], []))

    def next(self, count: int) -> Prompts:
        new = self.source.next(count)
        return Prompts(new.text, new.key, [{**info, "budgets": self.budgets} for info in new.info])

    def update(self, rollout: Rollout) -> None:
        self.source.update(rollout)

    def state_dict(self) -> dict[str, Any]:
        return self.source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.source.load_state_dict(state)
