"""How far the policy moved: log ratios [B, T] of new over old. They are 0 at new = old; `policy_loss` clamps them."""

from __future__ import annotations

import torch
from torch import Tensor

from studio.core.declare import needs, span
from studio.shapes import expect
from studio.types import Evaluation, Rollout


@needs("logp")
def decision_ratio(new: Evaluation, rollout: Rollout) -> Tensor:
    """Log ratio of every decision.  ℓ = log π_new - log π_old -> [B, T].  PPO (arXiv:1707.06347)."""
    return _pair(new.logp, rollout.old.logp, "logp", rollout)


@needs("logp")
@span("row")
def sample_ratio(new: Evaluation, rollout: Rollout) -> Tensor:
    """One ratio per row: the mean log ratio of its live decisions, shared by all of them.

    ℓ_t = sg(mean_t ℓ) + ℓ_t - sg(ℓ_t) -> [B, T]
    GSPO (arXiv:2507.18071).  Value of the mean, gradient of the decision: under `by_sample` the sum over a row is the
    gradient of the mean, and advantages may differ within a row (GSPO-token).
    """
    each = decision_ratio(new, rollout)
    count = rollout.mask.sum(dim=1, keepdim=True).clamp(min=1)
    mean = each.masked_fill(~rollout.mask, 0.0).sum(dim=1, keepdim=True) / count
    return mean.detach() + each - each.detach()


@needs("logp")
@span("row")
def total_ratio(new: Evaluation, rollout: Rollout) -> Tensor:
    """The row as one action: the sum of its log ratios.  ℓ = Σ_t ℓ_t for every decision -> [B, T].

    RLOO (arXiv:2402.14740).  Under `by_sample` each row then counts once, with the gradient of its whole likelihood.
    """
    each = decision_ratio(new, rollout).masked_fill(~rollout.mask, 0.0)
    return each.sum(dim=1, keepdim=True).expand_as(each)


@needs("fit")
def fit_ratio(new: Evaluation, rollout: Rollout) -> Tensor:
    """Log ratio from matching errors, where a likelihood is out of reach.  ℓ = fit_old - fit_new -> [B, T].

    FPO (arXiv:2507.21053).  Assumes both errors were taken at the same recorded draws.
    """
    return _pair(rollout.old.fit, new.fit, "fit", rollout)


def no_ratio(new: Evaluation, rollout: Rollout) -> Tensor:
    """For objectives without a ratio: zeros [B, T]."""
    return torch.zeros(rollout.mask.shape, device=rollout.mask.device)


def _pair(a: Tensor | None, b: Tensor | None, field: str, rollout: Rollout) -> Tensor:
    rows, steps = rollout.mask.shape
    hint = "The policy must provide it, new and old."
    first = expect(a, "B T", name=f"ratio: {field}", hint=hint, B=rows, T=steps)
    second = expect(b, "B T", name=f"ratio: {field}", hint=hint, B=rows, T=steps)
    return first.float() - second.float()
