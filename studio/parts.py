"""What a recipe builds: the policy, the objective, the rewards and everything around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from studio.behavior import Behavior
from studio.core import Objective
from studio.core.pathwise import PathwiseObjective
from studio.optim import Average, LearningRate, build_optimizer
from studio.protocols import Arena, Follows, Policy, Prepares, PromptSource, Stateful
from studio.recipe import Recipe
from studio.registry import load
from studio.scoring import Scorer, check_prompts
from studio.types import Prompts
from studio.watch import Alarm


@dataclass
class Parts:
    """What a recipe builds; everything with a state is saved under its field name."""

    policy: Policy
    objective: Objective | PathwiseObjective
    prompts: PromptSource | None
    rewards: Scorer
    held_out: Scorer
    optimizer: torch.optim.Optimizer
    rate: LearningRate
    average: Average
    behavior: Behavior
    alarm: Alarm
    test: Prompts
    env: Arena | None = None

    def sampled_from(self) -> dict[str, Any]:
        """What changes while a rollout is sampled and scored: the prompts and the rewards' memories."""
        return {name: part for name, part in self.stateful().items() if name == "prompts" or name.startswith("rewards.")}

    def stateful(self) -> dict[str, Any]:
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        named |= {f"rewards.{name}": cached.reward for name, cached in self.rewards.rewards.items()}
        named |= {"policy": getattr(self.policy, "memory", None)}  # what it remembers besides its weights
        return {name: part for name, part in named.items() if isinstance(part, Stateful)}


def build_parts(recipe: Recipe, shard: Callable[[nn.Module], None] = lambda model: None, rank: int = 0, world: int = 1) -> Parts:
    """Load the model and everything around it; prompts are checked against the rewards first.

    `shard` sees the network before anything holds its parameters.
    """
    if recipe.env is not None:
        return _in_env(recipe, rank, world)
    assert recipe.prompts is not None
    rewards, held_out = Scorer(recipe.rewards), Scorer(recipe.held_out)
    prompts = recipe.prompts.options.build(recipe.seed)
    test = recipe.prompts.options.held_out(recipe.watch.prompts)
    sight = getattr(prompts, "prompts", Prompts([], [], []))  # some sources make them up as they go
    for scorer in (rewards, held_out):
        check_prompts(scorer.rewards, sight)
        check_prompts(scorer.rewards, test)
    policy = recipe.policy.options.build(recipe.seed)
    shard(policy.model)
    if isinstance(policy, Prepares):
        policy.want(recipe.objective().needs)
        for part in (sight, test):
            policy.check_prompts(part)
    if "ref" in recipe.objective().needs:
        policy.keep_reference()
    return _around(recipe, policy, prompts, rewards, held_out, test)


def _in_env(recipe: Recipe, rank: int, world: int) -> Parts:
    """The same where an environment sets the tasks: there are no prompts, and rewards come with the actions."""
    assert recipe.env is not None
    arena = load(recipe.env.options.arena)(recipe.env.options, recipe.acting, recipe.seed, rank, world)
    policy = recipe.policy.options.build(recipe.seed, arena.space)
    return _around(recipe, policy, None, Scorer({}), Scorer({}), Prompts([], [], []), arena)


def _around(recipe: Recipe, policy: Any, prompts: Any, rewards: Scorer, held_out: Scorer, test: Prompts, env: Any = None) -> Parts:
    optimizer, objective = build_optimizer(policy, recipe.train), recipe.objective()
    if isinstance(prompts, Follows):
        prompts.follow(objective)
    return Parts(
        policy,
        objective,
        prompts,
        rewards,
        held_out,
        optimizer,
        LearningRate(optimizer, recipe.train),
        Average(policy, recipe.train),
        Behavior(policy, recipe.train.behavior),
        Alarm(recipe.watch),
        test,
        env,
    )
