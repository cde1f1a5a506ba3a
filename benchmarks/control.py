"""What the loop costs beyond the calls it cannot do without, and what PolicyFlow's update costs beyond PPO's.

Bare, on the same batch shapes: while acting, every call of the actor and of the environment, and one of the critic; in the update,
forward and backward of actor and critic for every minibatch and the optimizer's steps; no noise, no record, no advantages, no
ratio, no statistics. `loop_overhead` is PolicyFlow's. Both policies have the same hidden layers. Timed in turn in one process;
medians over turns.

    python -m benchmarks.control
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402

from studio.dist import Processes  # noqa: E402
from studio.parts import Parts, build_parts  # noqa: E402
from studio.recipe import Recipe, load_recipe  # noqa: E402
from studio.rollout import sample  # noqa: E402
from studio.update import update  # noqa: E402

NAMES = ("policyflow", "ppo")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--threads", type=int, default=1)  # more do not help nets of this size
    arguments.add_argument("overrides", nargs="*")
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    recipes = {
        name: load_recipe(f"control/multigoal-{name}", ["policy.fidelity=0", *given.overrides][name == "ppo" :])[0]
        for name in NAMES
    }
    parts, bare = ({name: build_parts(recipe) for name, recipe in recipes.items()} for _ in range(2))
    times: dict[str, list[float]] = {f"{name}.{what}": [] for name in NAMES for what in ("sample", "update", "act", "learn")}
    with tempfile.TemporaryDirectory() as folder:
        processes = Processes(folder=folder)
        for turn in range(given.rounds + 1):
            for name in NAMES:
                for what, seconds in one(recipes[name], parts[name], bare[name], processes, turn).items():
                    times[f"{name}.{what}"].append(seconds)
    kept = {name: values[1:] for name, values in times.items()}  # the first turn warms up
    flow = [kept[f"policyflow.{what}"] for what in ("sample", "update", "act", "learn")]
    ratios = [(a + b) / (c + d) for a, b, c, d in zip(*flow, strict=True)]
    updates = [a / b for a, b in zip(kept["policyflow.update"], kept["ppo.update"], strict=True)]
    acting = recipes["policyflow"].acting
    print(
        json.dumps(
            {
                "loop_overhead": statistics.median(ratios),
                "loop_overhead_range": [min(ratios), max(ratios)],
                "policyflow_update_over_ppo": statistics.median(updates),
                "policyflow_update_over_ppo_range": [min(updates), max(updates)],
                "steps_per_second": acting.environments * acting.steps / (statistics.median(flow[0]) + statistics.median(flow[1])),
                **{f"{name}_s": statistics.median(values) for name, values in kept.items()},
            }
        )
    )


def one(recipe: Recipe, parts: Parts, bare: Parts, processes: Processes, turn: int) -> dict[str, float]:
    """Seconds of one iteration of the loop, and of its bare calls."""
    batches: list[Any] = []
    return {
        "sample": timed(lambda: batches.append(sample(recipe, parts, processes, turn)[0])),
        "act": timed(lambda: bare_acting(recipe, bare)),
        "update": timed(lambda: update(recipe, parts, processes, batches[0], None, step=turn)),
        "learn": timed(lambda: bare_learning(recipe, bare)),
    }


@torch.no_grad()
def bare_acting(recipe: Recipe, parts: Parts) -> None:
    """The actor's calls and the environment's, and the critic's once."""
    policy: Any = parts.policy
    env = recipe.env.options.build(recipe.acting.environments, 0, 0)  # type: ignore[union-attr]
    now = env.reset()
    draw = torch.zeros(len(now), policy.space.action)
    seen = []
    for _ in range(recipe.acting.steps):
        action = policy.endpoint(now, draw) if recipe.policy.name == "policyflow" else policy.model.actor(now)
        seen.append(now)
        now = env.step(action).observation
    policy.value(torch.stack([*seen, now], 1))


def bare_learning(recipe: Recipe, parts: Parts) -> None:
    """Forward and backward of every minibatch, with a step of the optimizer each; the old velocity is a forward more."""
    policy: Any = parts.policy
    train, total = recipe.train, recipe.acting.environments * recipe.acting.steps
    rows = total // train.minibatches
    observation, x = torch.randn(rows, policy.space.observation), torch.randn(rows, policy.space.action)
    for _ in range(train.epochs * train.minibatches):
        if recipe.policy.name == "policyflow":
            with torch.no_grad():
                old = velocity(policy.old, observation, x)
            made = velocity(policy.model.actor, observation, x) - old
        else:
            made = policy.model.actor(observation)
        (made.square().mean() + policy.value(observation).square().mean()).backward()
        parts.optimizer.step()
        parts.optimizer.zero_grad(set_to_none=True)


def velocity(net: Any, observation: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return net(x, net.time(torch.full((len(x),), 0.5)), net.observe(observation))


def timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
