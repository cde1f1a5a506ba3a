"""A bound on the variance of the ratio in place of the clip, with a multiplier that learns how much it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from studio.core import GroupRelative, Objective, by_decision, needs, plain_ratio, ratio_variance
from studio.core.regularizer import LIMIT
from studio.protocols import Regularizer, Surrogate
from studio.shapes import expect
from studio.types import Evaluation, Rollout

REACH = {"simple": 0.2, "drpo": 12.5}  # ε as published


@dataclass
class VarianceBound:
    """The constraint E[(r - 1)²] <= limit by a multiplier.  λ·((r - 1)² - limit) -> [B, T].

    After every optimizer step  λ <- clip(λ + rate·(V - limit), 0, largest),  V the weighted mean of (r - 1)² on its batch.
    """

    strength: float  # λ now
    limit: float  # δ
    rate: float  # η
    largest: float
    variance: float = 0.0  # V of the last step

    @property
    def __name__(self) -> str:
        return "variance_bound"

    def __call__(self, new: Evaluation, rollout: Rollout, log_ratio: Tensor) -> Tensor:
        return self.strength * (ratio_variance(new, rollout, log_ratio) - self.limit)

    def measure(self, log_ratio: Tensor, advantage: Tensor, weight: Tensor) -> Tensor:
        return torch.stack([(weight * log_ratio.expm1().square()).sum(), weight.sum()])

    def learn(self, measured: Tensor) -> None:
        square, weight = measured.tolist()
        if weight > 0:  # a step without live decisions says nothing
            self.variance = square / weight
            self.strength = min(max(self.strength + self.rate * (self.variance - self.limit), 0.0), self.largest)

    def told(self) -> dict[str, float]:
        return {"ratio/variance": self.variance, "ratio/multiplier": self.strength}

    def update(self, rollout: Rollout) -> None:
        """Nothing: it learns from optimizer steps."""

    def state_dict(self) -> dict[str, Any]:
        return {"strength": self.strength, "variance": self.variance}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.strength, self.variance = state["strength"], state["variance"]


@dataclass(frozen=True)
class Tether:
    """The ratio with a fixed pull back to one.  r·A - p·|A|·(r - 1)²/(2·reach) -> [B, T].

    Its gradient is 0 at r = 1 + sign(A)·reach/p.
    """

    reach: float  # ε
    share: Tensor | None = None  # p [B, T]; None = 1

    def __call__(self, log_ratio: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
        pull = advantage.abs() * log_ratio.expm1().square() / (2 * self.reach)
        return plain_ratio(log_ratio, advantage, mask) - (pull if self.share is None else self.share * pull)


@needs("logp")
@dataclass(frozen=True)
class LikelihoodTether:
    """Tether with p = π_old of the decision, so that rare decisions may move further.  DRPO (arXiv:2606.09821).

    Assumes discrete decisions: a density may exceed one.
    """

    reach: float  # ε

    def seen(self, new: Evaluation, rollout: Rollout) -> Tether:
        logp = expect(rollout.old.logp, "B T", name="LikelihoodTether: old.logp", B=len(rollout.mask))
        return Tether(self.reach, logp.clamp(max=LIMIT).exp())

    def __call__(self, log_ratio: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
        raise TypeError("LikelihoodTether looks at likelihoods: call seen(new, rollout) first, as policy_loss does.")


@dataclass(frozen=True)
class R2VPO:
    """R2VPO (arXiv:2601.03320, 2605.26784): maximize E[r·A] such that E[(r - 1)²] <= limit, by a primal-dual method.

    dual: loss = -r·A + λ·((r - 1)² - limit), with λ raised while the bound is broken. Beyond r = 1 + A/(2λ) the ratio is
    drawn back, where a clip lets go. A *reconstruction* from the abstracts: level (decisions) and constants are choices.
    Relatives with a fixed pull: simple is λ = |A|/(2·reach); drpo (arXiv:2606.09821) is that times π_old.
    """

    kind: Literal["dual", "simple", "drpo"] = "dual"
    strength: Annotated[float, Field(ge=0)] = 2.5  # dual: λ at the start; 2.5 turns at r = 1.2 for A = 1, a clip's 0.2
    limit: Annotated[float, Field(ge=0)] = 0.01  # dual: δ, largest mean of (r - 1)²; not found in the paper
    rate: Annotated[float, Field(ge=0)] = 0.1  # dual: η, step of λ; 0 keeps it; not found in the paper
    largest: Annotated[float, Field(ge=0)] = 100.0  # dual: λ at most
    reach: Annotated[float, Field(gt=0)] | None = None  # simple, drpo: ε; None = 0.2 and 12.5, from their release
    eps: float = 1e-4  # added to the group's standard deviation

    def objective(self) -> Objective:
        surrogate: Surrogate = plain_ratio
        terms: tuple[tuple[float, Regularizer], ...] = ()
        if self.kind == "dual":
            terms = ((1.0, VarianceBound(self.strength, self.limit, self.rate, self.largest)),)
        else:
            reach = REACH[self.kind] if self.reach is None else self.reach
            surrogate = Tether(reach) if self.kind == "simple" else LikelihoodTether(reach)
        return Objective(GroupRelative(ddof=1, eps=self.eps), surrogate=surrogate, weighting=by_decision, regularizers=terms)
