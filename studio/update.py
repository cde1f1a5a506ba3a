"""Credit, loss, optimizer steps and their metrics for one rollout."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from studio.core import assign_credit, metrics, policy_loss, total
from studio.core.masked import group_stats
from studio.core.stats import LARGEST, MEASURED, MOVED
from studio.dist import Processes
from studio.errors import DivergedError
from studio.parts import Parts
from studio.protocols import Monitored
from studio.recipe import Recipe
from studio.replay import Separable, apart, in_order, part, shuffled
from studio.rollout import Batch, sample
from studio.seeds import row_seed
from studio.shapes import expect
from studio.stepwise import placed, step_metrics, step_sums, watch_gradient
from studio.types import Rollout


def iterate(recipe: Recipe, parts: Parts, processes: Processes, step: int, model: Any) -> tuple[Batch, dict[str, float]]:
    """One iteration by likelihoods: sample and score, then update -> (the rows with their rewards, metrics)."""
    batch, timing = sample(recipe, parts, processes, step)
    batch = credited(parts, batch)
    return batch, update(recipe, parts, processes, batch, model, step) | timing


def credited(parts: Parts, batch: Batch) -> Batch:
    """The batch with the credit of this rank's rows."""
    return replace(batch, credit=assign_credit(parts.objective, batch.everyone).at(batch.mine))  # type: ignore[arg-type]


def update(recipe: Recipe, parts: Parts, processes: Processes, batch: Batch, model, step: int) -> dict[str, float]:
    """`epochs` passes over a rollout, one optimizer step per minibatch -> metrics of the last pass."""
    rollout, everyone = batch.rollout, batch.everyone
    credit = batch.credit or credited(parts, batch).credit
    assert credit is not None
    loose = isinstance(rollout.trace, Separable)
    if loose:
        rollout, credit = apart(rollout, credit)
    alive = loose and bool((credit.weight > 0).all()) and processes.world == 1  # an empty part of a process is dead
    # tokens are many, masks of a text in no order: a position means nothing by itself
    positions = not loose and not isinstance(rollout.samples, list)
    parts.rate.start(step)
    told: dict[str, float] = {}
    adapted: dict[str, float] = {}
    by_step: list[dict[str, Tensor]] = []
    norm, minibatches = 0.0, recipe.acting.minibatches(recipe.train.minibatches) if loose else recipe.train.minibatches
    for epoch in range(recipe.train.epochs):
        sums, by_step = [], []
        if loose:
            order = shuffled(
                len(rollout.mask), minibatches, row_seed(recipe.seed, f"order/{step}", epoch), processes.rank, processes.world
            )
            parts.policy.visit(step, epoch)  # type: ignore[attr-defined]
        else:
            order = in_order(rollout, recipe, parts.objective.span)
        for number, pieces in enumerate(order):
            done: list[dict[str, Tensor]] = []
            for index, piece in enumerate(pieces):
                (chunk, share), last = part(rollout, credit, piece), index == len(pieces) - 1
                with processes.synchronized(model, last), processes.autocast():
                    new = parts.policy.evaluate(chunk)
                    if positions:
                        watch_gradient(new)
                    loss, stats = policy_loss(parts.objective, new, chunk, share, alive=alive)
                # weights add up over the whole rollout: a minibatch of an m-th of it takes a step of full length
                processes.backward(loss * minibatches, last=last, model=model)
                done.append(stats)
                if positions:
                    by_step.append(placed(step_sums(parts.objective, new, chunk, share), piece[1], rollout.mask.shape[1]))
            whole = total(done)
            if step == epoch == number == 0:
                _check_first_replay(processes.largest(whole[LARGEST]).item(), recipe.train.ratio_tolerance)
            norm = optimize(recipe, parts, processes.sum(whole["loss/total"]).item())
            adapted = parts.objective.learn({k: processes.sum(v) for k, v in whole.items() if k.startswith(MEASURED)})
            sums += done
        told = {name: float(value) for name, value in metrics(_reduce(total(sums), processes)).items()}
        parts.rate.moved(told.get(MOVED))
    parts.behavior.step()
    steps = {name: processes.sum(value) for name, value in total(by_step).items()}
    if "gradient" in steps:  # of the loss as it was differentiated
        steps["gradient"] = steps["gradient"] / (processes.world * minibatches) ** 2
    told |= adapted | {"loss/grad_norm": norm, "loss/learning_rate": parts.rate.now}
    if isinstance(parts.policy, Monitored):
        told |= parts.policy.monitor(rollout, credit, step)
    return reward_metrics(everyone) | text_metrics(everyone) | told | (step_metrics(steps) if steps else {})


def optimize(recipe: Recipe, parts: Parts, loss: float) -> float:
    """One step of the optimizer and of the averaged weights -> norm of the gradient; DivergedError before a bad step."""
    norm = torch.nn.utils.clip_grad_norm_(list(parts.policy.trainable()), recipe.train.max_grad_norm).item()
    _check_finite(loss, norm)
    parts.optimizer.step()
    parts.optimizer.zero_grad(set_to_none=True)
    parts.average.step()
    return norm


def reward_metrics(everyone: Rollout) -> dict[str, float]:
    """Mean over present rows, mean spread within groups, the share of groups without any spread, and every part.

    Of a reward per decision [B, T] only the mean over decisions.
    """
    if everyone.reward is None:  # objectives of preference pairs
        return {}
    parts = {f"reward/{name}": part.nanmean().item() for name, part in everyone.parts.items() if not part.isnan().all()}
    if everyone.reward.ndim == 2:
        return {"reward/mean": everyone.reward[everyone.mask].mean().item(), **parts}
    reward = expect(everyone.reward, "B", name="reward_metrics: reward")
    present = torch.ones_like(reward, dtype=torch.bool) if everyone.present is None else everyone.present
    stats = group_stats(reward, everyone.group, present)
    spread = stats.std[present]
    return {
        "reward/mean": reward[present].mean().item(),
        "reward/group_std": spread.mean().item(),
        "reward/flat_groups": (spread == 0).float().mean().item(),
        "reward/missing": 1 - present.float().mean().item(),
        **parts,
    }


def text_metrics(everyone: Rollout) -> dict[str, float]:
    """Of written rows: mean length and share of those that the limit cut, and the mean entropy of their tokens in nats."""
    if everyone.old.token is None or everyone.old.entropy is None:
        return {}
    live, cut = everyone.mask, everyone.cut
    return {
        "sample/length": live.sum(1).float().mean().item(),
        "sample/entropy": (everyone.old.entropy * live).sum().item() / max(1, int(live.sum())),
    } | ({} if cut is None else {"sample/cut": cut.float().mean().item()})


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
