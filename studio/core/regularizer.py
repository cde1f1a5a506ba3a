"""What else is penalized: (new, rollout, log_ratio) -> [B, T], to be minimized; an objective gives each a coefficient.

KL estimators are of KL(new || ref) from decisions of the old policy, with x = log π_new - log π_ref.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from studio.core.declare import Span, name_of, needs, needs_of, span_of
from studio.protocols import Regularizer
from studio.shapes import expect
from studio.types import Evaluation, Rollout

LIMIT = 20.0  # largest |log ratio| that is exponentiated, here and in policy_loss: e^20 is still far from overflow


def active(*terms: tuple[float, Regularizer]) -> tuple[tuple[float, Regularizer], ...]:
    """The terms that count: a coefficient of 0 takes the term, and what it needs, out of the objective."""
    return tuple(term for term in terms if term[0] != 0)


@dataclass
class Fading:
    """A term that counts less with every iteration.  max(0, 1 - iteration/steps)·term -> [B, T].

    Its memory is the number of iterations that are done, so that a resumed run fades where it stopped.
    """

    term: Regularizer
    steps: int  # iterations until it is gone
    done: int = 0  # iterations that are done

    @property
    def __name__(self) -> str:
        return name_of(self.term)

    @property
    def needs(self) -> frozenset[str]:
        return needs_of(self.term)

    @property
    def span(self) -> Span:
        return span_of(self.term)

    def __call__(self, new: Evaluation, rollout: Rollout, log_ratio: Tensor) -> Tensor:
        return max(0.0, 1 - self.done / self.steps) * self.term(new, rollout, log_ratio)

    def update(self, rollout: Rollout) -> None:
        self.done += 1

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done = state["done"]


@needs("logp", "ref")
def kl_plain(new: Evaluation, rollout: Rollout, log_ratio: Tensor) -> Tensor:
    """k1 = x -> [B, T].  Unbiased in value, but its gradient has expectation 0: use it inside rewards, or to watch."""
    return _from_ref(new, rollout)


@needs("logp", "ref")
def kl_squared(new: Evaluation, rollout: Rollout, log_ratio: Tensor) -> Tensor:
    """k2 = x²/2 -> [B, T].  Biased in value; its expected gradient is the gradient of the KL."""
    return _from_ref(new, rollout).square() / 2


@needs("logp", "ref")
def kl_low_variance(new: Evaluation, rollout: Rollout, log_ratio: Tensor) -> Tensor:
    """k3 = exp(-x) - 1 + x >= 0 -> [B, T].  Unbiased, low variance; the KL term of GRPO (arXiv:2402.03300)."""
    x = _from_ref(new, rollout).clamp(-LIMIT, LIMIT)
    return (-x).expm1() + x


@needs("entropy")
def entropy(new: Evaluation, rollout: Rollout, log_ratio: Tensor) -> Tensor:
    """Entropy of the decision's distribution -> [B, T].  A bonus is a negative coefficient."""
    return expect(new.entropy, "B T", name="entropy: new.entropy", B=len(rollout.mask))


def ratio_variance(new: Evaluation, rollout: Rollout, log_ratio: Tensor) -> Tensor:
    """Second central moment of the ratio.  (r - 1)², since E_old[r] = 1 -> [B, T].  R2VPO (arXiv:2601.03320)."""
    return log_ratio.expm1().square()


def _from_ref(new: Evaluation, rollout: Rollout) -> Tensor:
    rows, steps = rollout.mask.shape
    logp = expect(new.logp, "B T", name="KL: new.logp", B=rows, T=steps)
    ref = None if rollout.ref is None else rollout.ref.logp
    ref = expect(ref, "B T", name="KL: ref.logp", hint="Evaluate the reference first.", B=rows, T=steps)
    return logp.float() - ref.float()
