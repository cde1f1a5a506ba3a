"""Ratio fidelity: the estimated importance ratio against the exact one, after the updates of an iteration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flows.control.solver import shifted_logp
from studio.types import Credit, Rollout

if TYPE_CHECKING:
    from flows.control.policyflow import FlowPolicy

ROWS, CLIP = 2048, 0.2  # actions that are measured, and the ratio's distance from 1 that counts as clipped


def fidelity(policy: FlowPolicy, rollout: Rollout, credit: Credit, rows: int = ROWS) -> dict[str, float]:
    """`ratio/*` of recorded actions [R, 1]: the estimate that trains against the exact shift D (grid of the sampler).

    fidelity: correlation of the two log ratios · gain <D, δ>/<δ, δ> · shift_error ||δ - D||/||D|| · wrong: share on different
    sides of |ρ - 1| = 0.2 · gradient_cosine: of the gradients of Σ A·log ρ with respect to the actor.
    """
    part, share = rollout.at(slice(0, rows)), credit.at(slice(0, rows))
    record, xi = part.trace.record, part.trace.record["xi"]  # type: ignore[union-attr]
    assert part.old.logp is not None
    parameters = [p for p in policy.model.actor.parameters() if p.requires_grad]
    found = []
    for shift in (policy.seen(record).shift, policy.exact_shift(record, policy.steps)):
        log_ratio = shifted_logp(xi, shift, policy.std.detach()) - part.old.logp
        gradient = torch.autograd.grad((share.advantage * log_ratio).sum(), parameters, allow_unused=True)
        flat = torch.cat(
            [torch.zeros(p.numel()).to(p) if g is None else g.flatten() for g, p in zip(gradient, parameters, strict=True)]
        )
        found.append((shift.detach().double(), log_ratio.detach().double().flatten(), flat.double()))
    (near, guess, climb), (true, exact, right) = found
    sums = torch.stack([(true * near).sum(), near.square().sum(), (near - true).square().sum(), true.square().sum()])
    product, own, error, length = policy.together(sums).tolist()
    return {
        "ratio/fidelity": _correlation(guess, exact),
        "ratio/gain": product / own if own else 1.0,
        "ratio/shift_error": (error / length) ** 0.5 if length else 0.0,
        "ratio/wrong": (_outside(guess) != _outside(exact)).double().mean().item(),
        "ratio/gradient_cosine": torch.nn.functional.cosine_similarity(climb, right, dim=0).item(),
    }


def _outside(log_ratio: Tensor) -> Tensor:
    return log_ratio.expm1().abs() > CLIP


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    return ((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-300)).item()
