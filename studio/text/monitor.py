"""Early signs that likelihoods are optimized too far, on every run: top-k mass and entropy, and where pairs stand."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from studio.core.overoptimization import EarlyWarning, top_k_mass_and_entropy
from studio.text.head import BUDGET
from studio.types import Rollout

if TYPE_CHECKING:
    from studio.text.policy import TokenPolicy

K = 10  # of the likeliest tokens; the paper's was not found
ROWS = 32  # of a rollout that are looked at


class Monitor:
    """Looks at the first rows of a rollout every so many iterations; remembers what it saw."""

    def __init__(self, every: int) -> None:
        self.every, self.warning = every, EarlyWarning()

    def __call__(self, policy: TokenPolicy, rollout: Rollout, step: int) -> dict[str, float]:
        """`sample/top_mass`, `sample/top_entropy` (nats) and `sample/warning`: looks in a row at which both fell; 3 mean stop.

        arXiv:2410.11677.  Of pairs also the mean log-likelihood of chosen and rejected answers.
        """
        if not self.every or step % self.every:
            return {}
        seen = rollout.at(slice(0, ROWS))
        mass, entropy = means(policy, seen)
        self.warning.update(mass, entropy)
        told = {"sample/top_mass": mass, "sample/top_entropy": entropy, "sample/warning": float(self.warning.falling)}
        return told | pair_likelihoods(policy, seen)

    def state_dict(self) -> dict[str, Any]:
        return self.warning.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.warning.load_state_dict(state)


@torch.no_grad()
def means(policy: TokenPolicy, rollout: Rollout) -> tuple[float, float]:
    """Mean top-k mass and entropy over the live decisions, `BUDGET` logits at a time."""
    rows, steps = rollout.mask.shape
    size = max(1, BUDGET // policy.model.lm.get_output_embeddings().weight.shape[0] // steps)
    mass = entropy = 0.0
    for at in range(0, rows, size):  # dead rows too: every process takes part in every call
        part = rollout.at(slice(at, at + size))
        found = top_k_mass_and_entropy(policy.logits(part), K)
        if part.mask.any():
            mass, entropy = mass + found.mass.sum().item(), entropy + found.entropy.sum().item()
    count = max(1, int(rollout.mask.sum()))
    return mass / count, entropy / count


@torch.no_grad()
def pair_likelihoods(policy: TokenPolicy, rollout: Rollout) -> dict[str, float]:
    """Mean log-likelihood of chosen and of rejected answers now; nothing where no rows were given."""
    if rollout.given is None or not rollout.given.any():
        return {}
    rows = rollout.given.nonzero()[:, 0]
    given = rollout.at(rows)
    logp = policy.evaluate(replace(given, ref=None)).logp
    assert logp is not None
    total: Tensor = logp.sum(1)
    chosen, rejected = total[0::2].mean().item(), total[1::2].mean().item()
    return {"sample/chosen_logp": chosen, "sample/rejected_logp": rejected, "sample/margin": chosen - rejected}
