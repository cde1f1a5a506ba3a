"""From scores to the units that stay: an exact budget, whole chunks, at least one unit per module."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from pruning.sites import Group

Scope = Literal["global", "kind", "layer"]


@dataclass(frozen=True)
class Allocation:
    """How a budget is shared out."""

    scope: Scope | None = None  # units compete everywhere, among their kind, or within their module; None = the criterion's own
    align: Annotated[int, Field(ge=1)] = 1  # kept widths are multiples of so many rows: 8, 16, 64 or 128 for fast kernels
    min_keep: Annotated[int, Field(ge=0)] = 1  # units that every module keeps


@dataclass(frozen=True)
class _Chunk:
    group: int
    count: int
    score: float  # per unit, or per cost
    cost: float
    order: int  # of this chunk within its group


def allocate(
    groups: Sequence[Group],
    scores: Mapping[str, Tensor],
    costs: Mapping[str, float],
    remove: float,
    *,
    scope: Scope = "global",
    per_cost: bool = False,
    align: int = 1,
    min_keep: int = 1,
) -> dict[str, Tensor]:
    """Indices that stay, per group, after the units of the lowest scores, worth at most `remove` together, have gone.

    scores: [units] per group, higher stays. costs: of one unit per group, in the unit of `remove`. per_cost divides scores
    by costs, which is right where a score estimates damage and units compete everywhere. What is removed falls short of
    `remove` by less than the smallest chunk that could still go (see `removable` for the most that can).
    """
    ranked = scores if scope == "global" else quantiles(groups, scores, scope)
    chunks, orders, per_cost = [], [], per_cost and scope == "global"
    for index, group in enumerate(groups):
        order = torch.argsort(ranked[group.name].double(), stable=True)
        orders.append(order)
        chunks += _chunks(index, group, ranked[group.name][order], costs[group.name], per_cost, align, min_keep)
    gone, left = [0] * len(groups), remove * (1 + 1e-12)
    for chunk in sorted(chunks, key=lambda c: (c.score, c.group, c.order)):
        if chunk.cost <= left:  # or nothing more goes from this group: its later chunks cost at least as much
            gone[chunk.group] += chunk.count
            left -= chunk.cost
    return {group.name: orders[i][gone[i] :].sort().values for i, group in enumerate(groups)}


def removable(groups: Sequence[Group], costs: Mapping[str, float], *, align: int = 1, min_keep: int = 1) -> float:
    """The most that can be removed from these groups, in the unit of `costs`."""
    counts = {group.name: sum(_sizes(group, align, min_keep)) for group in groups}
    return sum(counts[group.name] * costs[group.name] for group in groups)


def quantiles(groups: Sequence[Group], scores: Mapping[str, Tensor], scope: Scope) -> dict[str, Tensor]:
    """Scores replaced by their rank among all units, those of the same kind, or of the same module, in (0, 1).

    A budget that is then filled globally takes the same share of every kind, or of every module.
    """
    shares: dict[str, Tensor] = {}
    pools: dict[str, list[Group]] = {}
    for group in groups:
        pools.setdefault({"global": "", "kind": group.kind, "layer": group.name}[scope], []).append(group)
    for pool in pools.values():
        joined = torch.cat([scores[group.name].double() for group in pool])
        rank = torch.empty(len(joined), dtype=torch.float64)
        rank[torch.argsort(joined, stable=True)] = (torch.arange(len(joined), dtype=torch.float64) + 0.5) / len(joined)
        shares |= dict(zip([g.name for g in pool], rank.split([g.units for g in pool]), strict=True))
    return shares


def _chunks(index: int, group: Group, ascending: Tensor, cost: float, per_cost: bool, align: int, min_keep: int) -> list[_Chunk]:
    """What may go from a group, in order: first what makes the rest a multiple of `align` rows, then that many at a time."""
    sizes = _sizes(group, align, min_keep)
    found, at, score = [], 0, -math.inf
    values = ascending.tolist()
    for order, size in enumerate(sizes):
        score = max(score, sum(values[at : at + size]) / size)  # a mean of equal scores may round below them
        found.append(_Chunk(index, size, score / cost if per_cost else score, size * cost, order))
        at += size
    return found


def _sizes(group: Group, align: int, min_keep: int) -> list[int]:
    """Units of each chunk, in the order they may go."""
    widths = {span.size for span in (*group.producers, *group.consumers)}
    step = 1 if group.kind in ("blocks", "modulation") else math.lcm(*(align // math.gcd(align, width) for width in widths))
    least = 0 if group.kind in ("blocks", "modulation") else min(group.units, -(-min_keep // step) * step)
    first = group.units % step
    return ([first] if first and group.units - first >= least else []) + [step] * ((group.units - first - least) // step)
