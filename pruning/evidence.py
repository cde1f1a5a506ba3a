"""Calibration pairs, and what is measured on their dense trajectories."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flows.denoise import RowNoise, Taken
from pruning.calibrate import Calibration, Clock, Statistics, measuring
from pruning.sites import Group
from studio.errors import ConfigError
from studio.seeds import row_seed
from studio.types import Prompts

if TYPE_CHECKING:
    from flows.policy import DenoisePolicy
    from studio.protocols import PromptSource


@dataclass(frozen=True)
class Pairs:
    """Prompts, each with the seed of its initial noise."""

    prompts: Prompts
    seeds: Sequence[int]

    def __len__(self) -> int:
        return len(self.seeds)

    def take(self, index: Sequence[int]) -> Pairs:
        return Pairs(self.prompts.take(index), [self.seeds[i] for i in index])

    def batches(self, size: int) -> Iterator[Pairs]:
        for at in range(0, len(self), size):
            yield self.take(range(at, min(at + size, len(self))))


def draw_pairs(source: PromptSource, rows: int, seed: int, *, one_noise: bool = False) -> Pairs:
    """`rows` prompts in the source's order, repeated where it has fewer, each with its own noise; or one noise for all."""
    prompts = source.next(rows)
    if not len(prompts):
        raise ConfigError("recipe.prompts: expected prompts to calibrate on, got none. Name a file with at least one line.")
    return Pairs(prompts, [row_seed(seed, "calibration", 0 if one_noise else row) for row in range(len(prompts))])


@torch.no_grad()
def observe(
    policy: DenoisePolicy, groups: Sequence[Group], pairs: Pairs, settings: Calibration, needs: frozenset[str]
) -> Statistics:
    """Statistics of dense trajectories, in one pass over all pairs.

    Whoever wants Gram matrices of many layers asks for one package of groups after the other: all at once may not fit.
    """
    if not needs & {"gram", "square", "similarity", "fill"}:
        return Statistics()
    clock = Clock(policy.sampler.steps, settings.weight_first, settings.weight_last)
    with measuring(policy.model, groups, clock, full="gram" in needs) as found:
        for pair in pairs.batches(settings.batch):
            clock.at(0)
            policy.latents(pair.prompts.text, pair.seeds, record=_advance(clock))
    return found


def _advance(clock: Clock) -> Callable[[Taken], None]:
    def record(taken: Taken) -> None:
        if taken.index + 1 < clock.steps:
            clock.at(taken.index + 1)

    return record


def loss_gradients(
    policy: DenoisePolicy, groups: Sequence[Group], pairs: Pairs, settings: Calibration, threshold: float
) -> Mapping[str, Tensor]:
    """Σ_t dL_t/dw of the linears of these groups;  L_t = mean ||v(x_t) - (e - x0)||², x_t = (1-σ)·x0 + σ·e, x0 the policy's own.

    Steps are taken from the least noisy on and stop where L_t < threshold·(largest so far), arXiv:2305.10924.
    """
    names = {span.module for group in groups for span in (*group.producers, *group.consumers)}
    named = {name: p for name, p in policy.model.named_parameters() if name.rpartition(".")[0] in names}
    before = {name: p.requires_grad for name, p in named.items()}
    try:
        for p in named.values():
            p.requires_grad_(True)
        return _accumulate(policy, named, pairs, settings, threshold)
    finally:
        for name, p in named.items():
            p.requires_grad_(before[name])


def _accumulate(
    policy: DenoisePolicy, named: Mapping[str, Tensor], pairs: Pairs, settings: Calibration, threshold: float
) -> dict[str, Tensor]:
    total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in named.items()}
    with torch.no_grad():
        clean = [policy.latents(part.prompts.text, part.seeds) for part in pairs.batches(settings.batch)]
    largest = 0.0
    for sigma in policy.grid(policy.sampler.steps)[:-1].flip(0).tolist():
        loss_sum, found = 0.0, {name: torch.zeros_like(p) for name, p in total.items()}
        for part, x0 in zip(pairs.batches(settings.batch), clean, strict=True):
            noise = RowNoise([row_seed(seed, f"taylor/{sigma}", 0) for seed in part.seeds], x0.shape[1:])().to(x0)
            v = policy.velocity(part.prompts.text)((1 - sigma) * x0 + sigma * noise, x0.new_full((len(x0),), sigma))
            loss = ((v.float() - (noise - x0)) ** 2).mean() * len(x0) / len(pairs)
            for name, g in zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True):
                if g is not None:
                    found[name] += g.float()
            loss_sum += loss.item()
        largest = max(largest, loss_sum)
        if loss_sum < threshold * largest:
            break
        total = {name: value + found[name] for name, value in total.items()}
    return total
