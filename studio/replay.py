"""How a rollout is cut into the parts that are replayed one after the other, and into the rows of each optimizer step."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Protocol, runtime_checkable

import torch

from studio.protocols import Trace
from studio.recipe import Recipe
from studio.types import Credit, Evaluation, Prompts, Rollout

Piece = tuple[slice | torch.Tensor, slice]  # rows and decisions


@runtime_checkable
class Separable(Protocol):
    """A trace whose decisions can be asked about one by one, in any order: the actions of a control policy."""

    def apart(self) -> tuple[Trace, Evaluation]: ...  # rows [B·T], and what the sampling policy said of them [B·T, J]


def cuts(rollout: Rollout, pieces: int) -> list[slice]:
    """The rows in at most so many parts of equal size; the last may be smaller."""
    size = math.ceil(len(rollout.mask) / pieces)
    return [slice(at, at + size) for at in range(0, len(rollout.mask), size)]


def positions(rollout: Rollout, split: bool) -> list[slice]:
    """The decisions of a row all together, or one position after the other."""
    return [slice(t, t + 1) for t in range(rollout.mask.shape[1])] if split else [slice(None)]


def in_order(rollout: Rollout, recipe: Recipe, span: str) -> list[list[Piece]]:
    """The rows of each optimizer step, in the parts that are replayed one after the other; a group stays together where it can."""
    train = recipe.train
    pieces = max(1, train.gradient_accumulation_steps // train.minibatches) if span != "batch" else 1
    found: list[list[Piece]] = []
    for whole in cuts(rollout, train.minibatches):
        inner = cuts(rollout.at(whole), pieces)
        rows = [slice(whole.start + part.start, min(whole.start + part.stop, whole.stop)) for part in inner]
        found.append([(part, steps) for part in rows for steps in positions(rollout, train.split_steps)])
    return found


def apart(rollout: Rollout, credit: Credit) -> tuple[Rollout, Credit]:
    """Every decision as a row of its own: [B, T] -> [B·T, J], J what an action consists of for its policy (mostly 1).

    The parts of an action share its credit, so that weights still add up to what they were.
    """
    assert isinstance(rollout.trace, Separable)
    trace, old = rollout.trace.apart()
    count = next(value.shape[1] for f in fields(old) if (value := getattr(old, f.name)) is not None)

    def wide(x: torch.Tensor | None, share: float = 1.0) -> torch.Tensor | None:
        if x is None:
            return None
        x = x.reshape(-1, 1)
        return (x * share if share != 1 else x).expand(-1, count)

    flat = Rollout(
        Prompts([], [], []),
        None,
        trace,
        wide(rollout.mask),  # type: ignore[arg-type]
        torch.arange(rollout.mask.numel()),
        replace(old, value=wide(rollout.old.value)),
    )
    own = Credit(wide(credit.advantage), wide(credit.gate), wide(credit.weight, 1 / count), wide(credit.target))  # type: ignore[arg-type]
    return flat, own


def part(rollout: Rollout, credit: Credit, piece: Piece) -> tuple[Rollout, Credit]:
    """A piece of both. One without rows is the first row with weight 0: every rank takes part in every optimizer step."""
    rows, steps = piece
    if isinstance(rows, slice) or len(rows):
        return rollout.at(rows, steps), credit.at(rows, steps)
    share = credit.at(slice(0, 1), steps)
    return rollout.at(slice(0, 1), steps), replace(share, weight=torch.zeros_like(share.weight))


def shuffled(count: int, minibatches: int, seed: int, rank: int = 0, world: int = 1) -> list[list[Piece]]:
    """This rank's `count` rows of each optimizer step, in an order that is the same for any number of processes.

    A rank that has no row in some minibatch gets an empty part.
    """
    own = torch.Generator().manual_seed(seed)
    order, first = torch.randperm(count * world, generator=own), rank * count
    found: list[list[Piece]] = []
    for part in order.tensor_split(minibatches):
        mine = part if world == 1 else part[(part >= first) & (part < first + count)] - first
        found.append([(mine, slice(None))])
    return found
