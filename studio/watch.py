"""Proxy against gold: held-out evaluation of a policy, and the alarm when the trained reward rises at the price of the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from studio.prompts.select import repetition
from studio.protocols import Policy
from studio.scoring import Scorer, guard_stats, parts_of, text_stats
from studio.seeds import row_seed
from studio.settings import Watch
from studio.types import Prompts

if TYPE_CHECKING:
    from studio.parts import Parts
    from studio.recipe import Recipe


@dataclass(frozen=True)
class Evaluated:
    """Images or texts of fixed prompts and seeds with everything measured on them."""

    prompts: Prompts
    seeds: list[int]
    samples: Tensor | list[str]
    rewards: dict[str, Tensor]  # [N] trained rewards and their parts
    held_out: dict[str, Tensor]  # [N]
    guards: dict[str, Tensor]  # [N]

    def means(self) -> dict[str, float]:
        """Mean of every reward and part over the rows that have one."""
        return {name: _mean(part) for name, part in {**self.held_out, **self.rewards}.items()}

    def guard_means(self) -> dict[str, float]:
        return {name: _mean(part) for name, part in self.guards.items()}


@dataclass(frozen=True)
class Seen:
    """What an evaluation leaves in the run folder."""

    metrics: dict[str, float]
    samples: Tensor | list[str]  # what is kept: pictures [n, C, H, W] on the CPU, or texts
    records: list[dict[str, Any]]  # one for each of them
    alarms: list[str] = field(default_factory=list)
    films: Mapping[str, bytes] = field(default_factory=dict)  # GIF files by the prompt_id of the record that they belong to


def look(step: int, recipe: Recipe, parts: Parts) -> Seen:
    """Evaluate the policy as it stands: on held-out prompts, or in environments of its own."""
    if parts.env is not None:
        return parts.env.look(parts.policy, step, recipe.watch.episodes, recipe.seed)
    seen, count = evaluate(parts.policy, parts.test, parts.rewards, parts.held_out, recipe.seed), recipe.watch.samples
    return Seen(watch_metrics(seen), shown(seen, count), records(step, seen, count), parts.alarm.look(seen, list(recipe.rewards)))


def evaluate(policy: Policy, prompts: Prompts, rewards: Scorer, held_out: Scorer, seed: int) -> Evaluated:
    """Draw each prompt once with its own seed and measure; the same seed gives the same samples at every step.

    A prompt that the list repeats gets another seed each time: the same sample twice would count twice in every mean.
    """
    seeds = [row_seed(seed, key, again) for key, again in zip(prompts.key, repetition(prompts.key), strict=True)]
    samples = policy.draw(prompts, seeds)  # type: ignore[attr-defined]
    return Evaluated(
        prompts,
        seeds,
        samples,
        parts_of(rewards.score(prompts, samples)),
        parts_of(held_out.score(prompts, samples)) if held_out.rewards else {},
        text_stats(samples) if isinstance(samples, list) else guard_stats(samples.cpu()),
    )


def shown(seen: Evaluated, count: int) -> Tensor | list[str]:
    """The first samples, as they are written to disk."""
    return seen.samples[:count] if isinstance(seen.samples, list) else seen.samples[:count].cpu()


def records(step: int, evaluated: Evaluated, count: int) -> list[dict[str, Any]]:
    """Sample records of the run folder for the first `count` samples."""
    table = {**evaluated.rewards, **{f"held_out.{k}": v for k, v in evaluated.held_out.items()}}
    return [
        {
            "step": step,
            "prompt_id": f"p{row:03d}",
            "prompt": evaluated.prompts.text[row],
            "sample_id": "s00",
            "seed": evaluated.seeds[row],
            "rewards": {name: float(part[row]) for name, part in table.items()},
            "guards": {name: float(part[row]) for name, part in evaluated.guards.items()},
            "base": step == 0,
        }
        for row in range(min(count, len(evaluated.prompts)))
    ]


def watch_metrics(seen: Evaluated) -> dict[str, float]:
    """Held-out evaluation as metrics: `reward/eval.*` trained, `reward/held_out.*` never trained, `sample/*` guards."""
    return (
        {f"reward/eval.{name}": _mean(part) for name, part in seen.rewards.items()}
        | {f"reward/held_out.{name}": _mean(part) for name, part in seen.held_out.items()}
        | {f"sample/{name}": value for name, value in seen.guard_means().items()}
    )


@dataclass
class Alarm:
    """Remembers the base and counts how often in a row a guard left its range or gold fell while the proxy rose."""

    settings: Watch
    base: dict[str, dict[str, tuple[float, float, int]]] = field(default_factory=dict)  # kind -> name -> mean, std, rows
    strikes: dict[str, int] = field(default_factory=dict)

    def look(self, evaluated: Evaluated, trained: Sequence[str]) -> list[str]:
        """What is wrong at this evaluation, in words; empty for the base and while all is well."""
        now = {
            kind: {name: _moments(part) for name, part in parts.items()}
            for kind, parts in (
                ("rewards", evaluated.rewards),
                ("held_out", evaluated.held_out),
                ("guards", evaluated.guards),
            )
        }
        if not self.base:
            self.base = now
            return []
        rose = any(now["rewards"][name][0] > self.base["rewards"][name][0] for name in trained)
        found = {}
        for name, (mean, _, _) in now["held_out"].items():
            before, std, rows = self.base["held_out"][name]
            if rose and mean < before - self.settings.fall * std / max(rows, 1) ** 0.5:
                found[name] = f"held-out {name} fell from {before:.4f} to {mean:.4f} while the trained reward rose"
        for name, (mean, _, _) in now["guards"].items():
            before, std, _ = self.base["guards"][name]
            if abs(mean - before) > self.settings.sigmas * std:
                found[name] = f"guard {name} moved from {before:.4f} to {mean:.4f}, {abs(mean - before) / max(std, 1e-12):.1f} σ"
        self.strikes = {name: self.strikes.get(name, 0) + 1 for name in found}
        return [found[name] for name, count in self.strikes.items() if count >= self.settings.patience]

    def state_dict(self) -> dict[str, Any]:
        return {"base": self.base, "strikes": self.strikes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.base, self.strikes = state["base"], state["strikes"]


def _moments(part: Tensor) -> tuple[float, float, int]:
    kept = part[~torch.isnan(part)].double()
    return (kept.mean().item(), kept.std(correction=0).item(), len(kept)) if len(kept) else (float("nan"), 0.0, 0)


def _mean(part: Tensor) -> float:
    return _moments(part)[0]
