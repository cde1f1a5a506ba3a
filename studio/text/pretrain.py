"""How the bundled language model was made: next-token cross-entropy on solved problems of the tasks, from one seed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from studio.text import world
from studio.text.card import About, write_card
from studio.text.teach import Rates, Report, check_tasks, leave, pass_rates, shares, teach
from studio.text.tokenizer import LENGTH, build_tokenizer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

LONGEST = 96  # tokens of a completion when pass rates are measured
LOOK = 64  # problems per task when they are measured on the way
ABOUT = About(
    "text-generation",
    "The bundled language model",
    """\
A `LlamaForCausalLM` of characters that solves small problems half-heartedly: often enough that reinforcement learning has
something to reward, rarely enough that it has something to gain.""",
    "text",
    """\
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("studio/text/model")
    tokenizer = AutoTokenizer.from_pretrained("studio/text/model")
    asked = tokenizer("347+958=", return_tensors="pt")
    print(tokenizer.decode(model.generate(**asked)[0], skip_special_tokens=True))  # 347+958=7+8=15 4+5+1=10 3+9+1=13 #1305

A completion is working, the mark `#`, the answer, and the end token.""",
)


@dataclass(frozen=True)
class Pretrain:
    """Settings; the defaults made the shipped weights on two CPU cores."""

    seed: int = 0
    tokens: Annotated[int, Field(ge=1)] = 12_000_000  # of prompts and completions that are read, the whole budget
    batch: int = 32  # problems per step
    learning_rate: float = 3e-3  # highest, after the warm-up
    warmup: float = 0.02  # share of the tokens over which the learning rate rises
    weight_decay: float = 0.05
    # share of each task; countdown is learned slowly
    weights: dict[str, float] = field(default_factory=lambda: dict.fromkeys(world.TASKS, 1.0) | {"countdown": 3.0})
    # the levels of each task, drawn alike; one may be named twice
    levels: dict[str, tuple[int, ...]] = field(default_factory=lambda: dict.fromkeys(world.TASKS, (1, 2, 2, 3)))
    judged: int = 2  # level at which pass rates are measured on the way
    ceiling: float = 0.45  # such a rate from which on a task is `spared`, so that something is left to learn
    spared: float = 0.0  # factor on the share of such a task, until its pass rate falls again
    looks: Annotated[int, Field(ge=1)] = 40  # how often pass rates are measured on the way
    width: int = 128
    layers: int = 4
    heads: int = 4
    test: int = 256  # held-out problems per task and level in the card


def pretrain(folder: Path, settings: Pretrain, report: Report = print) -> Rates:
    """Train and write model, tokenizer, generation settings and card into `folder`; the pass rates at the end."""
    check_tasks(settings)
    torch.manual_seed(settings.seed)
    started = time.monotonic()
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, settings)
    report(f"{sum(p.numel() for p in model.parameters()):,} parameters, {settings.tokens:,} tokens")
    train(model, tokenizer, settings, report)
    seconds = time.monotonic() - started
    rates = pass_rates(partial(complete, model, tokenizer), settings.weights, settings.test, settings.seed)
    leave(folder, model, tokenizer, rates, report)
    write_card(folder, ABOUT, settings, rates, seconds)
    report(f"done in {time.monotonic() - started:.0f} s")
    return rates


def build_model(tokenizer: PreTrainedTokenizerFast, settings: Pretrain) -> LlamaForCausalLM:
    """An untrained Llama with tied embeddings; it samples at temperature 1 unless told otherwise."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    ends: Any = dict(bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=3 * settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        **ends,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, max_new_tokens=LONGEST, **ends)
    return model


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, settings: Pretrain, report: Report) -> None:
    """Until the budget is read or all tasks are at the ceiling; prompts are not in the loss."""
    weights, looked = dict(settings.weights), 0
    model.train()
    for done in teach(model, tokenizer, settings, weights, partial(completion_loss, model)):
        if done.read * settings.looks // settings.tokens == looked:
            continue
        looked = done.read * settings.looks // settings.tokens
        model.eval()
        found = shares(partial(complete, model, tokenizer), dict.fromkeys(weights, settings.judged), LOOK)
        model.train()
        weights |= remaining(settings, found)
        rates = ", ".join(f"{task} {rate:.2f}" for task, rate in found.items())
        report(f"step {done.step}, {done.read:,} tokens, loss {done.loss:.4f}; {rates}")
        if min(found.values()) >= settings.ceiling:
            break
    model.eval()


def completion_loss(model: LlamaForCausalLM, tokens: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the labeled tokens; tokens [B, L] padded on the right, labels [B, L] with -100 elsewhere."""
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=-100)


def remaining(settings: Pretrain, found: Mapping[str, float]) -> dict[str, float]:
    """Task -> its share of the next problems: the configured one, times `spared` where the pass rate is at the ceiling."""
    return {task: share * (settings.spared if found[task] >= settings.ceiling else 1) for task, share in settings.weights.items()}


@torch.no_grad()
def complete(model: Any, tokenizer: Any, prompts: list[str]) -> list[str]:
    """One completion of each prompt by the model's own generation settings: sampled at temperature 1."""
    asked = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
    made = model.generate(**asked)[:, asked.input_ids.shape[1] :]
    return tokenizer.batch_decode(made, skip_special_tokens=True)
