"""Statistics per decision position: what happens to the ratio at every denoising step (GRPO-Guard's diagnostics)."""

from __future__ import annotations

import torch
from torch import Tensor

from studio.core import Objective
from studio.core.surrogate import Clipping
from studio.types import Credit, Evaluation, Rollout


def watch_gradient(new: Evaluation) -> None:
    """Keep the gradient that reaches the mean of each step, when there is one."""
    if new.mean is not None and new.mean.requires_grad:
        new.mean.retain_grad()


@torch.no_grad()
def step_sums(objective: Objective, new: Evaluation, rollout: Rollout, credit: Credit) -> dict[str, Tensor]:
    """Sums over live rows per decision position [T]; they add up over parts and ranks."""
    live = (credit.weight > 0).double()
    log_ratio = objective.ratio(new, rollout).double()
    sums = {"count": live, "shift": live * log_ratio.expm1(), "square": live * log_ratio.expm1() ** 2}
    surrogate = objective.surrogate_of(new, rollout)
    if isinstance(surrogate, Clipping):
        clipped = surrogate.clipped(log_ratio.float(), credit.advantage)
        sums |= {"above": live * clipped.above, "below": live * clipped.below}
    if new.logp is not None and rollout.old.logp is not None:
        raw = (new.logp - rollout.old.logp).double()
        sums |= {"raw_shift": live * raw.expm1(), "raw_square": live * raw.expm1() ** 2, "raw_log": live * raw}
    if new.mean is not None and rollout.old.mean is not None and new.std is not None:
        moved = (new.mean - rollout.old.mean).double().flatten(2)
        sums["predicted"] = live * -(moved**2).mean(2) / (2 * new.std.double() ** 2)
        sums["moved"] = live * moved.abs().mean(2)
        if new.mean.retains_grad and new.mean.grad is not None and new.jacobian is not None:
            sums["gradient"] = (new.mean.grad.double().flatten(2) ** 2).sum(2) * new.jacobian.double() ** 2
    return {name: value.sum(0) for name, value in sums.items()}


def placed(sums: dict[str, Tensor], steps: slice, count: int) -> dict[str, Tensor]:
    """Sums of some positions among `count`, zero elsewhere: what parts with other positions add to."""
    if steps == slice(None):
        return sums
    wide = {name: value.new_zeros(count) for name, value in sums.items()}
    for name, value in sums.items():
        wide[name][steps] = value
    return wide


def step_metrics(sums: dict[str, Tensor]) -> dict[str, float]:
    """`ratio/<what>@<position>`: mean shift and std of the objective's ratio and of the raw one, clip shares, predicted shift
    -mean(Δμ)²/2s² of the raw log ratio, mean |Δμ|, and the norm of the loss gradient with respect to the velocity."""
    count = sums["count"].clamp(min=1)
    done = {name: value / count for name, value in sums.items() if name not in ("count", "gradient")}
    for square, shift, std in (("square", "shift", "std"), ("raw_square", "raw_shift", "raw_std")):
        if square in done:
            done[std] = (done.pop(square) - done[shift] ** 2).clamp(min=0).sqrt()
    if "gradient" in sums:
        done["grad_norm"] = sums["gradient"].sqrt()
    return {f"ratio/{name}@{t}": value for name, row in done.items() for t, value in enumerate(row.tolist())}
