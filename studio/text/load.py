"""From the `model` block of a text recipe to a network and its tokenizer, and what may go wrong on the way."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from studio.errors import ConfigError, MissingError
from studio.text.recipe import Language
from studio.text.sampling import Sampling

BUNDLED = {"arithmetic": "model"}  # names that need no download


def build_policy(model: Language, sampling: Sampling, provides: frozenset[str], seed: int, engine: Any = None) -> Any:
    """The policy of a recipe."""
    import torch

    from studio.text.network import TokenNetwork
    from studio.text.policy import TokenPolicy

    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if model.device == "auto" else model.device)
    lm, tokenizer = load_model(model)
    torch.manual_seed(seed)  # adapters start from random numbers
    if model.train == "lora":
        attach_lora(lm, model)
    elif model.dtype != "float32":
        lm.float()  # what is trained stays float32
    network = TokenNetwork(lm, critic="value" in provides, recompute=model.gradient_checkpointing).to(device)
    policy = TokenPolicy(network, tokenizer, sampling, provides=provides, lora=model.train == "lora", engine=engine)
    policy.writer.uneven = engine is None  # what a server wrote is replayed in equally many forwards on every rank
    return policy


def load_model(model: Language) -> tuple[Any, Any]:
    """(causal language model in evaluation mode, tokenizer)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    place = locate(model.id)
    how: dict[str, Any] = {"revision": model.revision} if place == model.id else {}
    try:
        config = AutoConfig.from_pretrained(place, **how)
        lm = AutoModelForCausalLM.from_pretrained(
            place, dtype=getattr(torch, model.dtype), attn_implementation=model.attention, use_safetensors=True, **how
        )
        tokenizer = AutoTokenizer.from_pretrained(place, **how)
    except (OSError, ValueError, ImportError) as error:
        raise MissingError(
            f"recipe.policy.model.id: expected a causal language model in safetensors, got {model.id!r} "
            f"({str(error).splitlines()[0][:160]}). Use 'arithmetic', a local folder, or a Hub id that can be reached."
        ) from error
    capped = [name for name in ("final_logit_softcapping", "logits_scaling", "logit_scale") if getattr(config, name, None)]
    if capped:
        raise ConfigError(
            f"recipe.policy.model.id: expected a model whose logits are its head's output, got {model.id!r} with {capped[0]}. "
            "Use another model."
        )
    return lm.eval(), tokenizer


def locate(name: str) -> str:
    """The folder of a bundled model, or the name itself."""
    if name in BUNDLED:
        return str(files("studio.text") / BUNDLED[name])
    folder = Path(name).expanduser()
    return str(folder) if folder.is_dir() else name


def attach_lora(lm: Any, model: Language) -> None:
    """Freeze the model and add adapters, kept in float32; the head stays as it is."""
    import torch
    from peft import LoraConfig

    head = lm.get_output_embeddings()
    own = next(name for name, module in lm.named_modules() if module is head)
    if any(own == name or own.endswith(f".{name}") for name in model.lora.targets):
        raise ConfigError(
            f"recipe.policy.model.lora.targets: expected linear layers below the head, got {own!r}, whose weight the likelihoods "
            "read without its adapter. Remove it."
        )
    lm.requires_grad_(False)
    settings: Any = {"r": model.lora.rank, "lora_alpha": model.lora.alpha, "task_type": "CAUSAL_LM"}
    lm.add_adapter(LoraConfig(target_modules=model.lora.targets or "all-linear", **settings))
    for parameter in lm.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
