"""Pruned language models as stock transformers folders: smaller where every layer has the same widths, else zeros in place."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pruning.compact import Facts, count, depth_changes, record
from pruning.dense import dense_state, refuse_dropped
from pruning.formats import predicted_params
from pruning.pruned_model import write_record
from pruning.sites import Group
from pruning.surgery import Kept
from studio.errors import ConfigError


def save_language_model(
    model: nn.Module,
    tokenizer: Any,
    groups: Sequence[Group],
    kept: Kept,
    folder: Path,
    facts: Facts,
    form: Literal["compact", "dense"] = "compact",
    *,
    config_changes: Mapping[str, Any] | None = None,
    max_shard_size: int | str = "5GB",
) -> None:
    """A folder that AutoModelForCausalLM loads, of a model that `surgery.cut` has sliced.

    compact: the widths go into the stock config, which has one number for all layers. dense: the original shapes, always.
    groups: as found before the cut. config_changes: the depth that is left; None = what follows from the dropped layers.
    """
    import transformers

    given: Any = model
    if form == "dense":
        refuse_dropped(groups, kept)
        made = _on_meta(given, given.config)
        state = dense_state(model, groups, kept, made)
    else:
        changes = depth_changes(model, groups, kept, config_changes)
        made, state = _on_meta(given, narrow_config(model, changes)), model.state_dict()
    _fill(made, state)
    made.generation_config = given.generation_config
    folder = Path(folder)
    made.save_pretrained(folder, max_shard_size=max_shard_size)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    before = count(model) - predicted_params(0, groups, kept)
    stated = record(groups, kept, facts, form, before=before, after=count(made))
    write_record(folder, stated, transformers=transformers.__version__)


def narrow_config(model: nn.Module, changes: Mapping[str, Any]) -> Any:
    """The stock config that states this model's widths; ConfigError where it has no number for them."""
    given: Any = model
    widths = _widths(model)
    mixed = {name: sorted(found) for name, found in widths.items() if len(found) > 1}
    if mixed:
        name, found = next(iter(mixed.items()))
        raise ConfigError(
            f"export: expected one {name} for all layers of a {type(model).__name__}, got {', '.join(map(str, found))}. Prune with "
            "an allocation per layer (the same share of each), or use the dense form."
        )
    one: dict[str, Any] = {name: found.pop() for name, found in widths.items()}
    if not all(one.values()):
        name = next(name for name, width in one.items() if not width)
        raise ConfigError(f"export: expected at least 1 {name}, got 0. Keep some of each layer, or use the dense form.")
    settings = {**given.config.to_dict(), **one, **changes}
    heads, hidden = one.get("num_attention_heads", 1), given.config.hidden_size
    try:
        return type(given.config).from_dict(settings)
    except Exception as error:  # the validation of the config class has an error of its own
        if hidden % heads == 0:
            raise
        group = heads // one["num_key_value_heads"]
        fits = [str(n) for n in range(group, given.config.num_attention_heads + 1, group) if hidden % n == 0]
        raise ConfigError(
            f"export: expected a number of query heads that divides hidden_size = {hidden}, as {type(given.config).__name__} "
            f"demands, got {heads}. Keep {' or '.join(fits)} query heads ({group} to a key-value head), or use the dense form."
        ) from error


def _widths(model: nn.Module) -> dict[str, set[int]]:
    """Every width that occurs, under the names of the config."""
    found: dict[str, set[int]] = {}
    for module in model.modules():
        layer: Any = module
        if hasattr(module, "o_proj") and hasattr(module, "q_proj"):
            size = getattr(layer, "head_dim", 1)  # an emptied attention has none, and no rows
            found.setdefault("num_attention_heads", set()).add(layer.q_proj.out_features // size)
            found.setdefault("num_key_value_heads", set()).add(layer.k_proj.out_features // size)
            if hasattr(module, "head_dim"):
                found.setdefault("head_dim", set()).add(layer.head_dim)
        elif hasattr(module, "down_proj") and hasattr(module, "gate_proj"):
            found.setdefault("intermediate_size", set()).add(layer.down_proj.in_features)
    return found


def _on_meta(model: Any, config: Any) -> Any:
    with torch.device("meta"):
        return type(model)(copy.deepcopy(config))


def _fill(made: Any, state: Mapping[str, Tensor]) -> None:
    try:
        made.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ConfigError(
            f"export: expected weights that fit a {type(made).__name__} of these widths, got others "
            f"({' '.join(str(error).split())[:200]}). Give the groups of the whole model, and its depth in config_changes."
        ) from error
    made.tie_weights()  # assigning has made two tensors of a shared one
