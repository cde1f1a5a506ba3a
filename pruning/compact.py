"""The compact form: smaller matrices in a component folder. Written with the class that loads them; read without running it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from pruning.depth import depth_config
from pruning.pruned_model import RECORD, WEIGHTS, pruned_class, sha256
from pruning.sites import Group
from pruning.surgery import Kept
from studio.errors import MissingError

SCHEMA = 1
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
PRIVATE = ("_name_or_path", "_use_default_values", "quantization_config", "auto_map", "pruning")  # not the base's own config


@dataclass(frozen=True)
class Facts:
    """How a network was pruned, for pruning.json and the card."""

    base: str  # model id
    method: str
    revision: str | None = None
    seed: int = 0
    align: int = 1  # kept counts are multiples of it
    compensation: bool = False  # were the remaining weights updated in closed form?
    calibration: str | None = None  # hash of the calibration prompts
    ratios: Mapping[str, float] = field(default_factory=dict)  # kept share of "units", of "prunable" and "total" parameters
    flops: float | None = None  # kept share of one forward's multiplications


def save_compact(
    network: nn.Module,
    groups: Sequence[Group],
    kept: Kept,
    folder: Path,
    facts: Facts,
    *,
    config_changes: Mapping[str, Any] | None = None,
    max_shard_size: int | str = "5GB",
) -> None:
    """A component folder of a network that `surgery.cut` has sliced.

    groups: as found before the cut. config_changes: the depth that is left; None = what follows from the dropped blocks, {}
    for a network whose config states it already.
    """
    made: Any = as_compact(network, groups, kept, facts, config_changes)
    made.save_pretrained(folder, max_shard_size=max_shard_size)


def as_compact(
    network: nn.Module, groups: Sequence[Group], kept: Kept, facts: Facts, config_changes: Mapping[str, Any] | None = None
) -> nn.Module:
    """The same weights, shared, in the class that states their shapes in its config."""
    plain = stock(network, depth_changes(network, groups, kept, config_changes))
    state = network.state_dict()
    pruning = {"shapes": other_shapes(plain, {key: list(value.shape) for key, value in state.items()}), **asdict(facts)}
    with torch.device("meta"):
        made = network_class(type(plain)).from_config({**plain_config(plain), "pruning": pruning})
    made.load_state_dict(state, assign=True)
    made.record = record(groups, kept, facts, "compact", before=whole_size(network), after=count(network))
    return made


def load_compact(folder: Path | str) -> nn.Module:
    """The network of a component folder, pruned or not, in eval mode; runs no code of the folder.

    Hashes are compared before anything is read. Without pruning.json the shapes in the files alone decide.
    """
    from accelerate import init_empty_weights
    from safetensors import safe_open
    from safetensors.torch import load_file

    folder = Path(folder)
    config = read(folder / "config.json")
    found = read(folder / RECORD) if (folder / RECORD).is_file() else None
    files = weight_files(folder)
    if found is not None:
        verify(files, found)
    shapes: dict[str, list[int]] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as stored:
                shapes |= {key: stored.get_slice(key).get_shape() for key in stored.keys()}  # noqa: SIM118  not a dict
        except Exception as error:  # safetensors' own error is no OSError
            raise _damaged(file, f"a file that cannot be read ({error})") from error
    base = _base(folder, config)
    plain = {key: value for key, value in config.items() if key not in PRIVATE}
    try:
        with init_empty_weights():  # the meta device for parameters only: buffers that are not stored are computed
            network: Any = base.from_config(plain)
            other = other_shapes(network, shapes)
            if other or str(config.get("_class_name")).startswith("Pruned"):
                network = network_class(base).from_config({**plain, "pruning": {**config.get("pruning", {}), "shapes": other}})
                network.record = found
        network.load_state_dict({key: value for file in files for key, value in load_file(file).items()}, assign=True)
    except (RuntimeError, ValueError, TypeError, ArithmeticError) as error:  # whatever an odd config or tensor leads to
        raise _damaged(folder, f"others ({' '.join(str(error).split())[:300]})", f"the tensors of a {base.__name__}") from error
    return network.eval()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a component folder; MissingError where there are pickles, or none."""
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
    if pickles:
        raise MissingError(
            f"{folder}: expected safetensors only, got {pickles[0]}, a pickle, which can run code when it is opened. "
            "Convert it where you trust it, and remove it here."
        )
    index = folder / f"{WEIGHTS}.index.json"
    names = sorted(set(read(index).get("weight_map", {}).values())) if index.is_file() else []
    names = names or [path.name for path in sorted(folder.glob("*.safetensors"))]
    absent = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if absent or not names:
        raise _damaged(folder, f"no {absent[0]}" if absent else "none", "its safetensors files")
    return [folder / name for name in names]


def verify(files: Sequence[Path], found: Mapping[str, Any]) -> None:
    """MissingError unless every weight file has the hash that pruning.json states."""
    stated = found.get("sha256", {})
    for name in stated.keys() - {file.name for file in files}:
        raise _damaged(files[0].parent / name, "no such file", "a weight file that pruning.json lists")
    for file in files:
        got = sha256(file)
        if got != stated.get(file.name):
            raise _damaged(file, got, f"the sha256 that pruning.json states ({stated.get(file.name, 'none')})")


def record(groups: Sequence[Group], kept: Kept, facts: Facts, form: str, *, before: int, after: int) -> dict[str, Any]:
    """What pruning.json says, but for versions and hashes."""
    stated = [
        {"name": group.name, "kind": group.kind, "n_before": group.units, "kept": kept[group.name].tolist()}
        for group in groups
        if group.name in kept
    ]
    return {"schema": SCHEMA, "form": form, **asdict(facts), "parameters": {"before": before, "after": after}, "groups": stated}


def depth_changes(network: nn.Module, groups: Sequence[Group], kept: Kept, given: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """`given`, or what becomes of the config without the blocks of which nothing is kept."""
    return depth_config(network, dropped(groups, kept)) if given is None else given


def dropped(groups: Sequence[Group], kept: Kept) -> list[str]:
    """Names of the blocks that are gone."""
    return [group.name for group in groups if group.kind == "blocks" and group.name in kept and not len(kept[group.name])]


def stock(network: nn.Module, config_changes: Mapping[str, Any] | None = None) -> nn.Module:
    """The diffusers class of this network on the meta device, at the shapes of its config."""
    kind: Any = next(kind for kind in type(network).__mro__ if kind.__module__.startswith("diffusers."))
    with torch.device("meta"):
        return kind.from_config({**plain_config(network), **(config_changes or {})})


def plain_config(network: nn.Module) -> dict[str, Any]:
    """Its config as the stock class takes it: keys that were defaults are stated, those of loading and pruning are not."""
    config: Any = network.config
    return {key: value for key, value in config.items() if key not in PRIVATE and key != "_class_name"}


def other_shapes(network: nn.Module, shapes: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """Those of a state dict that `network` does not have."""
    own = {key: list(value.shape) for key, value in network.state_dict().items()}
    return {key: list(shape) for key, shape in shapes.items() if own.get(key) != list(shape)}


def whole_size(network: nn.Module) -> int:
    """Parameters before any cut: as pruning.json said where it was loaded from, else those of its config."""
    found = getattr(network, "record", None) or {}
    return found["parameters"]["before"] if "parameters" in found else count(stock(network))


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@cache
def network_class(base: type) -> Any:
    """The class that loads compact folders of `base`, under the module name that their model_index.json lists."""
    import diffusers

    short = base.__name__
    for ending in ("Model", "2D", "Transformer", "2DCondition"):
        short = short.removesuffix(ending) or short
    name = f"pruned_{short.lower()}"
    made = pruned_class(base, name)
    # diffusers takes a component under a foreign library name only when that module is imported already, and compares the
    # component with the ModelMixin that it finds there.
    module: Any = sys.modules.setdefault(name, ModuleType(name))
    module.ModelMixin = diffusers.ModelMixin
    setattr(module, made.__name__, made)
    return made


def read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(file, f"{type(error).__name__}: {error}", "a JSON file") from error
    if not isinstance(found, dict):
        raise _damaged(file, type(found).__name__, "a JSON object")
    return found


def _base(folder: Path, config: Mapping[str, Any]) -> Any:
    """The diffusers class that the config names, with or without our prefix."""
    import diffusers

    name = str(config.get("_class_name"))
    found = getattr(diffusers, name.removeprefix("Pruned"), None)
    if not (isinstance(found, type) and issubclass(found, diffusers.ModelMixin)):
        raise MissingError(
            f"{folder / 'config.json'}: expected the class of a diffusers model in _class_name, got {name!r}. "
            "Name the folder of a transformer or UNet; a newer model needs a newer diffusers."
        )
    return found


def _damaged(place: Path, got: str, expected: str = "a safetensors file") -> MissingError:
    return MissingError(
        f"{place}: expected {expected}, got {got}. The folder was damaged or changed: copy, download or export it again."
    )
