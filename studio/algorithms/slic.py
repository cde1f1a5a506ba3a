"""Preferences with a hinge: pairs that are told apart far enough no longer train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from studio.core import Objective, active, plain_ratio
from studio.core.preference import ChosenLikelihood, PairLoss, by_pair, no_advantage


@dataclass(frozen=True)
class SLiC:
    """Hinge loss max(0, 1 - β·D), D as in DPO, which contains the reference: RSO (arXiv:2309.06657), TRL's `hinge`.

    SLiC-HF (arXiv:2305.10425) has the hinge without a reference, and the likelihood of a target beside it: see nll.
    """

    beta: Annotated[float, Field(gt=0)] = 0.1  # β; the margin to reach is 1/β
    nll: Annotated[float, Field(ge=0)] = 0.0  # λ, strength of the chosen row's negative log-likelihood

    scored: ClassVar[bool] = False

    def objective(self) -> Objective:
        terms = active((1.0, PairLoss("hinge", self.beta)), (self.nll, ChosenLikelihood()))
        return Objective(no_advantage, surrogate=plain_ratio, weighting=by_pair, regularizers=terms)
