"""What an environment is here: many copies at once, tensors in and out, each copy starting anew as soon as it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor

Mode = Literal["stochastic", "noiseless", "deterministic"]  # as trained; random flow noise but none added; neither


@dataclass(frozen=True)
class Space:
    """What a policy must know to act: sizes, and the bounds within which the environment clips."""

    observation: int  # n
    action: int  # d
    low: tuple[float, ...]  # [d]
    high: tuple[float, ...]  # [d]


@dataclass(frozen=True)
class Step:
    """What came of one action in each of N copies."""

    observation: Tensor  # [N, n] to act on next: of the new episode where one ended
    reward: Tensor  # [N] float32
    terminated: Tensor  # [N] bool, the task ended: nothing comes after
    truncated: Tensor  # [N] bool, a time limit cut it: the state that was reached has a value
    after: Tensor  # [N, n] the state that was reached: the last one of its episode where one ended
    info: Mapping[str, Tensor] = field(default_factory=dict)  # [N] more to be averaged over steps, e.g. success


class Environments(Protocol):
    """N copies of a task. `first` is the number of the first copy among all processes: copies are seeded by their number."""

    space: Space
    count: int

    def reset(self) -> Tensor: ...  # [N, n]
    def step(self, action: Tensor) -> Step: ...  # actions [N, d] as the policy meant them; clipping is the environment's
    def state_dict(self) -> dict[str, Any]: ...  # enough to go on bit for bit
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
    def close(self) -> None: ...
