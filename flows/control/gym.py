"""Environments of gymnasium: any registered id, many copies, in this process or in one process each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import wait
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from pydantic import Field
from torch import Tensor

from flows.control.environment import Space, Step
from flows.control.episodes import Episodes, Face, Making, fault, inspect
from flows.control.fault import EnvironmentFault, check_numbers
from studio.errors import DivergedError, RunError


@dataclass(frozen=True)
class Gym:
    """An environment by its gymnasium id; one that a package registers when it is imported is named `package:Id-v0`.

    Observations become one row of float32 numbers. Those of goal environments are (observation, desired_goal): the achieved goal
    is left out, being part of the observation. Actions are clipped to the bounds of the space, for the environment only.
    """

    id: str
    asynchronous: bool = False  # one process per copy; pays where a step takes milliseconds
    kwargs: dict[str, Any] = field(default_factory=dict)  # of gymnasium.make
    limit: Annotated[int, Field(ge=1)] | None = None  # steps of an episode; None = as registered

    arena: ClassVar[str] = "flows.control.arena:Arena"
    copies: ClassVar[int] = 8  # at most, in an evaluation: each is an environment, or even a process, of its own

    def check(self) -> list[str]:
        """Warnings, after a first step of one copy."""
        if inspect(self.making()).limited:
            return []
        return [
            f"env.id is {self.id!r}, which has no time limit: a resumed run repeats the actions of its running episodes, and "
            "episodes without an end make that long; set env.limit"
        ]

    def build(self, count: int, first: int, seed: int, start: Mapping[str, Any] | None = None) -> Copies:
        """`start` is given to every reset as its options; what they mean is the environment's affair."""
        return Copies(self, inspect(self.making()), count, first, seed, start)

    def making(self) -> Making:
        return Making(self.id, self.kwargs, self.limit)


class Copies:
    """Copies of one environment, each with the episodes of its own number."""

    def __init__(self, options: Gym, face: Face, count: int, first: int, seed: int, start: Mapping[str, Any] | None) -> None:
        self.options, self.face, self.count, self.first = options, face, count, first
        action = face.action
        self.space = Space(face.size, action.low.size, *(tuple(bound.ravel().tolist()) for bound in (action.low, action.high)))
        makers: list[Any] = [partial(Episodes, options.making(), face, first + row, seed, start) for row in range(count)]
        # the rows of an ended episode are those of the next one, and its last observation is told apart
        kind = AsyncVectorEnv if options.asynchronous else SyncVectorEnv
        self.now = torch.zeros(count, face.size)
        self.vector = kind(makers, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)

    def reset(self) -> Tensor:
        """All over again, from the first episodes."""
        self.now = self._go([(0, np.zeros((0, *self.face.action.shape), self.face.action.dtype))] * self.count)
        return self.now

    def step(self, action: Tensor) -> Step:
        if not action.isfinite().all():  # a simulator may hide them behind a reset of its own
            raise DivergedError(
                f"environment {self.options.id!r}: expected finite actions, got {int((~action.isfinite()).sum())} that are not."
                "  The policy diverged: lower the learning rate."
            )
        box = self.face.action
        wanted = action.detach().cpu().numpy().astype(box.dtype).reshape(self.count, *box.shape)
        seen, reward, terminated, truncated, info = self._ask(self.vector.step, np.clip(wanted, box.low, box.high))
        self.now = observation = torch.from_numpy(seen).clone()
        after = observation.clone()
        for row in np.flatnonzero(terminated | truncated):
            after[row] = torch.from_numpy(info["final_obs"][row])
        gain = torch.from_numpy(reward).float()
        self._ask(check_numbers, f"environment {self.options.id!r}", self.first, torch.cat([after, observation], 1), gain)
        told = {"success": self._success(info, terminated | truncated)} if self.face.success else {}
        return Step(observation, gain, torch.from_numpy(terminated), torch.from_numpy(truncated & ~terminated), after, told)

    def _success(self, info: Mapping[str, Any], over: np.ndarray) -> Tensor:
        """As reported, for an ended episode by its last step; 0 where it was not."""
        none = np.zeros(self.count)
        last = info.get("final_info", {}).get("success", none)
        return torch.from_numpy(np.where(over, last, info.get("success", none))).float()

    def state_dict(self) -> dict[str, Any]:
        """The running episodes: their numbers, their actions so far, and where these led."""
        told = self._ask(self.vector.call, "told")
        actions = [torch.from_numpy(actions) for _, actions in told]
        return {"episodes": [episode for episode, _ in told], "actions": actions, "now": self.now}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Repeats the running episodes, which is exact for every environment whose seed and actions determine it."""
        episodes, actions = state["episodes"], state["actions"]
        if len(episodes) != self.count:
            raise RunError(
                f"environment {self.options.id!r}: expected a checkpoint of {self.count} copies, got one of {len(episodes)}. "
                "Resume with as many."
            )
        self.now = self._go([(episode, past.numpy()) for episode, past in zip(episodes, actions, strict=True)])
        if not self.now.equal(state["now"]):
            warnings.warn(
                f"environment {self.options.id!r}: the same seeds and actions led elsewhere than before the checkpoint; the run "
                "goes on, but not as it would have",
                stacklevel=2,
            )

    def _go(self, places: list[tuple[int, np.ndarray]]) -> Tensor:
        """Observations of the copies at these places: episodes, and actions since they began."""
        self._ask(self.vector.set_attr, "place", places)
        observation = torch.from_numpy(self._ask(self.vector.reset)[0]).clone()
        self._ask(check_numbers, f"environment {self.options.id!r}", self.first, observation, torch.zeros(self.count))
        return observation

    def _ask(self, call: Callable[..., Any], *given: Any) -> Any:
        """An answer of the copies; where one of them fails, all are ended before the error goes on."""
        try:
            return call(*given)
        except EnvironmentFault:
            self._stop()
            raise
        except Exception as error:
            ends = {worker.sentinel: self.first + row for row, worker in enumerate(self._workers())}
            lost = isinstance(error, EOFError | OSError)  # its pipe closes a moment before the process has ended
            gone = [ends[end] for end in wait(list(ends), timeout=2 if lost else 0)]
            where = f", copy {', '.join(map(str, gone))}" if gone else ""
            self._stop()
            raise fault(self.options.id, "an answer of its process" if gone else "a step", error, where) from error

    def _workers(self) -> list[Any]:
        return self.vector.processes if isinstance(self.vector, AsyncVectorEnv) else []

    def _stop(self) -> None:
        """End all copies without asking them: one that failed does not answer."""
        for worker in self._workers():
            worker.terminate()
            worker.join()
        if isinstance(self.vector, SyncVectorEnv):
            with suppress(Exception):  # the error that brought us here is the one to report
                self.vector.close()
        self.vector.closed = True

    def close(self) -> None:
        self.vector.close()
