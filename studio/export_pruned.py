"""`studio export --format pruned-...`: a prune run's network within its base pipeline, in one of three forms, with a card."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.config import build
from studio.errors import ConfigError, ExportError
from studio.export import MARK, Export, staged
from studio.files import as_json, read_json, replace
from studio.run import RunView

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pruning.formats import Form

STORED = "pruned"  # in a prune run: the network in compact form


@dataclass(frozen=True)
class Written:
    """A pruned export as it came back from the disk."""

    component: str
    pipeline: str  # class name
    error: float  # of its answers against those of the run's network, over max(1, max |v|)
    record: dict[str, Any]  # what pruning.json says


def export_pruned(view: RunView, options: Export) -> dict[str, Any]:
    """Write the folder -> the facts in its export.json, and `folder`."""
    from flows.load import Model, load_backbone, locate
    from studio.card import copy_pairs
    from studio.license import base_license
    from studio.pruned_card import write_pruned_card

    stored = view.file(STORED)
    if not (stored / "pruning.json").is_file():
        raise ConfigError(
            f"export: expected a finished run of `studio prune`, got {view.name!r}, which has no pruned network. "
            "Use --format lora or pipeline for a training run."
        )
    if options.step is not None:
        raise ConfigError(f"export: expected no --step for a pruned network, got {options.step}. It is what the run ended with.")
    model = build(Model, view.recipe["model"], where="recipe.model")
    folder = options.out if options.out is not None else view.file(f"export/{options.format}")
    form: Any = options.format.removeprefix("pruned-")
    with staged(folder) as partial:
        written = write_pruned(load_backbone(model), stored, partial, form, options.dtype)
        facts = {
            "run": view.name,
            "format": options.format,
            "base": model.id,
            "pipeline": written.pipeline,
            "component": written.component,
            "error": written.error,
            "parameters": written.record["parameters"],
        }
        place = locate(model.id)
        license = base_license(model.id, place if Path(place).is_dir() else None)
        pairs = copy_pairs(view, max(view.sample_steps(), default=0), partial)
        write_pruned_card(view, facts, written.record, license, pairs, partial)
        contents = sorted(path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file())
        replace(partial / MARK, as_json({**facts, "files": contents}, indent=1) + "\n")
    return {**facts, "folder": str(folder)}


def write_pruned(backbone: Any, stored: Path, folder: Path, form: Form, dtype: str = "float32") -> Written:
    """The backbone's pipeline with the network of the compact folder `stored`, loaded again and compared."""
    import torch

    from flows.adapter import component
    from flows.export import FLOAT32_ERROR, HALF_ERROR, difference, forget_places
    from pruning.compact import load_compact
    from pruning.formats import save_pipeline

    whole = backbone.network
    device, part = whole.device, component(whole)
    network: Any = load_compact(stored).to(device, torch.float32)
    groups, kept, facts = stated(network, whole, stored)
    wanted = probe(backbone, network)
    network.to(getattr(torch, dtype))
    save_pipeline(backbone.pipeline, network, groups, kept, folder, facts, form, config_changes={})  # its config is the shorter one
    forget_places(folder)
    again: Any = load_compact(folder / part).to(device, torch.float32)
    error = difference(probe(backbone, again), wanted)
    limit = FLOAT32_ERROR["pipeline"] if dtype == "float32" else HALF_ERROR
    if not error <= limit:
        raise ExportError(
            f"{folder}: expected the reloaded network to answer as the run's within {limit:g}, got {error:.3g}. Nothing was "
            "exported; export another form, or report this model."
        )
    said = read_json(folder / part / "pruning.json")
    return Written(part, type(backbone.pipeline).__name__, error, said)


def stated(network: Any, whole: nn.Module, stored: Path) -> tuple[list[Any], dict[str, Tensor], Any]:
    """(groups of the base network, kept units, facts) as the folder's pruning.json has them."""
    import torch

    from pruning.compact import Facts
    from pruning.sites import find_groups
    from studio.card import public

    record = network.record or {}
    names = {entry["name"]: entry for entry in record.get("groups", [])}
    groups = [group for group in find_groups(whole) if group.name in names]
    odd = set(names) - {group.name for group in groups if group.units == names[group.name]["n_before"]}
    if odd or not names:
        raise ExportError(
            f"{stored}: expected groups of the base model in pruning.json, got {', '.join(sorted(odd)[:3]) or 'none'}. "
            "Name the base that was pruned, in the model block of the run's recipe.yaml."
        )
    kept = {name: torch.tensor(entry["kept"], dtype=torch.int64) for name, entry in names.items()}
    return groups, kept, Facts(**{field.name: public(record[field.name]) for field in fields(Facts)})  # no path of this machine


def probe(backbone: Any, network: Any) -> Tensor:
    """The velocity at one fixed noise without a prompt, [1, *E]."""
    import torch

    from flows.attention import blank_condition
    from flows.denoise import RowNoise

    whole, backbone.network = backbone.network, network
    x = RowNoise([0], backbone.latent_shape)().to(network.device)
    try:
        with torch.no_grad():
            return backbone.velocity(x, x.new_full((1,), 0.5), blank_condition(network, 1, 8)).float()
    finally:
        backbone.network = whole
