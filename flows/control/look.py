"""Evaluation of a control policy in copies of its own: returns, coverage, and pictures of what it does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flows.control.environment import Mode
from studio.watch import Seen

SHOWN, LONGEST = 2000, 10**6  # steps of a path that are kept; more than any evaluation takes, so that seeds do not meet
MODES: tuple[Mode, ...] = ("stochastic", "noiseless", "deterministic")


@dataclass(frozen=True)
class Episodes:
    """Whole episodes of several copies, as many of each copy, so that short ones do not count more often."""

    result: Tensor  # [E] sum of rewards
    length: Tensor  # [E]
    last: Tensor  # [E, n] the state an episode ended in
    dead: Tensor  # [E] bool, by the task and not by a time limit
    told: dict[str, Tensor]  # [E] what the environment said at the end, e.g. success
    first: Tensor  # [E, d] the first action
    path: Tensor  # [L, copies, n] states of each copy's first episode; NaN after its end


@torch.no_grad()
def play(
    options: Any, policy: Any, normalizer: Any, episodes: int, seed: int, mode: Mode = "stochastic", start: Any = None
) -> Episodes:
    """`episodes` episodes or a few more, from `start` where the environment can begin there."""
    copies = min(episodes, getattr(options, "copies", episodes))
    env = options.build(copies, 0, seed, start) if start is not None else options.build(copies, 0, seed)
    each = math.ceil(episodes / copies)
    done, t = torch.zeros(copies, dtype=torch.long), 0
    result, length = torch.zeros(copies), torch.zeros(copies)
    found: list[dict[str, Tensor]] = []
    first, path = torch.zeros(0), []
    now = env.reset()
    try:
        while (done < each).any():
            path.append(torch.where((done == 0)[:, None], now, torch.nan) if t < SHOWN else now.new_full((0,), 0))
            draw = {name: value[0] for name, value in policy.draws(-1 - t - LONGEST * seed, 1, copies).items()}
            action = policy.decide(normalizer.observation(now), draw, mode)
            first = action.clone() if t == 0 else first
            step = env.step(action)
            result, length = result + step.reward, length + 1
            over = step.terminated | step.truncated
            if over.any():
                pick = over & (done < each)
                info = {name: value[pick].float() for name, value in step.info.items()}
                found.append(
                    {
                        "result": result[pick],
                        "length": length[pick],
                        "last": step.after[pick],
                        "dead": step.terminated[pick],
                        **info,
                    }
                )
                result, length, done = result * ~over, length * ~over, done + over
            now, t = step.observation, t + 1
    finally:
        env.close()
    joined = {name: torch.cat([each[name] for each in found]) for name in found[0]}
    fixed = {name: joined.pop(name) for name in ("result", "length", "last", "dead")}
    return Episodes(**fixed, told=joined, first=first, path=torch.stack([p for p in path if len(p)]))


def numbers(options: Any, seen: Episodes, mode: Mode = "stochastic") -> dict[str, float]:
    """Mean and spread of the return, mean length, means of what the environment told, and its own measures, e.g. coverage."""
    found = {
        "return": seen.result.mean().item(),
        "return_std": seen.result.std(correction=0).item(),
        "length": seen.length.mean().item(),
    }
    found |= {name: value.mean().item() for name, value in seen.told.items()}
    if hasattr(options, "coverage"):
        found |= options.coverage(seen.last, seen.dead)
        if mode != "deterministic":
            found["action_entropy"] = spread_entropy(seen.first)
    return found


def measure(arena: Any, policy: Any, episodes: int, seed: int) -> dict[str, float]:
    """The figures of every mode; those of the first, as trained, without a prefix."""
    found: dict[str, float] = {}
    for mode in MODES:
        seen = play(arena.options, policy, arena.normalizer, episodes, seed, mode, getattr(arena.options, "start", None))
        found |= {
            name if mode == "stochastic" else f"{mode}.{name}": value for name, value in numbers(arena.options, seen, mode).items()
        }
    return found


@torch.no_grad()
def look(arena: Any, policy: Any, step: int, episodes: int, seed: int) -> Seen:
    """One evaluation as training asks for it: `reward/eval.*` of the policy as trained, pictures where the world is flat."""
    options = arena.options
    seen = play(options, policy, arena.normalizer, episodes, seed + 1, start=getattr(options, "start", None))
    told = numbers(options, seen)
    metrics = {f"reward/eval.{name}": value for name, value in told.items()}
    scene = options.scene() if hasattr(options, "scene") else None
    if scene is None:
        return Seen(metrics, torch.zeros(0), [])
    from flows.control.film import short_film
    from flows.control.pictures import actions, paths, velocity

    pictures = {"paths": paths(scene, seen.path), "first actions": actions(scene, seen.first)}
    if hasattr(policy, "field"):
        pictures["velocity"] = velocity(scene, lambda x, tau: policy.field(arena.normalizer.observation(seen.path[0, :1]), x, tau))
    shown = {name: value for name, value in told.items() if name in ("return", "success", "covered", "evenness", "action_entropy")}
    records = [
        {"step": step, "prompt_id": name.replace(" ", "-"), "prompt": name, "sample_id": "s00", "base": step == 0}
        for name in pictures
    ]
    records[0] |= {"rewards": shown}  # of the paths that it shows
    return Seen(metrics, torch.stack(list(pictures.values())), records, films={"paths": short_film(scene, seen.path)})


def spread_entropy(x: Tensor) -> float:
    """Differential entropy of samples [n, d] in nats, from distances ε to the nearest other (Kozachenko and Leonenko).

    ψ(n) - ψ(1) + log(volume of the unit ball) + d·mean log ε
    """
    from scipy.spatial import KDTree
    from scipy.special import digamma, gammaln

    points = x.double().numpy()
    n, d = points.shape
    nearest = KDTree(points).query(points, k=2)[0][:, 1]
    ball = d / 2 * math.log(math.pi) - gammaln(d / 2 + 1)
    return float(digamma(n) - digamma(1) + ball + d * np.log(np.maximum(nearest, 1e-12)).mean())
