"""One iteration of a pathwise objective: pictures with gradients, scored, and back through the sampler."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from studio.core.pathwise import PathwiseObjective, pathwise_loss
from studio.dist import Processes
from studio.parts import Parts
from studio.recipe import Recipe
from studio.rollout import Batch, draw_rows, failing_together, with_rewards
from studio.scoring import join_scores, refuse_failures
from studio.types import Evaluation, Prompts, Rollout, Scores
from studio.update import optimize, reward_metrics


def improve(recipe: Recipe, parts: Parts, processes: Processes, step: int, model: Any) -> tuple[Batch, dict[str, float]]:
    """Render, score and take one optimizer step -> (the rows with their rewards, metrics)."""
    settings, objective, began = recipe.train, parts.objective, time.monotonic()
    assert isinstance(objective, PathwiseObjective)
    rows, seeds = draw_rows(recipe, parts, processes, step)
    cut = objective.truncation(recipe.policy.options.sampler.steps, random.Random(f"{recipe.seed}-{step}"))
    size, total = len(seeds) // settings.gradient_accumulation_steps, len(seeds) * processes.world
    scored: list[dict[str, Scores]] = []
    loss_sum = torch.zeros(())
    for at in range(0, len(seeds), size):
        prompts, own = rows.prompts.take(range(at, at + size)), seeds[at : at + size]
        with processes.autocast():
            takes = parts.policy.render(prompts.text, own, cut)  # type: ignore[attr-defined]
            scores = scores_with_gradient(parts, processes, prompts, takes, settings.max_failures)
        losses = [pathwise_loss(objective, *weighted(each, parts.rewards.weights), total)[0] for each in scores]
        loss = torch.stack(losses).mean()
        processes.accelerator.backward(loss)
        scored.append(scores[0])
        loss_sum = loss_sum + loss.detach().cpu()
    processes.add_gradients(parts.policy.trainable())
    norm = optimize(recipe, parts, processes.sum(loss_sum.to(processes.accelerator.device)).item())
    done = {name: join_scores([detached(part[name]) for part in scored]) for name in scored[0]}
    rollout = Rollout(
        rows.prompts, None, None, torch.ones(len(seeds), 1, dtype=torch.bool), torch.tensor(rows.group), Evaluation(), seeds=seeds
    )
    batch = with_rewards(recipe, parts, processes, rollout, processes.gather_objects(done), rows.start)
    values = reward_metrics(batch.everyone) | {"loss/total": loss_sum.item(), "loss/grad_norm": norm, "render/start": cut.start}
    return batch, values | {"time/step_work": time.monotonic() - began}


def scores_with_gradient(
    parts: Parts, processes: Processes, prompts: Prompts, takes: Sequence[Tensor], max_failures: float
) -> list[dict[str, Scores]]:
    """The scores of every take, or the failure of any rank's reward."""
    scores = []
    with failing_together(processes):
        for images in takes:
            scores.append(parts.rewards.score_with_gradient(prompts, images))
            refuse_failures(scores[-1], max_failures)
    return scores


def weighted(scores: Mapping[str, Scores], weights: Mapping[str, float]) -> tuple[Tensor, Tensor]:
    """Σ_k w_k·r_k [B] with its gradient, and the rows that have every reward [B]."""
    reward = sum(weights[name] * score.value for name, score in scores.items())
    first = next(iter(scores.values())).value
    present = torch.ones_like(first, dtype=torch.bool)
    for score in scores.values():
        if score.present is not None:
            present = present & score.present
    return reward, present  # type: ignore[return-value]


def detached(scores: Scores) -> Scores:
    """The same numbers without a graph, on the CPU."""
    present = None if scores.present is None else scores.present.cpu()
    return Scores(scores.value.detach().cpu(), present, {name: part.detach().cpu() for name, part in scores.parts.items()})
