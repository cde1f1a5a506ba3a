"""The dense form: a sliced network's weights at the original shapes, zeros where units were removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pruning.compact import dropped
from pruning.sites import Group
from pruning.surgery import Kept, lines, removed
from studio.errors import ConfigError


def dense_state(network: nn.Module, groups: Sequence[Group], kept: Kept, whole: nn.Module) -> dict[str, Tensor]:
    """State dict for `whole`, the network as it was before the cut (on the meta device: only its shapes are read).

    A removed modulation output has a weight row of 0 and its constant as bias.
    """
    refuse_dropped(groups, kept)
    state = network.state_dict()
    rows, columns = _gone(groups, kept)
    return {key: _place(key, state, shape.shape, rows, columns) for key, shape in whole.state_dict().items()}


def refuse_dropped(groups: Sequence[Group], kept: Kept) -> None:
    blocks = dropped(groups, kept)
    if blocks:
        raise ConfigError(
            f"export: expected a network that keeps its blocks for the dense form, got one without {', '.join(blocks[:3])}: no "
            "zero weight skips a block. Use the depth form (where only blocks were removed) or compact."
        )


def _gone(groups: Sequence[Group], kept: Kept) -> tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]]:
    """Removed rows and columns per linear layer."""
    rows: dict[str, list[Tensor]] = {}
    columns: dict[str, list[Tensor]] = {}
    for group in (group for group in groups if group.name in kept and group.kind != "modulation"):
        gone = removed(group, kept[group.name])
        for side, spans in ((rows, group.producers), (columns, group.consumers)):
            for span in spans:
                side.setdefault(span.module, []).append(lines(span, gone))
    return rows, columns


def _place(
    key: str,
    state: Mapping[str, Tensor],
    shape: torch.Size,
    rows: Mapping[str, list[Tensor]],
    columns: Mapping[str, list[Tensor]],
) -> Tensor:
    """One tensor of the whole network, filled from the sliced one's."""
    small, (module, _, leaf) = state[key], key.rpartition(".")
    if f"{module}.kept" in state:
        full = small.new_zeros(shape) if leaf == "weight" else state[f"{module}.fill"].to(small)
        return full.index_copy(0, state[f"{module}.kept"], small)
    at = [_rest(shape[0], rows.get(module, []))] if shape else []
    at += [_rest(shape[1], columns.get(module, []))] if len(shape) > 1 and leaf == "weight" else []
    at += [torch.arange(size) for size in shape[len(at) :]]
    if [len(index) for index in at] != list(small.shape):
        raise ConfigError(
            f"export: expected {key} with shape {[len(index) for index in at]} after this cut of {list(shape)}, got "
            f"{list(small.shape)}. Give the network as `cut` left it, with the groups of the whole one."
        )
    if small.shape == shape:
        return small
    full = small.new_zeros(shape)
    full[torch.meshgrid(*(index.to(full.device) for index in at), indexing="ij")] = small
    return full


def _rest(size: int, gone: list[Tensor]) -> Tensor:
    stays = torch.ones(size, dtype=torch.bool)
    for lost in gone:
        stays[lost] = False
    return stays.nonzero().flatten()
