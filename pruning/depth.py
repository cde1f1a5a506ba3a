"""The stock config of a network of which blocks were left out: such a network loads without any code of ours.

`drop_blocks` numbers the blocks that stay anew, so the state dict's keys are already those of the shorter network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from studio.errors import ConfigError

DEPTHS = {  # last part of a list's name -> the config's field
    "transformer_blocks": "num_layers",
    "single_transformer_blocks": "num_single_layers",
    "layers": "num_hidden_layers",
}
Names = Mapping[str, list[str]]  # a list of blocks -> all its names


def depth_config(network: nn.Module, removed: Sequence[str]) -> dict[str, Any]:
    """What changes in the config once the blocks of these names are left out; empty without any.

    The config is read as it was before: the answer is the same before and after `cut`. Write it with
    `network.register_to_config(**changes)` (diffusers) or `network.config.update(changes)` (transformers); a dictionary of a
    diffusers config first loses its key `_use_default_values`, which names fields that `from_config` ignores.
    """
    config = _fields(network)
    names = _unet_names(config) if "down_block_types" in config else _names(network, config)
    gone = set(removed)
    known = [name for listed in names.values() for name in listed]
    if unknown := sorted(gone.difference(known)):
        raise ConfigError(
            f"depth: expected names of blocks such as {', '.join(known[:3])}, got {', '.join(unknown)}. Correct them."
        )
    left = {holder: [name for name in listed if name not in gone] for holder, listed in names.items()}
    if not gone:
        return {}
    if "down_block_types" in config:
        return _unet_changes(config, names, left)
    changes: dict[str, Any] = {}
    for holder, listed in names.items():
        if len(left[holder]) < len(listed):
            _keep_some(holder, listed, left[holder])
            changes[DEPTHS[holder.rpartition(".")[2]]] = len(left[holder])
            changes |= _by_block(type(network).__name__, config, listed, left[holder])
    return changes


def _fields(network: Any) -> dict[str, Any]:
    """The config as a dictionary, of diffusers or transformers."""
    config = getattr(network, "config", None)
    if config is None:
        raise ConfigError(f"depth: expected a network of diffusers or transformers, got a {type(network).__name__} without config.")
    return config.to_dict() if hasattr(config, "to_dict") else dict(config)


def _names(network: nn.Module, config: Mapping[str, Any]) -> Names:
    holders = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and DEPTHS.get(name.rpartition(".")[2]) in config
    ]
    return {holder: [f"{holder}.{i}" for i in range(config[DEPTHS[holder.rpartition(".")[2]]])] for holder in holders}


def _by_block(kind: str, config: Mapping[str, Any], listed: list[str], left: list[str]) -> dict[str, Any]:
    """Fields that say something of each block by its number, and the blocks that cannot go."""
    stays = [listed.index(name) for name in left]
    if kind == "SD3Transformer2DModel":
        if listed[-1] not in left:
            raise ConfigError(f"depth: {listed[-1]} ends the text stream, which no other block does. Keep it.")
        dual = config.get("dual_attention_layers") or ()
        return {"dual_attention_layers": [new for new, old in enumerate(stays) if old in dual]} if dual else {}
    if kind == "DiTTransformer2DModel" and listed[0] not in left:
        raise ConfigError(f"depth: the output layer shares the embedder of {listed[0]}. Keep it.")
    kinds = config.get("layer_types")
    if kinds is None:
        return {}
    # a network that was cut already has the kinds of the layers that stay
    return {"layer_types": [kinds[old] for old in stays] if len(kinds) == len(listed) else list(kinds)}


def _keep_some(holder: str, listed: list[str], left: list[str]) -> None:
    if not left:
        raise ConfigError(
            f"depth: expected at least one block left in {holder}, got all {len(listed)} removed. Keep one of {', '.join(listed)}."
        )


def _unet_names(config: Mapping[str, Any]) -> Names:
    """Blocks of each spatial transformer, from the config."""
    depth, kinds = config["transformer_layers_per_block"], config["down_block_types"]
    depths = [depth] * len(kinds) if isinstance(depth, int) else list(depth)
    resnets = config["layers_per_block"]
    resnets = [resnets] * len(kinds) if isinstance(resnets, int) else list(resnets)
    upward = config.get("reverse_transformer_layers_per_block") or depths[::-1]
    sides = [
        ("down_blocks", kinds, depths, resnets),
        ("up_blocks", config["up_block_types"], upward, [n + 1 for n in resnets[::-1]]),
    ]
    found = [
        (f"{side}.{i}.attentions.{j}", _at(by_block[i], j))
        for side, types, by_block, counts in sides
        for i, kind in enumerate(types)
        if "CrossAttn" in kind
        for j in range(counts[i])
    ]
    if "CrossAttn" in (config.get("mid_block_type") or ""):
        found.append(("mid_block.attentions.0", _at(depths[-1], 0)))
    return {f"{name}.transformer_blocks": [f"{name}.transformer_blocks.{k}" for k in range(count)] for name, count in found}


def _unet_changes(config: Mapping[str, Any], names: Names, left: Names) -> dict[str, Any]:
    """Depths per transformer, downward and upward; the middle has the last depth of the way down."""
    for holder, listed in names.items():
        _keep_some(holder, listed, left[holder])

    def depths(side: str, kinds: Sequence[str]) -> list[Any]:
        counts = [[len(rest) for holder, rest in left.items() if holder.startswith(f"{side}.{i}.")] for i in range(len(kinds))]
        return [1 if not each else each[0] if len(set(each)) == 1 else each for each in counts]  # 1: not read

    down = depths("down_blocks", config["down_block_types"])
    middle = left.get("mid_block.attentions.0.transformer_blocks")
    if middle is not None:
        last = f"down_blocks.{len(down) - 1}.attentions.0"
        if "CrossAttn" not in config["down_block_types"][-1]:
            down[-1] = len(middle)
        elif _at(down[-1], 0) != len(middle):
            raise ConfigError(
                f"depth: a stock U-Net has as many blocks in mid_block.attentions.0 as in {last}, got {len(middle)} and "
                f"{_at(down[-1], 0)} left. Remove as many of both."
            )
    return {
        "transformer_layers_per_block": down,
        "reverse_transformer_layers_per_block": depths("up_blocks", config["up_block_types"]),
    }


def _at(depth: int | Sequence[int], place: int) -> int:
    return depth if isinstance(depth, int) else depth[place]
