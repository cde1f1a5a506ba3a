"""Whole pipelines with a pruned network in three forms: depth, dense and compact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from pruning.compact import Facts, as_compact, count, depth_changes, dropped, record, stock, whole_size
from pruning.dense import dense_state, refuse_dropped
from pruning.pruned_model import write_record
from pruning.sites import Group
from pruning.surgery import Kept
from studio.errors import ConfigError

Form = Literal["depth", "dense", "compact"]


def save_pipeline(
    pipeline: Any,
    network: nn.Module,
    groups: Sequence[Group],
    kept: Kept,
    folder: Path,
    facts: Facts,
    form: Form = "compact",
    *,
    config_changes: Mapping[str, Any] | None = None,
    max_shard_size: int | str = "5GB",
) -> None:
    """The pipeline folder with `network`, as `surgery.cut` left it, in the place of the one it was cut from.

    depth: stock class and config, for dropped blocks alone. dense: stock, zeros in place. compact: small, with its class file.
    The pipeline itself is as before afterwards.
    """
    import diffusers

    part = "unet" if "UNet" in type(network).__name__ else "transformer"
    made: Any = in_form(network, groups, kept, facts, form, config_changes)
    before = getattr(pipeline, part)
    pipeline.register_modules(**{part: made})
    try:
        pipeline.save_pretrained(folder, safe_serialization=True, max_shard_size=max_shard_size)
    finally:
        pipeline.register_modules(**{part: before})
    if form != "compact":
        stated = record(groups, kept, facts, form, before=whole_size(network), after=count(made))
        write_record(Path(folder) / part, stated, diffusers=diffusers.__version__)


def in_form(
    network: nn.Module,
    groups: Sequence[Group],
    kept: Kept,
    facts: Facts,
    form: Form,
    config_changes: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The network as that form has it, sharing its weights where it can."""
    if form == "compact":
        return as_compact(network, groups, kept, facts, config_changes)
    if form == "dense":
        refuse_dropped(groups, kept)
        made = stock(network)
        state = dense_state(network, groups, kept, made)
    else:
        refuse_narrowed(groups, kept)
        made, state = stock(network, depth_changes(network, groups, kept, config_changes)), network.state_dict()
    try:
        made.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ConfigError(
            f"export: expected weights that fit {type(made).__name__} at its config, got others "
            f"({' '.join(str(error).split())[:200]}). State the depth that is left in config_changes, or use the compact form."
        ) from error
    return made


def refuse_narrowed(groups: Sequence[Group], kept: Kept) -> None:
    cut = [group for group in groups if group.kind != "blocks" and group.name in kept and len(kept[group.name]) < group.units]
    if cut:
        group = cut[0]
        raise ConfigError(
            f"export: expected that only whole blocks were removed for the depth form, got {group.name} with "
            f"{len(kept[group.name])} of {group.units} {group.kind}. Use the compact or the dense form."
        )


def predicted_params(before: int, groups: Sequence[Group], kept: Kept) -> int:
    """Parameters left of `before`, counted from the kept units alone; what a dropped block holds goes once."""
    blocks, lost = dropped(groups, kept), 0
    for group in (group for group in groups if group.name in kept):
        if group.kind == "blocks" or not any(group.name.startswith(f"{name}.") for name in blocks):
            lost += (group.units - len(kept[group.name])) * group.params
    return before - lost
