"""A trained language model in a folder that transformers and PEFT load, with its card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from studio.card import drawn_at, limitations, method, public, results_table, rewards_table, settings, versions
from studio.errors import ExportError
from studio.license import License, is_hub_id
from studio.recipe import Recipe
from studio.results import Row, results
from studio.run import RunView
from studio.text.load import BUNDLED
from studio.text.policy import TokenPolicy

RELATION = {"lora": "adapter", "text": "finetune"}


@dataclass(frozen=True)
class Written:
    """What was written, and how far the reloaded model's logits are from the trained one's."""

    architecture: str
    error: float  # largest difference of logits on a probe
    effect: float  # largest difference of the base's logits from the trained one's: 0 = nothing was learned


def write_text(policy: TokenPolicy, folder: Path, *, form: str, dtype: str = "float32") -> Written:
    """The adapter as PEFT stores it (lora), or the whole model with adapters merged (text); loaded again and compared."""
    lm: Any = policy.model.lm
    probe = torch.arange(8, device=policy.device)[None] % lm.config.get_text_config().vocab_size
    with torch.no_grad():
        trained = lm(probe).logits.float()
        effect = 0.0
        if policy.lora:
            with policy.reference():
                effect = (lm(probe).logits.float() - trained).abs().max().item()
        if form == "lora":
            lm.save_pretrained(folder)
            policy.tokenizer.save_pretrained(folder)
            return Written(type(lm).__name__, 0.0, effect)
        whole = merged(policy)
        whole.to(getattr(torch, dtype)).save_pretrained(folder)
        policy.tokenizer.save_pretrained(folder)
        again = type(whole).from_pretrained(folder).to(policy.device).eval()
        error = (again(probe).logits.float() - trained).abs().max().item()
    if dtype == "float32" and error > 1e-3 * max(1.0, trained.abs().max().item()):
        raise ExportError(
            f"{folder}: expected the trained model's logits after loading again, got a difference of {error:g}. Report it."
        )
    return Written(type(whole).__name__, error, effect)


def merged(policy: TokenPolicy) -> Any:
    """The model with its adapters, if it has some, added into its weights: W + (alpha/r)·B·A."""
    lm: Any = policy.model.lm
    if not policy.lora:
        return lm
    from peft.tuners.lora import LoraLayer

    for name, module in list(lm.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, last = name.rpartition(".")
            setattr(lm.get_submodule(parent), last, module.get_base_layer())
    lm._hf_peft_config_loaded = False
    return lm


def write_card(view: RunView, recipe: Recipe, facts: Mapping[str, Any], license: License, folder: Path) -> None:
    rows = results(view, facts["step"], averaged=facts["weights"] == "ema")
    (folder / "README.md").write_text(
        f"---\n{front_matter(view, facts, license, rows)}\n---\n\n{body(view, recipe, facts, license, rows)}", encoding="utf-8"
    )


def front_matter(view: RunView, facts: Mapping[str, Any], license: License, rows: list[Row]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    lora = facts["format"] == "lora"
    measured = [
        EvalResult("text-generation", "prompts", "held-out prompts of the run", row.name, round(row.after, 6), metric_name=row.name)
        for row in rows
        if row.after is not None and row.kind != "guard"
    ]
    data = ModelCardData(
        base_model=facts["base"] if is_hub_id(facts["base"]) else None,
        base_model_relation=RELATION[facts["format"]],
        library_name="peft" if lora else "transformers",
        pipeline_tag="text-generation",
        license=license.id,
        license_name=license.name,
        license_link=license.link,
        tags=["text-generation", *(["lora"] if lora else []), "reinforcement-learning", "studio"],
        metrics=sorted({row.name for row in rows if row.kind != "guard"}),
        model_name=view.name if measured else None,
        eval_results=measured or None,
    )
    return data.to_yaml().strip()


def body(view: RunView, recipe: Recipe, facts: Mapping[str, Any], license: License, rows: list[Row]) -> str:
    base, when = public(str(facts["base"])), drawn_at(view, facts)
    kind = "A LoRA adapter" if facts["format"] == "lora" else "The whole model"
    averaged = "averaged weights" if facts["weights"] == "ema" and recipe.train.ema else "weights as the optimizer left them"
    goal = ", ".join(recipe.rewards) or "preference pairs"
    sections = [
        f"# {view.name}",
        f"{kind} for `{base}` (relation: {RELATION[facts['format']]}), aligned with {goal} by {recipe.algorithm.name}.",
        "## Use\n\n" + _usage(recipe, facts, base),
        f"## Training\n\n{method(recipe)}\n\nStep {facts['step']}, {averaged}. Every reward:\n\n{rewards_table(recipe)}\n\n"
        f"Settings, without machine paths and secrets:\n\n```yaml\n{settings(view)}\n```\n\n{versions(view)}",
        "## Results\n\n" + results_table(rows, when),
        "## Limitations\n\n" + limitations(view, facts),
        "## License and attribution\n\n" + f"Weights: {license.text} Each reward model has the license in the table above.",
    ]
    return "\n\n".join(sections) + "\n"


def _usage(recipe: Recipe, facts: Mapping[str, Any], base: str) -> str:
    sampling = recipe.policy.options.sampling
    source = f"studio/text/{BUNDLED[base]}" if base in BUNDLED else base
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    if facts["format"] == "lora":
        lines[0] = "from peft import PeftModel\n" + lines[0]
        lines += [f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{source}"), "THIS-REPOSITORY")']
    else:
        lines += ['model = AutoModelForCausalLM.from_pretrained("THIS-REPOSITORY")']
    lines += [
        'tokenizer = AutoTokenizer.from_pretrained("THIS-REPOSITORY")',
        'asked = tokenizer("a prompt", return_tensors="pt")',
        f"drawn = dict(max_new_tokens={sampling.limit}, do_sample=True, temperature={sampling.temperature:g}, top_k=0)",
        "told = model.generate(**asked, **drawn)",
        'print(tokenizer.decode(told[0, asked["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
    note = f"`{source}` is the folder of the base in the package of Alignment Studio." if base in BUNDLED else ""
    return "```python\n" + "\n".join(lines) + f"\n```\n\n{note}".rstrip()
