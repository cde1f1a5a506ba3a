"""The seeded endless order in which a list of prompts is walked: permutations, or draws in proportion to weights."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from studio.types import Prompts, Rollout


class Shuffled:
    """An endless walk over a list of prompts, one seeded order per pass; every rank walks the same.

    Its position is its whole state: pass and place in the pass follow from it, and the order of a pass from seed and pass.
    """

    def __init__(self, prompts: Prompts, seed: int, weights: Sequence[float] | None = None) -> None:
        self.prompts, self.seed, self.weights, self.position = prompts, seed, weights, 0

    def next(self, count: int) -> Prompts:
        size = len(self.prompts)
        places = range(self.position, self.position + count)
        orders = {epoch: self._order(epoch) for epoch in dict.fromkeys(p // size for p in places)}
        self.position += count
        return self.prompts.take([orders[p // size][p % size] for p in places])

    def update(self, rollout: Rollout) -> None:
        """A plain list learns nothing."""

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]

    def _order(self, epoch: int) -> list[int]:
        return one_pass(len(self.prompts), self.weights, random.Random(f"{self.seed}-{epoch}"))


def one_pass(size: int, weights: Sequence[float] | None, draws: random.Random) -> list[int]:
    """`size` positions in random order: each once, or as `weighted_pass` says."""
    order = list(range(size)) if weights is None else weighted_pass(weights, draws)
    draws.shuffle(order)
    return order


def weighted_pass(weights: Sequence[float], draws: random.Random) -> list[int]:
    """N draws of N prompts by systematic sampling: prompt i comes ⌊N·w_i/Σw⌋ or ⌈N·w_i/Σw⌉ times, N·w_i/Σw on average.

    The prompts lie on a line in random order, each as long as its share of N; the points u, u+1, ..., u+N-1 with one uniform u
    pick those they fall into. Equal weights give every prompt once. Unbiased for every u; unlike independent draws, a
    prompt of average weight is never left out of a pass and never comes three times.
    """
    there = [i for i, weight in enumerate(weights) if weight > 0]
    draws.shuffle(there)
    scale = len(weights) / sum(weights)
    ends = list(accumulate(scale * weights[i] for i in there))
    start, at, picked = draws.random(), 0, []
    for point in range(len(weights)):
        while at + 1 < len(there) and ends[at] <= start + point:
            at += 1
        picked.append(there[at])
    return picked
