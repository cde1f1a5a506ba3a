"""How the bundled language model was made: next-token cross-entropy on solved problems of the tasks, from one seed."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from studio.errors import ConfigError
from studio.text import world
from studio.text.card import write_card
from studio.text.tasks import Problem
from studio.text.tokenizer import LENGTH, build_tokenizer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

Report = Callable[[str], None]
Rates = dict[str, dict[int, float]]  # task -> level -> share of completions that verify

AHEAD = 16  # batches drawn at once and sorted by length, so that little is padded
LONGEST = 96  # tokens of a completion when pass rates are measured
TEST_SEED = 7


@dataclass(frozen=True)
class Pretrain:
    """Settings; the defaults made the shipped weights on two CPU cores."""

    seed: int = 0
    tokens: Annotated[int, Field(ge=1)] = 16_000_000  # of prompts and completions that are read, the whole budget
    batch: int = 32  # problems per step
    learning_rate: float = 3e-3  # highest, after the warm-up
    warmup: float = 0.02  # share of the tokens over which the learning rate rises
    weight_decay: float = 0.05
    weights: dict[str, float] = field(default_factory=lambda: dict.fromkeys(world.TASKS, 1.0))  # share of each task
    # the levels of each task, drawn alike; one may be named twice
    levels: dict[str, tuple[int, ...]] = field(default_factory=lambda: dict.fromkeys(world.TASKS, (1, 2, 2, 3)))
    ceiling: float = 0.5  # pass rate at its usual level from which on a task is `spared`, so that something is left to learn
    spared: float = 0.05  # factor on the share of such a task, until its pass rate falls again
    looks: Annotated[int, Field(ge=1)] = 25  # how often pass rates are measured on the way
    width: int = 128
    layers: int = 4
    heads: int = 4
    test: int = 256  # held-out problems per task and level in the card


def pretrain(folder: Path, settings: Pretrain, report: Report = print) -> Rates:
    """Train and write model, tokenizer, generation settings and card into `folder`; the pass rates at the end."""
    _check(settings)
    torch.manual_seed(settings.seed)
    started = time.monotonic()
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, settings)
    report(f"{sum(p.numel() for p in model.parameters()):,} parameters, {settings.tokens:,} tokens")
    train(model, tokenizer, settings, report)
    seconds = time.monotonic() - started
    rates = pass_rates(model, tokenizer, settings.weights, settings.test, settings.seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_card(folder, settings, rates, seconds)
    for task, levels in rates.items():
        report(f"{task}: " + ", ".join(f"level {level} {rate:.2f}" for level, rate in levels.items()))
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
    """AdamW with warm-up and cosine until the budget is read or all tasks are at the ceiling; prompts are not in the loss."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))
    weights = dict(settings.weights)
    read, step, looked = 0, 0, 0
    pad: Any = tokenizer.pad_token_id
    model.train()
    for tokens, labels in batches(tokenizer, settings, weights):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate_at(read / settings.tokens, settings.warmup)
        loss = completion_loss(model, tokens, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        read, step = read + int(tokens.ne(pad).sum()), step + 1
        if read * settings.looks // settings.tokens > looked:
            looked = read * settings.looks // settings.tokens
            found = usual_rates(model, tokenizer, list(weights))
            weights |= remaining(settings, found)
            rates = ", ".join(f"{task} {rate:.2f}" for task, rate in found.items())
            report(f"step {step}, {read:,} tokens, loss {loss.item():.4f}; {rates}")
            if min(found.values()) >= settings.ceiling:
                break
        if read >= settings.tokens:
            break
    model.eval()


def completion_loss(model: LlamaForCausalLM, tokens: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the labeled tokens; tokens [B, L] padded on the right, labels [B, L] with -100 elsewhere."""
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=-100)


def remaining(settings: Pretrain, found: Mapping[str, float]) -> dict[str, float]:
    """Task -> its share of the next problems: the configured one, times `spared` where the pass rate is at the ceiling."""
    return {task: share * (settings.spared if found[task] >= settings.ceiling else 1) for task, share in settings.weights.items()}


def rate_at(progress: float, warmup: float) -> float:
    """Factor of the learning rate after this share of the tokens: linear to 1 over `warmup`, then half a cosine to 0."""
    if progress < warmup:
        return (progress + 1e-4) / (warmup + 1e-4)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


def batches(
    tokenizer: PreTrainedTokenizerFast, settings: Pretrain, weights: Mapping[str, float]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of training problems: tokens [B, L] and labels [B, L], -100 on prompts and padding.

    The weights are read for every problem, so that the caller may change them on the way.
    """
    source = world.problems(settings.seed, weights, settings.levels)
    order = random.Random(settings.seed)
    while True:
        some = sorted(islice(source, AHEAD * settings.batch), key=lambda made: len(made.text) + len(made.solution))
        cuts = [some[at : at + settings.batch] for at in range(0, len(some), settings.batch)]
        order.shuffle(cuts)
        for cut in cuts:
            yield encoded(tokenizer, cut)


def encoded(tokenizer: PreTrainedTokenizerFast, some: Sequence[Problem]) -> tuple[Tensor, Tensor]:
    """Problems with their solutions and an end, padded on the right."""
    end: Any = tokenizer.eos_token_id
    prompts = tokenizer([made.text for made in some]).input_ids
    answers = [[*ids, end] for ids in tokenizer([made.solution for made in some]).input_ids]
    length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    pad: Any = tokenizer.pad_token_id
    tokens = torch.full((len(some), length), pad)
    labels = torch.full((len(some), length), -100)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        tokens[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    return tokens, labels


def pass_rates(model: Any, tokenizer: Any, tasks: Iterable[str], count: int, seed: int = 0) -> Rates:
    """Share of completions at temperature 1 that verify, at every level, on the same held-out problems for every seed."""
    torch.manual_seed(seed)
    return {task: {level: shares(model, tokenizer, {task: level}, count)[task] for level in world.LEVELS} for task in tasks}


def usual_rates(model: Any, tokenizer: Any, tasks: Sequence[str], count: int = 64) -> dict[str, float]:
    """The same at the usual level of each task, all of them in one batch."""
    model.eval()
    found = shares(model, tokenizer, {task: world.USUAL[task] for task in tasks}, count)
    model.train()
    return found


def shares(model: Any, tokenizer: Any, levels: Mapping[str, int], count: int) -> dict[str, float]:
    """Task -> share of `count` completions that verify, at one level each."""
    some = [
        made
        for task, level in levels.items()
        for made in islice(world.problems(TEST_SEED, {task: 1.0}, {task: (level,)}, test=True), count)
    ]
    texts = complete(model, tokenizer, some)
    right = [world.TASKS[made.info["task"]].verify(text, made.info) for made, text in zip(some, texts, strict=True)]
    return {task: sum(right[at * count : (at + 1) * count]) / count for at, task in enumerate(levels)}


@torch.no_grad()
def complete(model: Any, tokenizer: Any, some: Sequence[Problem]) -> list[str]:
    """One completion of each problem by the model's own generation settings: sampled at temperature 1."""
    asked = tokenizer([made.text for made in some], padding=True, padding_side="left", return_tensors="pt")
    made = model.generate(**asked)[:, asked.input_ids.shape[1] :]
    return tokenizer.batch_decode(made, skip_special_tokens=True)


def _check(settings: Pretrain) -> None:
    for name in ("weights", "levels"):
        unknown = sorted(getattr(settings, name).keys() - world.TASKS.keys())
        if unknown:
            known = ", ".join(world.TASKS)
            raise ConfigError(f"pretrain.{name}: expected tasks of {known}, got {', '.join(unknown)}. Name one of them.")
    missing = sorted(settings.weights.keys() - settings.levels.keys())
    if missing or not settings.weights:
        raise ConfigError(f"pretrain.levels: expected levels of every task, got none of {', '.join(missing)}. Add them.")
