"""One iteration's rollout: sampled on every rank, scored in the background, with what credit needs of all ranks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from studio.dist import Processes
from studio.errors import RewardError
from studio.parts import Parts
from studio.prompts.repeat import Rows, rank_rows
from studio.recipe import Recipe
from studio.replay import cuts, positions
from studio.scoring import Scorer, join_scores, parts_of, reward_of
from studio.seeds import row_seed
from studio.types import Credit, Evaluation, Prompts, Rollout, Scores


@dataclass(frozen=True)
class Batch:
    """One iteration's rollout on this rank, and what credit needs to know of all ranks."""

    rollout: Rollout
    everyone: Rollout  # rewards, groups and masks of the global batch; no samples, no traces
    mine: slice  # this rank's rows of it
    credit: Credit | None = None  # of this rank's rows, once it is assigned


def sample(recipe: Recipe, parts: Parts, processes: Processes, step: int) -> tuple[Batch, dict[str, float]]:
    """This rank's rollout, scored while the next part is sampled; the reference's opinion when the objective needs it."""
    if parts.env is not None:
        return act(parts, processes, step)
    began = time.monotonic()
    settings = recipe.train
    rows, seeds = draw_rows(recipe, parts, processes, step)
    rollout = _sampled(parts, processes, rows, seeds, step, micro=len(seeds) // settings.gradient_accumulation_steps)
    if "ref" in parts.objective.needs:
        with torch.no_grad(), processes.autocast(), parts.policy.reference():
            steps = positions(rollout, settings.split_steps)
            said = [
                _join([parts.policy.evaluate(rollout.at(rows, step)) for step in steps], dim=1)
                for rows in cuts(rollout, settings.gradient_accumulation_steps)
            ]
            rollout = replace(rollout, ref=_join(said))
    sampled = time.monotonic()
    ranks = _scores_of_all(parts.rewards, processes)
    timing = {"time/sample": sampled - began, "time/reward_wait": time.monotonic() - sampled}
    return with_rewards(recipe, parts, processes, rollout, ranks, rows.start), timing


def _sampled(parts: Parts, processes: Processes, rows: Rows, seeds: list[int], step: int, micro: int) -> Rollout:
    """The policy's rollout; rewards begin on every part of it as it is done. A server that samples may fail: on all ranks then."""
    policy: Any = parts.policy
    whole = processes.whole(policy.model) if getattr(policy, "uneven", False) else nullcontext()
    with processes.autocast(), parts.behavior.applied(), whole, failing_together(processes):
        return policy.sample(
            rows.prompts, group=torch.tensor(rows.group), seeds=seeds, step=step, finished=parts.rewards.submit, micro=micro
        )


def act(parts: Parts, processes: Processes, step: int) -> tuple[Batch, dict[str, float]]:
    """A stretch of every environment of this rank, with the rewards that came of it."""
    began = time.monotonic()
    assert parts.env is not None
    with processes.autocast():
        rollout = parts.env.stretch(parts.policy, step)
    whole = {name: processes.gather(getattr(rollout, name)) for name in ("reward", "after", "ends")}
    everyone = replace(_everyone(rollout, processes), **whole, parts={k: processes.gather(v) for k, v in rollout.parts.items()})
    rows = len(rollout.mask)
    return Batch(rollout, everyone, slice(processes.rank * rows, (processes.rank + 1) * rows)), {
        "time/sample": time.monotonic() - began
    }


def draw_rows(recipe: Recipe, parts: Parts, processes: Processes, step: int) -> tuple[Rows, list[int]]:
    """This rank's rows of the iteration's batch, and the seed of each."""
    assert parts.prompts is not None
    prompts = parts.prompts.next(recipe.train.groups_per_step)
    rows = rank_rows(prompts, recipe.train.group_size, processes.rank, processes.world)
    return rows, [row_seed(recipe.seed, f"{step}/{group}", k) for group, k in zip(rows.group, rows.replica, strict=True)]


def with_rewards(
    recipe: Recipe, parts: Parts, processes: Processes, rollout: Rollout, ranks: list[dict[str, Scores]], start: int
) -> Batch:
    """The combined reward of the global batch from every rank's scores, and this rank's share of it."""
    how = recipe.combine if len(ranks[0]) > 1 else "sum"  # one reward needs no common scale
    device = rollout.mask.device
    whole = {name: join_scores([rank[name] for rank in ranks]) for name in ranks[0]}
    everyone = _everyone(rollout, processes)
    mine = slice(start, start + len(rollout.mask))
    if not whole:  # objectives of preference pairs
        return Batch(rollout, everyone, mine)
    whole = parts.rewards.compared(whole, everyone.group)
    reward, present = reward_of(whole, parts.rewards.weights, everyone, how, recipe.train.max_failures)
    everyone = replace(everyone, reward=reward.to(device), present=present.to(device), parts=parts_of(whole))
    scored = everyone.at(mine)
    rollout = replace(rollout, reward=scored.reward, present=scored.present, parts=scored.parts)
    return Batch(rollout, everyone, mine)


def _scores_of_all(rewards: Scorer, processes: Processes) -> list[dict[str, Scores]]:
    """Every rank's scores, or the failure of any rank's reward."""
    with failing_together(processes):
        scores = rewards.collect()
    return processes.gather_objects(scores)


@contextmanager
def failing_together(processes: Processes) -> Iterator[None]:
    """Raises on all ranks what a reward or a sampling server raised on one, so that they can save a checkpoint together."""
    failure = None
    try:
        yield
    except RewardError as error:
        failure = error
    for other in (failure, *processes.gather_objects(failure)):
        if other is not None:
            raise other


def _everyone(rollout: Rollout, processes: Processes) -> Rollout:
    """The global batch as far as credit needs it: texts, no images, no traces, and of what policies said the [B, T] fields."""
    small = ("dt", "jacobian", "logp", "entropy", "value", "post", "token", "tempered")
    old = {name: getattr(rollout.old, name) for name in small}
    ref = None if rollout.ref is None else {name: getattr(rollout.ref, name) for name in small}
    gather = {True: processes.gather, False: lambda x: x}[processes.world > 1]

    def light(said: dict[str, Tensor | None]) -> Evaluation:
        return Evaluation(**{name: None if value is None else gather(value) for name, value in said.items()})

    texts = rollout.samples if isinstance(rollout.samples, list) else None
    ranks = processes.gather_objects((rollout.prompts, texts))
    return Rollout(
        Prompts(*([item for rank, _ in ranks for item in getattr(rank, name)] for name in ("text", "key", "info"))),
        None if texts is None else [text for _, texts in ranks for text in texts],
        None,
        gather(rollout.mask),
        gather(rollout.group),
        light(old),
        ref=None if ref is None else light(ref),
        **{n: None if (value := getattr(rollout, n)) is None else gather(value) for n in ("cut", "given", "segment", "engine")},
    )


def _join(said: list[Evaluation], dim: int = 0) -> Evaluation:
    def join(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in said]
        return None if values[0] is None else torch.cat(values, dim)

    return Evaluation(**{f.name: join(f.name) for f in fields(Evaluation)})
