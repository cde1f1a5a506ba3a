"""Objectives of pairs: two rows of a group, of which the first was preferred (chosen) to the second (rejected)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from studio.core.declare import needs, span
from studio.errors import ConfigError, ShapeError
from studio.shapes import expect
from studio.types import Evaluation, Rollout

Form = Literal["sigmoid", "ipo", "hinge"]


class Pairs(NamedTuple):
    """Which rows were compared with which."""

    partner: Tensor  # [B] int64, the row it was compared with; itself where there is none
    chosen: Tensor  # [B] bool, preferred to its partner
    paired: Tensor  # [B] bool


def pairs(rollout: Rollout) -> Pairs:
    """The given rows of a group two by two, in their order: chosen, rejected, chosen, ...  -> [B] each.

    `rollout.given` None counts every row as given. Sampled rows of the group are left alone.
    """
    rows = torch.arange(len(rollout.mask), device=rollout.mask.device)
    given = torch.ones_like(rows, dtype=torch.bool) if rollout.given is None else rollout.given
    found = rows[given]
    found = found[rollout.group.to(rows.device)[found].argsort(stable=True)]
    count = torch.unique_consecutive(rollout.group.to(rows.device)[found], return_counts=True)[1]
    if (count % 2).any():
        odd = int(count[count % 2 == 1][0])
        raise ShapeError(
            f"pairs: expected the given rows of a group two by two, chosen before rejected, got a group of {odd}. Give both rows "
            "of a pair the same group, and do not cut between them."
        )
    first, second = found[0::2], found[1::2]
    partner, chosen = rows.clone(), torch.zeros_like(given)
    partner[first], partner[second], chosen[first] = second, first, True
    return Pairs(partner, chosen, given)


def by_pair(rollout: Rollout) -> Tensor:
    """Every pair counts the same, each of its two rows half, and a row's decisions share it.  -> [B, T], sum 1.

    w = 1 / (2·pairs·length_b).  A pair of which one row is dead does not count; sampled rows do not count.
    """
    partner, _, paired = pairs(rollout)
    length = rollout.mask.sum(dim=1)
    both = paired & (length > 0) & (length[partner] > 0)
    return rollout.mask * (both / (both.sum() * length).clamp(min=1).float())[:, None]


@needs("logp", "ref", "given")
@span("group")
@dataclass(frozen=True)
class PairLoss:
    """How far the policy is from preferring the chosen row as much as it should; the same number for both rows of a pair.

    D = Σ_t(log π_new - log π_ref) of the chosen row - the same of the rejected row  -> [B, T], 0 at sampled rows
    sigmoid: -log σ(β·D), DPO (arXiv:2305.18290) · hinge: max(0, 1 - β·D), RSO (arXiv:2309.06657) ·
    ipo: (D - 1/(2τ))², IPO (arXiv:2310.12036).  Under `by_pair`, and `by_sample` where all rows are in pairs, the loss is the
    mean over pairs.
    """

    form: Form = "sigmoid"
    strength: float = 0.1  # β; τ of ipo
    per_decision: bool = False  # divide each side by its length first, as TRL does for ipo

    def __post_init__(self) -> None:
        if self.strength <= 0:
            raise ConfigError(f"PairLoss: expected a strength > 0, got {self.strength:g}. Use 0.1.")

    def __call__(self, new: Evaluation, rollout: Rollout, log_ratio: Tensor) -> Tensor:
        found = pairs(rollout)
        margin = row_margin(new, rollout, found, per_decision=self.per_decision)
        if self.form == "sigmoid":
            loss = -logsigmoid(self.strength * margin)
        elif self.form == "hinge":
            loss = (1 - self.strength * margin).clamp(min=0)
        else:
            loss = (margin - 1 / (2 * self.strength)).square()
        return torch.where(found.paired, loss, 0.0)[:, None].expand(rollout.mask.shape)


@needs("logp", "given")
@span("group")
@dataclass(frozen=True)
class ChosenLikelihood:
    """Negative log-likelihood of the chosen row.  2·(-Σ_t log π_new), or its mean over t, at chosen rows -> [B, T].

    The λ·NLL(y_w) of arXiv:2410.11677.  Twice, as under `by_pair` a chosen row has half the weight of its pair.
    """

    per_decision: bool = False  # mean instead of sum over the row, as TRL's `sft` loss

    def __call__(self, new: Evaluation, rollout: Rollout, log_ratio: Tensor) -> Tensor:
        rows, steps = rollout.mask.shape
        logp = expect(new.logp, "B T", name="ChosenLikelihood: new.logp", B=rows, T=steps).float()
        loss = -_over_row(logp, rollout.mask, self.per_decision)
        return torch.where(pairs(rollout).chosen, 2 * loss, 0.0)[:, None].expand(rows, steps)


def row_margin(new: Evaluation, rollout: Rollout, found: Pairs, *, per_decision: bool = False) -> Tensor:
    """D of the pair that a row belongs to, 0 for rows without a partner.  -> [B]"""
    rows, steps = rollout.mask.shape
    logp = expect(new.logp, "B T", name="row_margin: new.logp", B=rows, T=steps).float()
    ref = None if rollout.ref is None else rollout.ref.logp
    ref = expect(ref, "B T", name="row_margin: ref.logp", hint="Evaluate the reference first.", B=rows, T=steps).float()
    own = _over_row(logp - ref, rollout.mask, per_decision)
    return torch.where(found.chosen, 1.0, -1.0) * (own - own[found.partner])


def no_advantage(rollout: Rollout) -> Tensor:
    """For objectives without rewards: zeros [B, T]."""
    return torch.zeros(rollout.mask.shape, device=rollout.mask.device)


def _over_row(x: Tensor, mask: Tensor, mean: bool) -> Tensor:
    """Sum, or mean, over the live decisions of each row -> [B]."""
    whole = x.masked_fill(~mask, 0.0).sum(dim=1)
    return whole / mask.sum(dim=1).clamp(min=1) if mean else whole
