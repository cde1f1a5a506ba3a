"""Credit, loss, optimizer steps and their metrics for one rollout."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from studio.core import assign_credit, metrics, policy_loss, total
from studio.core.masked import group_stats
from studio.core.stats import LARGEST
from studio.dist import Processes
from studio.errors import DivergedError
from studio.parts import Parts
from studio.recipe import Recipe
from studio.rollout import Batch, cuts, positions, sample
from studio.shapes import expect
from studio.stepwise import placed, step_metrics, step_sums, watch_gradient
from studio.types import Rollout


def iterate(recipe: Recipe, parts: Parts, processes: Processes, step: int, model: Any) -> tuple[Batch, dict[str, float]]:
    """One iteration by likelihoods: sample and score, then update -> (the rows with their rewards, metrics)."""
    batch, timing = sample(recipe, parts, processes, step)
    return batch, update(recipe, parts, processes, batch, model, first=step == 0) | timing


def update(recipe: Recipe, parts: Parts, processes: Processes, batch: Batch, model, *, first: bool) -> dict[str, float]:
    """`epochs` passes over a rollout, one optimizer step per minibatch -> metrics of the last pass."""
    rollout, everyone, mine = batch.rollout, batch.everyone, batch.mine
    credit = assign_credit(parts.objective, everyone).at(mine)  # type: ignore[arg-type]
    sums: list[dict[str, Tensor]] = []
    by_step: list[dict[str, Tensor]] = []
    norm, minibatches = 0.0, recipe.train.minibatches
    for epoch in range(recipe.train.epochs):
        sums, by_step = [], []
        for number, pieces in enumerate(minibatches_of(rollout, recipe, parts.objective.span)):
            done: list[dict[str, Tensor]] = []
            for index, (rows, steps) in enumerate(pieces):
                chunk, share, last = rollout.at(rows, steps), credit.at(rows, steps), index == len(pieces) - 1
                with processes.synchronized(model, last), processes.autocast():
                    new = parts.policy.evaluate(chunk)
                    watch_gradient(new)
                    loss, stats = policy_loss(parts.objective, new, chunk, share)
                # weights add up over the whole rollout: a minibatch of an m-th of it takes a step of full length
                processes.backward(loss * minibatches, last=last, model=model)
                done.append(stats)
                by_step.append(placed(step_sums(parts.objective, new, chunk, share), steps, rollout.mask.shape[1]))
            reduced = _reduce(total(done), processes)
            if first and epoch == number == 0:
                _check_first_replay(reduced[LARGEST].item(), recipe.train.ratio_tolerance)
            norm = optimize(recipe, parts, reduced["loss/total"].item())
            sums += done
    parts.behavior.step()
    steps = {name: processes.sum(value) for name, value in total(by_step).items()}
    if "gradient" in steps:  # of the loss as it was differentiated
        steps["gradient"] = steps["gradient"] / (processes.world * minibatches) ** 2
    values = {name: float(value) for name, value in metrics(_reduce(total(sums), processes)).items()}
    return reward_metrics(everyone) | values | {"loss/grad_norm": norm} | step_metrics(steps)


def minibatches_of(rollout: Rollout, recipe: Recipe, span: str) -> list[list[tuple[slice, slice]]]:
    """The rows of each optimizer step, in the parts that are replayed one after the other; a group stays together where it can."""
    train = recipe.train
    pieces = max(1, train.gradient_accumulation_steps // train.minibatches) if span != "batch" else 1
    found = []
    for whole in cuts(rollout, train.minibatches):
        inner = cuts(rollout.at(whole), pieces)
        rows = [slice(whole.start + part.start, min(whole.start + part.stop, whole.stop)) for part in inner]
        found.append([(part, steps) for part in rows for steps in positions(rollout, train.split_steps)])
    return found


def optimize(recipe: Recipe, parts: Parts, loss: float) -> float:
    """One step of the optimizer and of the averaged weights -> norm of the gradient; DivergedError before a bad step."""
    norm = torch.nn.utils.clip_grad_norm_(list(parts.policy.trainable()), recipe.train.max_grad_norm).item()
    _check_finite(loss, norm)
    parts.optimizer.step()
    parts.optimizer.zero_grad(set_to_none=True)
    parts.average.step()
    return norm


def reward_metrics(everyone: Rollout) -> dict[str, float]:
    """Mean over present rows, mean spread within groups, the share of groups without any spread, and every part."""
    reward = expect(everyone.reward, "B", name="reward_metrics: reward")
    present = torch.ones_like(reward, dtype=torch.bool) if everyone.present is None else everyone.present
    stats = group_stats(reward, everyone.group, present)
    spread = stats.std[present]
    return {
        "reward/mean": reward[present].mean().item(),
        "reward/group_std": spread.mean().item(),
        "reward/flat_groups": (spread == 0).float().mean().item(),
        "reward/missing": 1 - present.float().mean().item(),
        **{f"reward/{name}": part.nanmean().item() for name, part in everyone.parts.items()},
    }


def _reduce(sums: dict[str, Tensor], processes: Processes) -> dict[str, Tensor]:
    return {name: processes.largest(value) if name == LARGEST else processes.sum(value) for name, value in sums.items()}


def _check_first_replay(largest: float, tolerance: float) -> None:
    """Old likelihoods were recorded while sampling; before any update the replay must reproduce them."""
    if not largest <= tolerance:
        raise DivergedError(
            f"first replay: expected |log ratio| at most train.ratio_tolerance = {tolerance:g}, got {largest:g}. Rollout and "
            "replay differ: check dtype, guidance, grid and batch sizes, or raise the tolerance (bf16: 1e-2)."
        )


def _check_finite(loss: float, norm: float) -> None:
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise DivergedError(
            f"update: expected a finite loss and gradient, got loss {loss:g} and gradient norm {norm:g}. The weights were not "
            "changed. Resume from the last checkpoint with a lower train.learning_rate, or in float32."
        )
