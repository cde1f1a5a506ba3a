"""The model card of a pruned pipeline: what is gone by kind, what that saves, and how to load what is left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studio.card import BUNDLED, FAMILY, Pair, pictures, public, settings, versions
from studio.license import License, is_hub_id
from studio.run import RunView

FIGURES = {
    "params_kept": "parameters kept",
    "flops_kept": "operations kept",
    "latency_ratio": "time of one forward, of the base's",
    "latent_error": "error of the final latents",
}
LOADS = {
    "compact": "The layers have widths of their own: their class is the `.py` file beside the weights, which diffusers runs only "
    "with `trust_remote_code=True`. It imports torch and diffusers only. Read it before you allow that, and name the revision that "
    "you have read: without it, whatever is uploaded later runs too.",
    "dense": "The original shapes with zeros in place: stock classes load it; it is neither smaller nor faster.",
    "depth": "Whole blocks are gone: stock classes load it.",
}


def write_pruned_card(
    view: RunView, facts: Mapping[str, Any], record: Mapping[str, Any], license: License, pairs: list[Pair], folder: Path
) -> None:
    head = front_matter(facts, license, pairs)
    (folder / "README.md").write_text(f"---\n{head}\n---\n\n{body(view, facts, record, license, pairs)}", encoding="utf-8")


def front_matter(facts: Mapping[str, Any], license: License, pairs: list[Pair]) -> str:
    from huggingface_hub import ModelCardData

    family = "sd3.5" if "3.5" in str(facts["base"]) else FAMILY.get(facts["pipeline"])
    data = ModelCardData(
        base_model=facts["base"] if is_hub_id(facts["base"]) else None,
        base_model_relation="finetune",
        library_name="diffusers",
        pipeline_tag="text-to-image",
        license=license.id,
        license_name=license.name,
        license_link=license.link,
        tags=["text-to-image", "diffusers", "pruned", *([family] if family else []), "studio"],
        widget=[{"text": pair.prompt, "output": {"url": pair.after}} for pair in pairs],
    )
    return data.to_yaml().strip()


def body(view: RunView, facts: Mapping[str, Any], record: Mapping[str, Any], license: License, pairs: list[Pair]) -> str:
    base, form, size = public(str(facts["base"])), record["form"], record["parameters"]
    sections = [
        f"# {view.name}",
        f"`{base}` pruned by {record['method']}: the {facts['component']} had {size['before']:,} parameters and has "
        f"{size['after']:,} in this folder (form: {form}).",
        "<Gallery />" if pairs else "",
        pictures(pairs, ""),
        "## Use in Alignment Studio\n\nName the folder in a recipe; no code of it is run, and the weights are compared with the "
        "hashes in `pruning.json`:\n\n```yaml\nmodel: {id: ./THIS-FOLDER}\n```",
        f"## Use with diffusers\n\n{LOADS[form]}\n\n```python\n{_stock(facts, form)}\n```",
        f"## What is gone\n\n{sparsity(record['groups'])}\n\n{_how(record)}",
        _measured(view),
        f"## Settings\n\n```yaml\n{settings(view)}\n```\n\n{versions(view)}",
        f"## Limitations\n\nWhat the calibration prompts do not need may be gone; compare on your own prompts.{_bundled(facts)}",
        f"## License and attribution\n\nWeights: {license.text}",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def sparsity(groups: list[dict[str, Any]]) -> str:
    """A row per kind: units before and after, and the share that is gone."""
    lines = ["| kind | units before | kept | sparsity |", "|---|---|---|---|"]
    for kind in dict.fromkeys(group["kind"] for group in groups):
        before = sum(group["n_before"] for group in groups if group["kind"] == kind)
        kept = sum(len(group["kept"]) for group in groups if group["kind"] == kind)
        lines.append(f"| {kind} | {before} | {kept} | {1 - kept / before:.1%} |")
    return "\n".join(lines)


def _stock(facts: Mapping[str, Any], form: str) -> str:
    if form != "compact":
        return f'from diffusers import {facts["pipeline"]}\n\npipe = {facts["pipeline"]}.from_pretrained("THIS-REPOSITORY")'
    return (
        "from diffusers import DiffusionPipeline\n\n"
        'pipe = DiffusionPipeline.from_pretrained("THIS-REPOSITORY", revision="THE-COMMIT-YOU-READ", trust_remote_code=True)'
    )


def _how(record: Mapping[str, Any]) -> str:
    words = [f"Method `{record['method']}`, seed {record['seed']}"]
    words += [f"kept counts are multiples of {record['align']}"] if record["align"] > 1 else []
    words += ["the remaining weights were compensated in closed form"] if record["compensation"] else []
    words += [f"calibration prompts {record['calibration']}"] if record["calibration"] else []
    kept = [f"{value:.1%} of {name}" for name, value in record["ratios"].items()]
    kept += [f"{record['flops']:.1%} of the operations"] if record["flops"] is not None else []
    return "; ".join(words) + "." + (f" Kept: {', '.join(kept)}." if kept else "")


def _measured(view: RunView) -> str:
    """The run's own figures, with the device they were measured on."""
    found = view.summary or {}
    rows = [f"| {word} | {found[name]:.4g} |" for name, word in FIGURES.items() if isinstance(found.get(name), int | float)]
    if not rows:
        return ""
    device = view.env.get("device")
    return f"## Results\n\nMeasured{f' on {device}' if device else ''} by the run:\n\n| figure | value |\n|---|---|\n" + "\n".join(
        rows
    )


def _bundled(facts: Mapping[str, Any]) -> str:
    if facts["base"] not in BUNDLED:
        return ""
    return f" The base is in the package of Alignment Studio, in `{BUNDLED[facts['base']]}`."
