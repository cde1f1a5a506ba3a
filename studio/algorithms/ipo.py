"""Preferences with a target for the margin, so that certain preferences do not push without end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from studio.core import Objective, active, plain_ratio
from studio.core.preference import ChosenLikelihood, PairLoss, by_pair, no_advantage


@dataclass(frozen=True)
class IPO:
    """IPO (arXiv:2310.12036).  (D - 1/(2τ))², D as in DPO."""

    tau: Annotated[float, Field(gt=0)] = 0.1  # τ; the margin to reach is 1/(2τ)
    per_decision: bool = False  # divide each side by its length first, as TRL does; the paper's D is of whole rows
    nll: Annotated[float, Field(ge=0)] = 0.0  # λ, strength of the chosen row's negative log-likelihood

    scored: ClassVar[bool] = False

    def objective(self) -> Objective:
        terms = active((1.0, PairLoss("ipo", self.tau, self.per_decision)), (self.nll, ChosenLikelihood()))
        return Objective(no_advantage, surrogate=plain_ratio, weighting=by_pair, regularizers=terms)
