"""Operations that go with a unit, counted in one forward from the rows that pass through its layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pruning.sites import Group, linear

QUERIES = ("to_q", "add_q_proj", "q_proj")
KEYS = ("to_k", "add_k_proj", "k_proj")
Calls = dict[str, list[tuple[int, int]]]  # linear layer -> (sequences, tokens of each) of every call


def unit_flops(groups: Sequence[Group], network: nn.Module, forward: Callable[[], Any]) -> dict[str, float]:
    """Operations of one unit of each group in one `forward`, 2 per multiplication and addition; by group name.

    Rows through its layers, and for heads the attention products 4·L_q·L_kv·size: the streams of joint attention together,
    the text's keys in cross-attention, whole squares where a mask is causal. Exact for any set of units of different groups,
    but a block includes the units inside it. A forward without a key-value cache is assumed. Works on the
    meta device where the network does (decoders read the values of their mask).
    """
    modules = dict(network.named_modules())
    calls: Calls = {}
    flops = {group.name: 0.0 for group in groups}
    hooks = [
        modules[name].register_forward_pre_hook(_note(calls.setdefault(name, [])))
        for name in {span.module for group in groups for span in (*group.producers, *group.consumers)}
    ]
    with FlopCounterMode(display=False) as counter:
        for group in groups:
            if group.kind == "blocks":
                hooks += _measure(modules[group.name], group.name, counter, flops)
        try:
            forward()
        finally:
            for hook in hooks:
                hook.remove()
    for group in groups:
        if group.kind != "blocks":
            flops[group.name] = _layers(group, modules, calls) + _products(group, calls)
    return flops


def _note(seen: list[tuple[int, int]]):
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        *rows, tokens, _ = (1, 1, *inputs[0].shape)[-max(3, inputs[0].ndim) :]
        seen.append((prod(rows), tokens))

    return hook


def _measure(module: nn.Module, name: str, counter: FlopCounterMode, flops: dict[str, float]):
    """The counter's difference over a block; hooks added last see all of it."""

    def enter(*_: Any) -> None:
        flops[name] -= counter.get_total_flops()

    def leave(*_: Any) -> None:
        flops[name] += counter.get_total_flops()

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]


def _layers(group: Group, modules: dict[str, nn.Module], calls: Calls) -> float:
    made = sum(s.size * linear(modules, s.module).in_features * _rows(calls, s.module) for s in group.producers)
    read = sum(s.size * linear(modules, s.module).out_features * _rows(calls, s.module) for s in group.consumers)
    return 2.0 * (made + read)


def _rows(calls: Calls, name: str) -> int:
    return sum(sequences * tokens for sequences, tokens in calls[name])


def _products(group: Group, calls: Calls) -> float:
    """Queries times keys, and their weights times values, call by call."""
    if group.kind != "heads":
        return 0.0
    queries = [span for span in group.producers if span.module.rpartition(".")[2] in QUERIES]
    keys = [span for span in group.producers if span.module.rpartition(".")[2] in KEYS]
    total = 0.0
    for made, read in zip(_together(queries, calls), _together(keys, calls), strict=True):
        (sequences, asked), (_, answered) = made, read
        total += 4.0 * sequences * asked * answered * queries[0].size
    return total


def _together(spans: Sequence[Any], calls: Calls) -> list[tuple[int, int]]:
    """(sequences, tokens of all streams) of every call."""
    return [
        (streams[0][0], sum(tokens for _, tokens in streams))
        for streams in zip(*(calls[span.module] for span in spans), strict=True)
    ]
