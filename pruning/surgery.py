"""Masks to a smaller network: rows and columns deleted, widths restated, blocks left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruning.pruned_model import EmptyAttention, EmptyDecoderAttention, ScatterLinear
from pruning.sites import Group, Span, linear

Kept = Mapping[str, Tensor]  # group name -> indices of the units that stay, ascending int64


@torch.no_grad()
def cut(network: nn.Module, groups: Sequence[Group], kept: Kept, fill: Mapping[str, Tensor] | None = None) -> None:
    """Slice `network` in place; `kept` may name some of the groups only.

    fill: the constant of removed modulation outputs, per group [units]; they become zero without it.
    An emptied group leaves its consumers' biases: what a gate of 0 everywhere computes. The network's config stays what it
    was; `depth_config` says what it becomes without the blocks.
    """
    modules = dict(network.named_modules())
    rows: dict[str, list[Tensor]] = {}
    columns: dict[str, list[Tensor]] = {}
    chosen = [group for group in groups if group.name in kept]
    for group in chosen:
        gone = removed(group, kept[group.name])
        if group.kind == "modulation":
            _narrow(network, modules, group, kept[group.name], None if fill is None else fill.get(group.name))
            continue
        for span in group.producers:
            rows.setdefault(span.module, []).append(lines(span, gone))
        for span in group.consumers:
            columns.setdefault(span.module, []).append(lines(span, gone))
    for name in dict.fromkeys([*rows, *columns]):
        _shrink(_plain(modules, name), rows.get(name, []), columns.get(name, []))
    for group in chosen:
        for resize in group.resizes:
            setattr(modules[resize.module], resize.attribute, len(kept[group.name]) * resize.factor)
        if group.kind == "heads" and not len(kept[group.name]):
            _empty(network, group.name)
    refresh(network)
    drop_blocks(network, [group.name for group in chosen if group.kind == "blocks" and not len(kept[group.name])])


@torch.no_grad()
def zero(network: nn.Module, groups: Sequence[Group], kept: Kept, fill: Mapping[str, Tensor] | None = None) -> None:
    """The same function at the original shapes: removed rows and columns are 0. A removed modulation output is its constant."""
    modules = dict(network.named_modules())
    for group in (group for group in groups if group.name in kept):
        if group.kind == "blocks":
            raise ValueError(f"zero: {group.name} is a block, which no zero weight removes. Use the depth form.")
        gone = removed(group, kept[group.name])
        for span in group.producers:
            layer, at = _plain(modules, span.module), lines(span, gone)
            layer.weight[at] = 0
            if layer.bias is not None:
                constant = None if group.kind != "modulation" or fill is None else fill.get(group.name)
                layer.bias[at] = 0 if constant is None else constant[at].to(layer.bias)
        for span in group.consumers:
            _plain(modules, span.module).weight[:, lines(span, gone)] = 0


def removed(group: Group, kept: Tensor) -> Tensor:
    """Indices of the units that go."""
    stays = torch.zeros(group.units, dtype=torch.bool)
    stays[kept] = True
    return (~stays).nonzero().flatten()


def lines(span: Span, units: Tensor) -> Tensor:
    """The rows or columns of these units."""
    return (span.offset + units[:, None] * span.size + torch.arange(span.size)).flatten()


def refresh(network: nn.Module) -> None:
    """What FLUX single blocks say about their output layer, for tensor parallelism: [heads, neurons]."""
    for module in network.modules():
        if type(module).__name__ == "FluxSingleTransformerBlock":
            packed: Any = module
            packed.proj_out._tp_packed_row_blocks = [packed.attn.inner_dim, packed.mlp_hidden_dim]


def drop_blocks(network: nn.Module, names: Sequence[str]) -> None:
    """Leave blocks out of their lists, and number the rest anew: decoder layers find their cache by number."""
    for holder in dict.fromkeys(name.rpartition(".")[0] for name in names):
        listed = network.get_submodule(holder)
        gone = {name.rpartition(".")[2] for name in names if name.rpartition(".")[0] == holder}
        rest = nn.ModuleList(child for key, child in listed.named_children() if key not in gone)
        for number, child in enumerate(rest):
            for module in child.modules():
                if hasattr(module, "layer_idx"):
                    module.layer_idx = number  # type: ignore[assignment]
        parent, _, last = holder.rpartition(".")
        owner: Any = network.get_submodule(parent)
        setattr(owner, last, rest)
        kinds = getattr(getattr(owner, "config", None), "layer_types", None)
        if kinds is not None:  # read by number in every forward
            owner.config.layer_types = [kind for number, kind in enumerate(kinds) if str(number) not in gone]


def _shrink(layer: nn.Linear, rows: list[Tensor], columns: list[Tensor]) -> None:
    """Delete rows and columns; copies, because a view would keep the old storage alive and in the file."""
    weight, bias, grad = layer.weight.detach(), layer.bias, layer.weight.requires_grad
    if rows:
        stays = _others(layer.out_features, rows).to(weight.device)
        weight = weight.index_select(0, stays)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().index_select(0, stays), requires_grad=bias.requires_grad)
    if columns:
        weight = weight.index_select(1, _others(layer.in_features, columns).to(weight.device))
    layer.weight = nn.Parameter(weight, requires_grad=grad)
    layer.out_features, layer.in_features = weight.shape


def _others(count: int, gone: list[Tensor]) -> Tensor:
    stays = torch.ones(count, dtype=torch.bool)
    stays[torch.cat(gone)] = False
    return stays.nonzero().flatten()


def _narrow(network: nn.Module, modules: dict[str, nn.Module], group: Group, kept: Tensor, fill: Tensor | None) -> None:
    name = group.producers[0].module
    whole = _plain(modules, name)
    narrow = ScatterLinear(whole.in_features, whole.out_features, len(kept), bias=whole.bias is not None)
    narrow.to(whole.weight)
    narrow.weight.copy_(whole.weight[kept])
    if narrow.bias is not None:
        narrow.bias.copy_(whole.bias[kept])
    narrow.kept.copy_(kept)
    if fill is not None:
        narrow.fill.copy_(fill)
    narrow.requires_grad_(whole.weight.requires_grad)
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, narrow)


def _empty(network: nn.Module, name: str) -> None:
    """Attention without heads: the stock classes' reshapes do not take it."""
    module: Any = network.get_submodule(name)
    if hasattr(module, "set_processor"):
        module.set_processor(EmptyAttention())
    else:
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, EmptyDecoderAttention(module))


def _plain(modules: dict[str, nn.Module], name: str) -> nn.Linear:
    """The linear layer of that name, which must not carry an adapter: its matrices would keep the old widths."""
    layer = linear(modules, name)
    if layer is not modules[name]:
        raise ValueError(f"cut: expected a plain layer at {name}, got one with an adapter. Merge the adapter first.")
    return layer
