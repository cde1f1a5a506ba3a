"""Simulators that run many copies on a GPU by themselves: Isaac Lab and MuJoCo Playground, as rsl_rl sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from flows.control.environment import Space, Step
from flows.control.fault import check_numbers
from studio.errors import ConfigError, ShapeError
from studio.seeds import row_seed

PARTS = ("policy", "state")  # what the actor may see, as Isaac Lab and Playground call it
BIASES = (
    "env is a simulator that starts a copy anew by itself: where a time limit cuts an episode, the value of the state before "
    "the last action stands for that of the state it led to, which is not handed out",
    "env is a simulator whose state cannot be saved: a resumed run starts all its episodes anew",
)


@dataclass(frozen=True)
class IsaacLab:
    """An environment of Isaac Lab, made by a function of yours that `target` names, on a machine that has Isaac Lab.

    For example:

        def quadcopter(num_envs, seed):
            from isaaclab.app import AppLauncher
            AppLauncher(headless=True)  # before anything else of Isaac Lab is imported
            import gymnasium, isaaclab_tasks
            from isaaclab_rl.rsl_rl import RslRlVecEnvWrapper
            from isaaclab_tasks.utils import parse_env_cfg
            task = "Isaac-Quadcopter-Direct-v0"
            cfg = parse_env_cfg(task, device="cuda:0", num_envs=num_envs)
            cfg.seed = seed
            return RslRlVecEnvWrapper(gymnasium.make(task, cfg=cfg))

    Isaac Lab holds one environment per process, so there are no copies of their own for evaluations.
    """

    target: str  # module:function, called with (num_envs, seed)
    bound: Annotated[float, Field(gt=0)] | None = None  # actions are clipped to ±bound for the simulator; None = not here

    arena: ClassVar[str] = "flows.control.arena:Arena"
    alone: ClassVar[bool] = True  # a second build in a process fails

    def check(self) -> list[str]:
        check_target(self.target)
        return list(BIASES)

    def build(self, count: int, first: int, seed: int, start: None = None) -> Simulated:
        return Simulated(self.target, self.bound, count, first, seed)


@dataclass(frozen=True)
class Playground:
    """An environment of MuJoCo Playground, made by a function of yours that `target` names, where it and JAX are installed.

    For example:

        def cheetah(num_envs, seed):
            from mujoco_playground import registry, wrapper_torch
            cfg = registry.get_default_config("CheetahRun")
            env = registry.load("CheetahRun")
            return wrapper_torch.RSLRLBraxWrapper(env, num_envs, seed, cfg.episode_length, cfg.action_repeat)

    Its wrapper clips actions to ±1 by itself.
    """

    target: str  # module:function, called with (num_envs, seed)
    bound: Annotated[float, Field(gt=0)] | None = 1.0  # actions are clipped to ±bound for the simulator; None = not here

    arena: ClassVar[str] = "flows.control.arena:Arena"

    def check(self) -> list[str]:
        check_target(self.target)
        return list(BIASES)

    def build(self, count: int, first: int, seed: int, start: None = None) -> Simulated:
        return Simulated(self.target, self.bound, count, first, seed)


class Simulated:
    """Copies inside one simulator with the interface of rsl_rl's VecEnv.

    It has num_envs and num_actions; get_observations() -> states; step(actions) -> states, rewards [N], dones [N], extras, where
    extras["time_outs"] [N] tells which of the dones a time limit made. States are a tensor [N, n], a pair of one and extras, or a
    mapping that has one under "policy" or "state". Tensors may live on any device and be overwritten by the next step.

    `after` of a step that a time limit cut is the state before it: the simulator hands out the next episode's first state only.
    """

    exact: ClassVar[bool] = False  # whether a checkpoint brings back where the copies stood

    def __init__(self, target: str, bound: float | None, count: int, first: int, seed: int) -> None:
        self.target, self.count, self.first = target, count, first
        self.env = find(target)(count, row_seed(seed, "simulator", first) % 2**31)
        if self.env.num_envs != count:
            raise ConfigError(
                f"recipe.env.target: expected {target} to make {count} environments, got {self.env.num_envs}. Hand num_envs on."
            )
        states = self._states(self.env.get_observations())
        self.device, self.now = states.device, taken(states)
        self.bound, edge = bound, torch.inf if bound is None else bound
        actions = self.env.num_actions
        self.space = Space(states.shape[1], actions, (-edge,) * actions, (edge,) * actions)
        self.fresh = True

    def reset(self) -> Tensor:
        """Every episode anew."""
        if not self.fresh:
            # rsl_rl asks for no reset, and some wrappers have none: theirs begin when they are made
            states = self._states(getattr(self.env, "reset", self.env.get_observations)())
            self.now, self.fresh = taken(states), True
        return self.now

    def step(self, action: Tensor) -> Step:
        before, self.fresh = self.now, False
        action = action if self.bound is None else action.clamp(-self.bound, self.bound)
        states, reward, dones, extras = self.env.step(action.to(self.device))
        self.now = taken(self._states(states))
        reward, over = taken(self._row(reward, "rewards")), taken(self._row(dones, "dones")) > 0
        late = extras.get("time_outs")
        cut = over & (taken(self._row(late, "time_outs")) > 0) if late is not None else torch.zeros_like(over)
        check_numbers(f"simulator {self.target}", self.first, self.now, reward)
        return Step(self.now, reward, over & ~cut, cut, torch.where(over[:, None], before, self.now))

    def _states(self, given: Any) -> Tensor:
        """The tensor [N, n] in what a simulator calls observations."""
        states = given[0] if isinstance(given, tuple) else given
        if not isinstance(states, Tensor):
            name = next((name for name in PARTS if name in list(states.keys())), None)
            if name is None:
                raise ConfigError(
                    f"recipe.env.target: expected observations under {' or '.join(PARTS)}, got "
                    f"{', '.join(map(str, states.keys()))} from {self.target}. Rename the group that the policy is to see."
                )
            states = states[name]
        if states.ndim != 2 or len(states) != self.count:
            raise ShapeError(
                f"simulator {self.target}: observations have shape {list(states.shape)}, expected [N, n] with N = {self.count}. "
                "Flatten them."
            )
        return states

    def _row(self, given: Tensor, what: str) -> Tensor:
        """[N], also from [N, 1]: a difference of [N] and [N, 1] would be [N, N]."""
        if given.numel() != self.count:
            raise ShapeError(
                f"simulator {self.target}: {what} have shape {list(given.shape)}, expected [N] = [{self.count}]. Sum them up."
            )
        return given.reshape(self.count)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: what a simulator knows stays in it."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Begins anew."""
        self.reset()

    def close(self) -> None:
        getattr(self.env, "close", lambda: None)()  # Playground's wrapper has none


def taken(values: Tensor) -> Tensor:
    """Numbers that the simulator will not overwrite, where the loop keeps its own."""
    return values.detach().to("cpu", torch.float32, copy=True)


def check_target(target: str) -> None:
    """ConfigError unless there is such a module; it is not imported, as that may start a simulator."""
    module, colon, function = target.partition(":")
    if not colon or not function or not all(part.isidentifier() for part in (*module.split("."), function)):
        raise ConfigError(
            f"recipe.env.target: expected module:function, got {target!r}. Name a function that returns the environment, given "
            "(num_envs, seed)."
        )
    if find_spec(module.partition(".")[0]) is None:
        raise ConfigError(
            f"recipe.env.target: expected a module that can be imported, got {module!r}. Put its folder on PYTHONPATH."
        )


def find(target: str) -> Any:
    """The function that a target names."""
    check_target(target)
    module, _, function = target.partition(":")
    try:
        return getattr(import_module(module), function)
    except AttributeError as error:
        raise ConfigError(f"recipe.env.target: expected a function of {module}, got {function!r}. Correct its name.") from error
