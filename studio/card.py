"""The model card of an export: a pure function of the run folder, so that the same run gives the same bytes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import yaml

from studio.layout import inside
from studio.license import License, is_hub_id
from studio.recipe import Recipe
from studio.results import Row, results
from studio.run import RunView

IMAGES = "images"  # folder of the sample pairs, beside the card
PAIRS = 4
BUNDLED = {"shapes": "flows/shapes/pipeline"}  # bases that are on no Hub
RELATION = {"lora": "adapter", "pipeline": "finetune"}
FAMILY = {"StableDiffusion3Pipeline": "sd3", "FluxPipeline": "flux", "StableDiffusionXLPipeline": "sdxl"}
SECRET = re.compile(r"(?i)(^|[._-])(token|secret|password|api[_-]?key)$")


@dataclass(frozen=True)
class Pair:
    """The same prompt and seed, drawn by the base and by the trained model; files relative to the card."""

    prompt: str
    before: str
    after: str


def copy_pairs(view: RunView, step: int, folder: Path) -> list[Pair]:
    """Copy up to PAIRS pictures of step 0 and their counterparts of the last samples at or before `step`."""
    steps = [at for at in view.sample_steps() if at <= step]
    if len(steps) < 2 or steps[0] != 0:
        return []
    base, last = ({(r["prompt"], r["seed"]): r["file"] for r in view.samples(at) if "seed" in r} for at in (0, steps[-1]))
    pairs = []
    for prompt, seed in [key for key in base if key in last][:PAIRS]:
        names = []
        for side, file in (("before", base[prompt, seed]), ("after", last[prompt, seed])):
            name = f"{IMAGES}/{len(pairs):03d}-{side}{file.suffix}"
            (folder / IMAGES).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, inside(folder, name))
            names.append(name)
        pairs.append(Pair(prompt, *names))
    return pairs


def write_card(view: RunView, recipe: Recipe, facts: Mapping[str, Any], license: License, pairs: list[Pair], folder: Path) -> None:
    rows = results(view, facts["step"], averaged=facts["weights"] == "ema")
    head = front_matter(view, recipe, facts, license, pairs, rows)
    (folder / "README.md").write_text(f"---\n{head}\n---\n\n{body(view, recipe, facts, license, pairs, rows)}", encoding="utf-8")


def front_matter(
    view: RunView, recipe: Recipe, facts: Mapping[str, Any], license: License, pairs: list[Pair], rows: list[Row]
) -> str:
    """What the Hub reads: base and relation, license, tags, gallery, results."""
    from huggingface_hub import EvalResult, ModelCardData

    lora = facts["format"] == "lora"
    family = "sd3.5" if "3.5" in str(facts["base"]) else FAMILY.get(facts["pipeline"])
    tags = ["text-to-image", "diffusers", "diffusers-training", *(["lora", "template:sd-lora"] if lora else [])]
    measured = [
        EvalResult("text-to-image", "prompts", "held-out prompts of the run", row.name, round(row.after, 6), metric_name=row.name)
        for row in rows
        if row.after is not None and row.kind != "guard"
    ]
    data = ModelCardData(
        base_model=facts["base"] if is_hub_id(facts["base"]) else None,
        base_model_relation=RELATION[facts["format"]],
        library_name="diffusers",
        pipeline_tag="text-to-image",
        license=license.id,
        license_name=license.name,
        license_link=license.link,
        tags=[*tags, "reinforcement-learning", *([family] if family else []), "studio"],
        widget=[{"text": pair.prompt, "output": {"url": pair.after}} for pair in pairs],
        metrics=sorted({row.name for row in rows if row.kind != "guard"}),
        model_name=view.name if measured else None,
        eval_results=measured or None,
    )
    return data.to_yaml().strip()


def body(view: RunView, recipe: Recipe, facts: Mapping[str, Any], license: License, pairs: list[Pair], rows: list[Row]) -> str:
    base = public(str(facts["base"]))
    kind = "A LoRA adapter" if facts["format"] == "lora" else "The whole pipeline"
    averaged = "averaged weights" if facts["weights"] == "ema" and recipe.train.ema else "weights as the optimizer left them"
    sections = [
        f"# {view.name}",
        f"{kind} for `{base}` (relation: {RELATION[facts['format']]}), aligned with "
        f"{', '.join(recipe.rewards)} by {recipe.algorithm.name}.",
        "<Gallery />" if pairs else "",
        pictures(pairs, drawn_at(view, facts)),
        "## Use with diffusers\n\n" + _usage(recipe, facts, base),
        _comfy(facts),
        f"## Training\n\n{method(recipe)}\n\nStep {facts['step']}, {averaged}. Every reward:\n\n{rewards_table(recipe)}\n\n"
        f"Settings, without machine paths and secrets:\n\n```yaml\n{settings(view)}\n```\n\n{versions(view)}",
        "## Results\n\n" + results_table(rows, drawn_at(view, facts)),
        "## Limitations\n\n" + limitations(view, facts),
        "## License and attribution\n\n" + f"Weights: {license.text} Each reward model has the license in the table above.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def public(value: Any) -> Any:
    """Settings as they may be published: paths of this machine by their last part, no secrets, no server addresses."""
    if isinstance(value, Mapping):
        return {key: "(removed)" if SECRET.search(str(key)) and item else public(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [public(item) for item in value]
    if isinstance(value, str) and re.match(r"[a-z]+://", value):
        return "(an address)"
    if isinstance(value, str) and (PurePath(value).is_absolute() or value.startswith("~")):
        return PurePath(value).name
    return value


def drawn_at(view: RunView, facts: Mapping[str, Any]) -> str:
    """Which weights pictures and figures are of: an evaluation comes every few steps, and uses the averaged weights."""
    last = max((at for at in view.sample_steps() if at <= facts["step"]), default=0)
    words = [f"at step {last}"] if last != facts["step"] else []
    words += ["of the averaged weights, not of these"] if facts["weights"] == "live" else []
    return " " + " ".join(words) if words else ""


def pictures(pairs: list[Pair], when: str) -> str:
    if not pairs:
        return ""
    rows = "\n".join(f"| {_cell(p.prompt)} | ![before]({p.before}) | ![after]({p.after}) |" for p in pairs)
    which = f"; after is{when}" if when else ""
    return f"Same prompts, same seeds{which}:\n\n| prompt | before | after |\n|---|---|---|\n{rows}"


def _usage(recipe: Recipe, facts: Mapping[str, Any], base: str) -> str:
    policy = recipe.policy.options
    sampler, model = policy.sampler, policy.model
    guidance = model.embedded_guidance if facts["pipeline"] == "FluxPipeline" else sampler.guidance
    call = [f"num_inference_steps={sampler.eval_steps}", f"guidance_scale={guidance:g}"]
    call += [f"max_sequence_length={model.text_length}"] if facts["pipeline"] != "StableDiffusionXLPipeline" else []
    call += [f"height={model.resolution}", f"width={model.resolution}"] if model.resolution else []
    lora = facts["format"] == "lora"
    source = f'"{BUNDLED.get(base, base)}"' if lora else '"THIS-REPOSITORY"'
    source += f', revision="{model.revision}"' if lora and model.revision and is_hub_id(str(facts["base"])) else ""
    lines = [
        f"from diffusers import {facts['pipeline']}",
        "",
        f"pipe = {facts['pipeline']}.from_pretrained({source})",
        'pipe.load_lora_weights("THIS-REPOSITORY", weight_name="pytorch_lora_weights.safetensors")' if lora else "",
        f'image = pipe("a prompt", {", ".join(call)}).images[0]',
    ]
    notes = []
    if facts["base"] in BUNDLED:
        notes.append(f"`{BUNDLED[facts['base']]}` is the folder of the base in the package of Alignment Studio.")
    if lora:
        notes.append("The trained strength is folded into the file: scale 1 is what was trained.")
    if sampler.grid == "even":
        notes.append(f"Trained and evaluated on an even grid with shift {sampler.grid_shift:g}, not the scheduler's own.")
    return "```python\n" + "\n".join(line for line in lines if line) + "\n```\n\n" + " ".join(notes)


def _comfy(facts: Mapping[str, Any]) -> str:
    if facts["format"] != "lora":
        return ""
    file = "comfyui.safetensors" if facts["component"] == "unet" else "pytorch_lora_weights.safetensors"
    return f"## Use in ComfyUI\n\nPut `{file}` into `models/loras` and load it at strength 1."


def method(recipe: Recipe) -> str:
    said = (type(recipe.algorithm.options).__doc__ or "").strip().splitlines()
    return f"Algorithm `{recipe.algorithm.name}`: {said[0] if said else ''}".rstrip(": ")


def rewards_table(recipe: Recipe) -> str:
    lines = ["| reward | role | model | license |", "|---|---|---|---|"]
    for role, blocks in (("trained", recipe.rewards), ("held out", recipe.held_out)):
        for name, block in blocks.items():
            reward: Any = block.options
            license = getattr(reward, "license", None) or "not stated"
            shown = f"{role}, weight {block.weight:g}" if role == "trained" else role
            lines.append(f"| {name} | {shown} | {_cell(public(getattr(reward, 'model_id', None)) or '-')} | {_cell(license)} |")
    return "\n".join(lines)


def settings(view: RunView) -> str:
    return yaml.safe_dump(public(view.recipe), sort_keys=False, allow_unicode=True, width=120).strip()


def versions(view: RunView) -> str:
    return "Made with " + ", ".join(f"{name} {version}" for name, version in sorted(view.env.get("versions", {}).items())) + "."


def results_table(rows: list[Row], when: str) -> str:
    if not rows:
        return "The run holds no evaluation of these weights."
    lines = [f"| measured on held-out prompts{when} | role | base | trained |", "|---|---|---|---|"]
    for row in rows:
        lines.append(f"| {row.name} | {row.kind} | {_number(row.before)} | {_number(row.after)} |")
    return "\n".join(lines)


def limitations(view: RunView, facts: Mapping[str, Any]) -> str:
    alarms = [e["message"] for e in view.events() if e.get("kind") == "alarm" and e.get("step", 0) <= facts["step"]]
    seen = "\n".join(f"- alarm: {message}" for message in dict.fromkeys(alarms)) or "No alarm was raised while it was trained."
    return f"Optimized against the rewards above; what they do not see may have become worse.\n\n{seen}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _cell(text: Any) -> str:
    return str(text).replace("|", r"\|").replace("\n", " ")
