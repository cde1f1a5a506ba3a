"""One update of the gates: gated trajectories against dense ones, back through the sampler with one recompute per step."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from flows.recompute import recomputed
from pruning.ecodiff import MaskObjective
from pruning.gates import binarization_gap
from pruning.policy import GatedPolicy, gates_of
from studio.dist import Processes
from studio.parts import Parts
from studio.pathwise import weighted
from studio.recipe import Recipe
from studio.rollout import Batch
from studio.types import Evaluation, Rollout
from studio.update import optimize


def learn(recipe: Recipe, parts: Parts, processes: Processes, step: int, model: Any) -> tuple[Batch, dict[str, float]]:
    """Gates drawn once, shared by forward and recompute; one backward per denoising step -> (the rows, metrics)."""
    began, policy = time.monotonic(), parts.policy
    objective: Any = parts.objective
    assert isinstance(policy, GatedPolicy) and isinstance(objective, MaskObjective)
    count, progress = recipe.train.groups_per_step * recipe.train.group_size, step / recipe.train.steps
    rows = policy.rows(step, count)
    mine = rows[processes.rank * len(rows) // processes.world : (processes.rank + 1) * len(rows) // processes.world]
    settled = progress >= 1 - objective.settle
    if policy.memory is not None and objective.removes(step, recipe.train.steps):
        policy.remove(objective.penalty.now(policy.budget.share, progress))
    now = objective.penalty.now(policy.budget.share, progress)
    gates, opens = gates_of(policy, objective.gate, step, settled=now if settled else None)
    leaves = {name: gate.detach().requires_grad_() for name, gate in gates.items()}
    size = len(mine) // recipe.train.gradient_accumulation_steps
    errors, lost = [], torch.zeros(())
    for at in range(0, len(mine), size):
        part = mine[at : at + size]
        with processes.autocast():
            # of the dense model: before the gates
            wanted: Any = policy.steps(part) if objective.per_step else policy.target(part)
            with policy.under(leaves):  # backward too, because it recomputes
                through = list(leaves.values())
                each, gap = (step_loss if objective.per_step else trajectory_loss)(parts, part, wanted, through)
                processes.accelerator.backward((each.sum() + objective.reward * gap) / count)
        errors.append(each.detach())
        lost = lost + gap.detach().cpu()
    processes.add_gradients(leaves.values())  # type: ignore[arg-type]
    share = policy.budget.expected(opens)
    kinds = {group.name: group.kind for group in policy.groups}
    gradients: Any = {name: leaf.grad for name, leaf in leaves.items()}
    if settled:  # the mask fills the budget exactly; what remains to be learned is which units do
        penalty, told, gradients = torch.zeros(()), {}, policy.budget.along(gradients)
        torch.autograd.backward(list(gates.values()), list(gradients.values()))
    else:
        penalty, told = objective.penalty(policy.logits(), kinds, share, policy.budget.share, progress)
        torch.autograd.backward([*gates.values(), penalty], [*gradients.values(), None])
    error = processes.gather(torch.cat(errors))
    norm = optimize(recipe, parts, error.mean().item() + float(penalty.detach()))
    if not settled:
        objective.penalty.after(float(share.detach()), policy.budget.share, progress)
    hard, soft = policy.hard(), {name: objective.gate.median(value.detach()) for name, value in policy.logits().items()}
    values = told | {
        "prune/error": error.mean().item(),
        "prune/expected": float(share.detach()),
        "prune/binarization_gap": binarization_gap(torch.cat(list(soft.values())), torch.cat(list(hard.values()))).item(),
        "loss/total": error.mean().item() + float(penalty.detach()),
        "loss/grad_norm": norm,
        "time/step_work": time.monotonic() - began,
    }
    if objective.reward:
        values["prune/reward_lost"] = processes.sum(lost.to(error.device)).item() / count
    return _batch(policy, rows, error, mine, processes), values


def trajectory_loss(parts: Parts, rows: list[int], target: Tensor, through: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Latent error of these pairs [N], and the sum of the reward they lost against the dense model's pictures.

    through: the gates, which the velocity reads.
    """
    policy = parts.policy
    objective: Any = parts.objective
    assert isinstance(policy, GatedPolicy) and isinstance(objective, MaskObjective)
    own = policy.pairs.take(rows)
    made = policy.dense.latents(own.prompts.text, own.seeds, remember=False, through=through)
    each = objective.error(made, target)
    if not objective.reward:
        return each, torch.zeros(())
    decode, weights = policy.backbone.decode, parts.rewards.weights
    reward, present = weighted(parts.rewards.score_with_gradient(own.prompts, decode(made)), weights)
    with torch.no_grad():
        best, _ = weighted(parts.rewards.score_with_gradient(own.prompts, decode(target)), weights)
    return each, torch.where(present, (best - reward).clamp(min=0), 0.0).sum()


def step_loss(
    parts: Parts, rows: list[int], wanted: list[tuple[Tensor, Tensor, Tensor]], through: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """(1/T)·Σ_t mean ||v_gated(z_t) - v(z_t)||²/mean v(z_t)² on dense latents z_t: the per-step variant. [N]"""
    policy = parts.policy
    assert isinstance(policy, GatedPolicy)
    velocity = policy.dense.velocity(policy.pairs.take(rows).prompts.text)
    total = torch.zeros(len(rows), device=policy.device)
    for x, sigma, v in wanted:
        made = recomputed(velocity, x, sigma, through).float()
        total = total + ((made - v) ** 2).flatten(1).mean(1) / (v**2).flatten(1).mean(1) / len(wanted)
    return total, torch.zeros(())


def _batch(policy: GatedPolicy, rows: list[int], error: Tensor, mine: list[int], processes: Processes) -> Batch:
    """The rows as a rollout whose reward is the negative error."""
    prompts = policy.pairs.take(rows).prompts
    rollout = Rollout(
        prompts,
        None,
        None,
        torch.ones(len(rows), 1, dtype=torch.bool),
        torch.arange(len(rows)),
        Evaluation(),
        reward=-error.cpu(),
        present=torch.ones(len(rows), dtype=torch.bool),
    )
    start = processes.rank * len(rows) // processes.world
    own = slice(start, start + len(mine))
    return Batch(rollout.at(own), rollout, own)
