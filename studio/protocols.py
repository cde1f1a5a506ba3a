"""Interfaces between the parts; nothing else lives here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from studio.types import Credit, Evaluation, Prompts, Rollout, Scores

if TYPE_CHECKING:
    from torch import Tensor, nn


class Trace(Protocol):
    """What a policy recorded to be able to evaluate its decisions again; each policy has its own dataclass."""

    def at(self, rows: Any, steps: Any) -> Trace: ...


class Policy(Protocol):
    """Something that takes decisions and can say afterwards how likely they were."""

    provides: frozenset[str]  # names of Evaluation fields, plus "ref" and "pathwise"
    reduction: Literal["mean", "sum"]  # of logp over E; clip and KL constants depend on it

    def sample(self, rows: Prompts, *, group: Tensor, seeds: Sequence[int], step: int) -> Rollout: ...  # one sample a row
    def evaluate(self, rollout: Rollout) -> Evaluation: ...  # differentiable
    def reference(self) -> AbstractContextManager[None]: ...  # inside, evaluate() speaks for the frozen reference
    def trainable(self) -> Iterable[nn.Parameter]: ...
    def save(self, folder: Path) -> None: ...  # one that can be sharded takes write=False: help to gather, write nothing


@runtime_checkable
class Stateful(Protocol):
    """A slot, prompt source or reward with memory across steps; checkpointed by name."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Monitored(Protocol):
    """A policy that measures something about itself after an update, at an interval of its own."""

    def monitor(self, rollout: Rollout, credit: Credit, step: int) -> dict[str, float]: ...


@runtime_checkable
class Prepares(Protocol):
    """A policy that computes what its objective asks for and no more, and refuses what it cannot read before sampling it."""

    def want(self, needs: frozenset[str]) -> None: ...
    def check_prompts(self, prompts: Prompts) -> None: ...


class Arena(Protocol):
    """Where a control policy acts: environments of this process, with what is remembered of them between iterations."""

    def stretch(self, policy: Any, step: int) -> Rollout: ...  # rows are environments, decisions their next actions
    def look(self, policy: Any, step: int, episodes: int, seed: int) -> Any: ...  # evaluation on environments of its own
    def measure(self, policy: Any, episodes: int, seed: int) -> dict[str, float]: ...  # in every way that the policy can act
    def film(self, policy: Any, file: Path, seed: int) -> Path: ...
    def gather(self, collect: Callable[[Any], list[Any]]) -> None: ...  # before a checkpoint: states of all processes' environments
    def save(self, folder: Path) -> None: ...  # what belongs to the weights
    def load(self, folder: Path) -> None: ...
    def close(self) -> None: ...


class PromptSource(Protocol):
    """Where prompts come from; `next` continues where it stopped, `update` lets curricula learn from results."""

    def next(self, count: int) -> Prompts: ...
    def update(self, rollout: Rollout) -> None: ...


@runtime_checkable
class Follows(PromptSource, Protocol):
    """A prompt source that draws by what the objective of the run knows."""

    def follow(self, objective: Any) -> None: ...


@runtime_checkable
class Particular(Protocol):
    """Options of a prompt source that fits some recipes only: it says which, before a model is loaded."""

    def check_recipe(self, recipe: Any, processes: int) -> None: ...


class RewardFn(Protocol):
    """Scores samples. Raise for a broken set-up; return a missing row for a sample that cannot be scored."""

    reads: Literal["text", "image", "states"]
    differentiable: bool
    range: tuple[float, float]
    license: str
    model_id: str | None

    def __call__(self, samples: Any, prompts: Prompts) -> Tensor | Scores: ...


class Algorithm(Protocol):
    """A frozen dataclass: its fields are its config, its defaults are the paper's."""

    def objective(self) -> Any: ...


Advantage = Callable[[Rollout], "Tensor"]  # -> [B, T]
Gate = Callable[[Rollout, "Tensor"], "Tensor"]  # (rollout, advantage) -> [B, T] >= 0, no gradient
Ratio = Callable[[Evaluation, Rollout], "Tensor"]  # (new, rollout) -> log ratio [B, T]
Surrogate = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]  # (log_ratio, advantage, mask) -> [B, T], to be maximized
Regularizer = Callable[[Evaluation, Rollout, "Tensor"], "Tensor"]  # (new, rollout, log_ratio) -> [B, T], to be minimized
Weighting = Callable[[Rollout], "Tensor"]  # -> [B, T]
Critic = Callable[[Evaluation, Rollout, Credit], "Tensor"]  # -> value loss [B, T]
