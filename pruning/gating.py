"""Gates on a network while a forward runs: hooks on the layers that read the units, found by name.

A gate of 0 does exactly what removing the unit does, because the consumers' biases stay. Hooks survive other attention
kernels and processors, and a block that is skipped or recomputed cannot shift the gates of the next one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pruning.families import BLOCKS
from pruning.sites import Group, Span

Gates = Mapping[str, Tensor]  # group name -> [units], in [0, 1]


@contextmanager
def gated(network: nn.Module, groups: Sequence[Group], gates: Gates, fill: Gates | None = None) -> Iterator[None]:
    """Inside, every forward multiplies each unit by its gate.

    gates: float32, cast to the activations' dtype at use. fill: the constant that a removed modulation output takes, per
    group [units]; zero without it. Gates may carry a graph: the hooks read them anew when a step is recomputed.
    """
    modules = dict(network.named_modules())
    readers: dict[str, list[tuple[Span, str]]] = {}
    hooks = []
    for group in groups:
        if group.kind == "blocks":
            hooks.append(modules[group.name].register_forward_hook(_skip(group.name, gates), with_kwargs=True))
        elif group.kind == "modulation":
            constant = None if fill is None else fill.get(group.name)
            hooks.append(modules[group.producers[0].module].register_forward_hook(_blend(group.name, gates, constant)))
        for span in group.consumers:
            readers.setdefault(span.module, []).append((span, group.name))
    for name, spans in readers.items():
        hooks.append(modules[name].register_forward_pre_hook(_multiply(spans, gates)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def column_gate(spans: Sequence[tuple[Span, str]], gates: Gates, width: int) -> Tensor:
    """One factor per column of a consumer: 1 where no group has its units.  -> [width]"""
    pieces, at = [], 0
    some = gates[spans[0][1]]
    for span, name in sorted(spans, key=lambda found: found[0].offset):
        pieces += [some.new_ones(span.offset - at), gates[name].repeat_interleave(span.size)]
        at = span.offset + len(gates[name]) * span.size
    return torch.cat([*pieces, some.new_ones(width - at)])


def _multiply(spans: Sequence[tuple[Span, str]], gates: Gates):
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]):
        x, *rest = inputs
        return (x * column_gate(spans, gates, x.shape[-1]).to(x), *rest)

    return hook


def _blend(name: str, gates: Gates, fill: Tensor | None):
    def hook(module: nn.Module, inputs: Any, y: Tensor) -> Tensor:
        gate = gates[name].to(y)
        return y * gate if fill is None else y * gate + fill.to(y) * (1 - gate)

    return hook


def _skip(name: str, gates: Gates):
    def hook(module: nn.Module, args: Any, kwargs: Any, answer: Any) -> Any:
        gate = gates[name]
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        several = isinstance(answer, tuple)
        streams = [given[stream] for stream in BLOCKS[type(module).__name__]]
        mixed = tuple(
            new if new is None else gate.to(new) * new + (1 - gate.to(new)) * old
            for new, old in zip(answer if several else (answer,), streams, strict=False)
        )
        return mixed if several else mixed[0]

    return hook
