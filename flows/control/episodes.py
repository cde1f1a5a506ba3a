"""One copy of a gymnasium environment, whose episodes can be told again: each has a seed of its own, its actions are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, flatdim, flatten

from flows.control.fault import EnvironmentFault, check_numbers
from studio.errors import ConfigError, MissingError
from studio.names import suggestion
from studio.seeds import row_seed

GOAL_PARTS = ("observation", "desired_goal")  # of a goal environment; what was achieved is part of the first
SUCCESS = ("success", "is_success")  # names under which environments report it
SEEDS = 2**32  # simulators that use NumPy's older generators take no larger ones


@dataclass(frozen=True)
class Making:
    """What gymnasium.make is given."""

    id: str
    kwargs: Mapping[str, Any]
    limit: int | None  # steps; None = as registered

    def __call__(self) -> gymnasium.Env:
        limit = {} if self.limit is None else {"max_episode_steps": self.limit}
        return gymnasium.make(self.id, disable_env_checker=True, **limit, **self.kwargs)


@dataclass(frozen=True)
class Face:
    """What an environment looks like from outside."""

    action: Box
    size: int  # n, of its observations once flat
    success: bool  # whether its steps report it
    limited: bool  # whether a time limit ends its episodes


def make(making: Making) -> gymnasium.Env:
    """The environment; ConfigError or MissingError when there is none of this kind."""
    name = making.id
    try:
        return making()
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        raise MissingError(
            f"recipe.env: expected the packages of {name!r}, got: {error}. Install them; MuJoCo and PointMaze come with "
            "`pip install 'alignment-studio[robotics]'`."
        ) from error
    except gymnasium.error.Error as error:
        raise ConfigError(
            f"recipe.env.id: expected a registered gymnasium environment, got {name!r} ({error})"
            f"{suggestion(name, gymnasium.registry)} One that another package registers is named "
            f"'package:{name.rpartition(':')[2]}'."
        ) from error
    except TypeError as error:
        raise ConfigError(
            f"recipe.env.kwargs: expected arguments of {name!r}, got {dict(making.kwargs)} ({error}). Correct or remove them."
        ) from error


def inspect(making: Making) -> Face:
    """Make one copy and take one step of it; ConfigError when no policy can act in it, EnvironmentFault when it fails."""
    env = make(making)
    try:
        action = check_action(making.id, env.action_space)
        size = check_observation(making.id, env.observation_space)
        env.reset(seed=0)
        middle = (action.low.astype(np.float64) + action.high) / 2
        observation, reward, *_, info = env.step(middle.astype(action.dtype))
        seen = torch.from_numpy(flat(env.observation_space, observation))
    except ConfigError:
        raise
    except Exception as error:  # whatever an environment raises: the message tells which one it was
        raise fault(making.id, "a first step", error) from error
    finally:
        env.close()
    check_numbers(f"environment {making.id!r}", 0, seen[None], torch.tensor([float(reward)]))
    limited = env.spec is not None and env.spec.max_episode_steps is not None
    return Face(action, size, any(name in info for name in SUCCESS), limited)


def check_action(name: str, space: Any) -> Box:
    """The space, if it has numbers with bounds."""
    if not isinstance(space, Box) or not np.issubdtype(space.dtype, np.floating):
        raise ConfigError(
            f"recipe.env.id: expected an environment with real actions (Box), got {name!r} with {space}. The policies here draw "
            "real numbers; choose an environment that takes them."
        )
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ConfigError(
            f"recipe.env.id: expected finite bounds of all actions, got {name!r} with {space}. Register a version of it whose "
            "action space has bounds: actions are clipped to them."
        )
    return space


def check_observation(name: str, space: Any) -> int:
    """Numbers in an observation once it is flat."""
    try:
        return sum(flatdim(part) for part in parts_of(space))
    except (NotImplementedError, ValueError) as error:
        raise ConfigError(
            f"recipe.env.id: expected observations of a fixed size, got {name!r} with {space}. Choose another environment, or "
            "register one that fills them up."
        ) from error


def parts_of(space: Any) -> list[Any]:
    """The spaces whose numbers make an observation."""
    return [space[part] for part in GOAL_PARTS] if is_goal(space) else [space]


def is_goal(space: Any) -> bool:
    return isinstance(space, Dict) and all(part in space.spaces for part in GOAL_PARTS)


def flat(space: Any, observation: Any) -> np.ndarray:
    """[n] float32"""
    parts = [observation[part] for part in GOAL_PARTS] if is_goal(space) else [observation]
    return np.concatenate([np.asarray(flatten(own, part), np.float32) for own, part in zip(parts_of(space), parts, strict=True)])


def fault(name: str, expected: str, error: Exception, where: str = "") -> EnvironmentFault:
    return EnvironmentFault(
        f"environment {name!r}{where}: expected {expected}, got {type(error).__name__}: {error}. Repair the environment, or its "
        "options in recipe.env."
    )


class Episodes:
    """Copy `number`: its k-th episode has the seed of "env/number" and k, and `told` says how far it is.

    Has the methods that the vector environments of gymnasium call. The environment is made at the first reset, so that a failure
    in a worker is reported like one in a step. Setting `place` to an episode and its actions makes the next reset go there.
    """

    metadata: dict[str, Any] = {}
    render_mode = None

    def __init__(self, making: Making, face: Face, number: int, seed: int, start: Mapping[str, Any] | None) -> None:
        self.making, self.number, self.seed, self.start = making, number, seed, start
        self.action_space, self.observation_space = face.action, Box(-np.inf, np.inf, (face.size,), np.float32)
        self.env: Any = None
        self.episode, self.actions = -1, []
        self.place: tuple[int, np.ndarray] | None = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """The next episode, or the place that was set."""
        episode, actions = (self.episode + 1, ()) if self.place is None else self.place
        self.place = None
        observation = self._begin(episode)
        for action in actions:
            observation, _, terminated, truncated, _ = self.step(action)
            if terminated or truncated:  # it ended later once: whoever compares the observations will see it
                return self._begin(episode + 1), {}
        return observation, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.env is not None
        given = np.array(action)  # as it is now: some environments scale theirs in place
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
            seen = flat(self.env.observation_space, observation)
        except Exception as error:  # workers can pass on only what can be pickled, and this can
            raise self._fault("a step", error) from error
        self.actions.append(given)
        reported = [float(info[name]) for name in SUCCESS if name in info]
        return seen, float(reward), bool(terminated), bool(truncated), {"success": reported[0]} if reported else {}

    def told(self) -> tuple[int, np.ndarray]:
        """The running episode and its actions so far, [k, ...]."""
        shape = self.action_space.shape
        return self.episode, np.array(self.actions, self.action_space.dtype).reshape(-1, *shape)

    def _begin(self, episode: int) -> np.ndarray:
        self.episode, self.actions = episode, []
        try:
            self.env = self.env or make(self.making)
            observation, _ = self.env.reset(seed=row_seed(self.seed, f"env/{self.number}", episode) % SEEDS, options=self.start)
            return flat(self.env.observation_space, observation)
        except Exception as error:
            raise self._fault("a reset", error) from error

    def _fault(self, expected: str, error: Exception) -> EnvironmentFault:
        seed = row_seed(self.seed, f"env/{self.number}", self.episode) % SEEDS
        where = f", copy {self.number}, action {len(self.actions)} of the episode with seed {seed}"
        return fault(self.making.id, expected, error, where)

    def close(self) -> None:
        if self.env is not None:
            self.env.close()

    def get_wrapper_attr(self, name: str) -> Any:
        return getattr(self, name)

    def set_wrapper_attr(self, name: str, value: Any) -> None:
        setattr(self, name, value)
