"""Preferences without a reward model: the log ratio to the reference is the reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from studio.core import Objective, active, plain_ratio
from studio.core.preference import ChosenLikelihood, PairLoss, by_pair, no_advantage


@dataclass(frozen=True)
class DPO:
    """DPO (arXiv:2305.18290).  -log σ(β·D), D the chosen row's log ratio to the reference minus the rejected one's.

    More likelihood of chosen rows is not better throughout (arXiv:2410.11677); see studio.core.overoptimization.
    """

    beta: Annotated[float, Field(gt=0)] = 0.1  # β, strength of the KL that is implied
    nll: Annotated[float, Field(ge=0)] = 0.0  # λ, strength of the chosen row's negative log-likelihood

    scored: ClassVar[bool] = False

    def objective(self) -> Objective:
        terms = active((1.0, PairLoss("sigmoid", self.beta)), (self.nll, ChosenLikelihood()))
        return Objective(no_advantage, surrogate=plain_ratio, weighting=by_pair, regularizers=terms)
