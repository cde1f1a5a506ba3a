"""Criteria that need no training: one number per unit, higher stays."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from pruning.allocate import Scope
from pruning.calibrate import Statistics
from pruning.compensate import compensated, damped
from pruning.sites import Group, Span, linear
from pruning.surgery import lines

Scores = dict[str, Tensor]  # group name -> [units]
INNER = frozenset({"heads", "neurons", "modulation"})  # kinds of units that lie inside a block


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at."""

    network: nn.Module
    groups: Sequence[Group]
    statistics: Statistics  # as `needs` asked for
    gradients: Callable[[float], Mapping[str, Tensor]]  # threshold -> parameter name -> Σ_t dL_t/dw
    seed: int

    def modules(self) -> dict[str, nn.Module]:
        return dict(self.network.named_modules())


@dataclass(frozen=True)
class Random:
    """A random order, drawn per module from the seed: what every criterion has to beat."""

    needs: ClassVar[frozenset[str]] = frozenset()
    kinds: ClassVar[frozenset[str]] = INNER | {"blocks"}  # that it can score
    scope: ClassVar[Scope] = "global"
    per_cost: ClassVar[bool] = False

    def __call__(self, seen: Evidence) -> Scores:
        def draw(group: Group) -> Tensor:
            own = torch.Generator().manual_seed(zlib.crc32(f"{seen.seed}/{group.name}".encode()))
            return torch.rand(group.units, generator=own)

        return {group.name: draw(group) for group in seen.groups}


@dataclass(frozen=True)
class Magnitude:
    """||W[:, unit]||² over the consumers' columns, per cost; of the rows, where there is no consumer."""

    needs: ClassVar[frozenset[str]] = frozenset()
    kinds: ClassVar[frozenset[str]] = INNER
    scope: ClassVar[Scope] = "global"
    per_cost: ClassVar[bool] = True

    def __call__(self, seen: Evidence) -> Scores:
        modules = seen.modules()
        return {group.name: _norms(group, modules, lambda span: None) for group in seen.groups}


@dataclass(frozen=True)
class Wanda:
    """Σ_q ||W[:, q]||²·E[x_q²] (arXiv:2306.11695, structured, squared); variance of a modulation output."""

    needs: ClassVar[frozenset[str]] = frozenset({"square"})
    kinds: ClassVar[frozenset[str]] = INNER
    scope: ClassVar[Scope] = "global"
    per_cost: ClassVar[bool] = True

    def __call__(self, seen: Evidence) -> Scores:
        modules, inputs = seen.modules(), seen.statistics.inputs
        scores = {g.name: _norms(g, modules, lambda span: inputs[span.module].diagonal()) for g in seen.groups if g.consumers}
        return scores | _variances(seen)


@dataclass(frozen=True)
class OBS:
    """Error after the best refit of the others: ||W_q||²/[H⁻¹]_qq; of a head Σ_k ||W[:, k]||²/d_k (arXiv:2510.06751).

    d is the squared Cholesky diagonal of the head's block of H⁻¹. Units go in `rounds` batches; after each the consumer is
    refitted and the inverse made anew without those that went. Two consumers (joint attention) are fused by reciprocal rank,
    1/(60 + rank).
    """

    damping: Annotated[float, Field(ge=0)] = 0.01
    rounds: Annotated[int, Field(ge=1)] = 8
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    kinds: ClassVar[frozenset[str]] = INNER
    scope: ClassVar[Scope] = "layer"
    per_cost: ClassVar[bool] = False

    def __call__(self, seen: Evidence) -> Scores:
        modules, found = seen.modules(), {}
        for group in seen.groups:
            if not group.consumers:
                continue
            sides = [
                (linear(modules, span.module).weight.detach(), damped(seen.statistics.inputs[span.module].gram, self.damping), span)
                for span in group.consumers
            ]
            found[group.name] = removal_order(sides, group.units, self.rounds)
        return found | _variances(seen)


def removal_order(sides: Sequence[tuple[Tensor, Tensor, Span]], units: int, rounds: int) -> Tensor:
    """The place of each unit in the order of removal, 0 first.  sides: (weight [o, n], damped H [n, n], span)  -> [units]"""
    place = torch.full((units,), -1.0)
    alive = torch.arange(units)
    sides = [(w[:, lines(span, alive)].double(), h[lines(span, alive)][:, lines(span, alive)], span) for w, h, span in sides]
    gone = 0
    for round_ in range(rounds):
        take = len(alive) if round_ == rounds - 1 else units // rounds
        if not take or not len(alive):
            continue
        ranks = []
        for w, h, span in sides:
            ranks.append(torch.argsort(torch.argsort(saliency(w, h, span.size), stable=True)))
        fused = sum(-1 / (61 + rank.double()) for rank in ranks) if len(ranks) > 1 else ranks[0].double()
        order = torch.argsort(fused, stable=True)  # type: ignore[arg-type]
        first = order[:take].cpu()
        place[alive[first]] = torch.arange(gone, gone + len(first), dtype=torch.float32)
        gone += len(first)
        stay = order[take:].sort().values.cpu()
        alive = alive[stay]
        sides = [_without(w, h, span, first, stay) for w, h, span in sides]
    return place


def _without(w: Tensor, h: Tensor, span: Span, gone: Tensor, stay: Tensor) -> tuple[Tensor, Tensor, Span]:
    """A consumer after the best refit without these units: what a further one costs depends on what the others took over."""
    own, at = Span("", span.size), lines(Span("", span.size), stay)
    return compensated(w, h, lines(own, gone), damping=0.0)[:, at], h[at][:, at], span


def saliency(weight: Tensor, h: Tensor, size: int) -> Tensor:
    """Σ_k ||W[:, k]||²/d_k per unit, d = squared Cholesky diagonal of the unit's block of H⁻¹.  [o, n], [n, n] -> [n/size]"""
    inverse = torch.linalg.inv(h)
    square = (weight.double() ** 2).sum(0)
    if size == 1:
        return square / inverse.diagonal()
    units = len(square) // size
    blocks = inverse.unflatten(0, (units, size)).unflatten(2, (units, size))
    own = torch.stack([blocks[i, :, i] for i in range(units)])
    d = torch.linalg.cholesky(own).diagonal(dim1=1, dim2=2) ** 2
    return (square.unflatten(0, (units, size)) / d).sum(1)


@dataclass(frozen=True)
class Taylor:
    """Σ |w·Σ_t dL_t/dw| over a unit's weights (Diff-Pruning, arXiv:2305.10924), L_t the flow-matching loss on own samples.

    Steps are added from the least noisy on, until L_t < threshold·max L. per_weight=False takes |Σ w·g| instead.
    """

    threshold: Annotated[float, Field(ge=0, le=1)] = 0.05
    per_weight: bool = True
    needs: ClassVar[frozenset[str]] = frozenset({"gradient"})
    kinds: ClassVar[frozenset[str]] = INNER
    scope: ClassVar[Scope] = "global"
    per_cost: ClassVar[bool] = True

    def __call__(self, seen: Evidence) -> Scores:
        modules, gradients = seen.modules(), seen.gradients(self.threshold)
        found = {}
        for group in seen.groups:
            total = torch.zeros(group.units, dtype=torch.float64)
            for span, axis in [*((s, 0) for s in group.producers), *((s, 1) for s in group.consumers)]:
                layer = linear(modules, span.module)
                product = (layer.weight.detach() * gradients[f"{span.module}.weight"]).double()
                own = product.transpose(0, axis)[lines(span, torch.arange(group.units))].unflatten(0, (group.units, span.size))
                total += (own.abs() if self.per_weight else own).flatten(1).sum(1).cpu()
                if axis == 0 and layer.bias is not None:
                    bias = (layer.bias.detach() * gradients[f"{span.module}.bias"]).double().cpu()
                    own = bias[lines(span, torch.arange(group.units))].unflatten(0, (group.units, span.size))
                    total += (own.abs() if self.per_weight else own).sum(1)
            found[group.name] = total.abs()
        return found


def _norms(group: Group, modules: Mapping[str, nn.Module], second: Callable[[Span], Tensor | None]) -> Tensor:
    """Σ over consumers (or, without any, producers) and the unit's lines of ||line||²·second moment."""
    total = torch.zeros(group.units, dtype=torch.float64)
    for span in group.consumers or group.producers:
        weight = linear(dict(modules), span.module).weight.detach().double()
        square = (weight**2).sum(0 if group.consumers else 1)
        moment = second(span)
        if moment is not None:
            square = square * moment.to(square.device)
        own = square[lines(span, torch.arange(group.units)).to(square.device)]
        total += own.unflatten(0, (group.units, span.size)).sum(1).cpu()
    return total


def _variances(seen: Evidence) -> Scores:
    """E[y²] - E[y]² of modulation outputs: what is lost when each becomes its mean."""
    outputs = seen.statistics.outputs
    found = {}
    for group in seen.groups:
        if group.kind == "modulation":
            moments = outputs[group.producers[0].module]
            found[group.name] = (moments.gram - moments.mean**2).clamp(min=0).cpu()
    return found
