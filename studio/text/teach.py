"""What the making of every small language model takes: solved problems in batches, an optimizer with its schedule, pass rates."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from studio.errors import ConfigError
from studio.text import world
from studio.text.tasks import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Report = Callable[[str], None]
Rates = dict[str, dict[int, float]]  # task -> level -> share of completions that verify
Loss = Callable[[Tensor, Tensor], Tensor]  # tokens [B, L] padded on the right, labels [B, L], -100 outside of answers -> scalar
Complete = Callable[[list[str]], list[str]]  # one completion of each prompt, at temperature 1

AHEAD = 16  # batches drawn at once and sorted by length, so that little is padded
TEST_SEED = 7


class Course(Protocol):
    """What the settings of every model say."""

    @property
    def seed(self) -> int: ...
    @property
    def tokens(self) -> int: ...  # of prompts and completions that are read, the whole budget
    @property
    def batch(self) -> int: ...  # problems per step
    @property
    def learning_rate(self) -> float: ...  # highest, after the warm-up
    @property
    def warmup(self) -> float: ...  # share of the tokens over which the learning rate rises
    @property
    def weight_decay(self) -> float: ...
    @property
    def weights(self) -> dict[str, float]: ...  # share of each task
    @property
    def levels(self) -> dict[str, tuple[int, ...]]: ...  # of each task, drawn alike; one may be named twice
    @property
    def test(self) -> int: ...  # held-out problems per task and level in the card


class Done(NamedTuple):
    """A step of the optimizer."""

    step: int  # from 1
    read: int  # tokens so far
    loss: float


def check_tasks(settings: Course) -> None:
    """ConfigError for tasks that are none, or have no levels."""
    for name in ("weights", "levels"):
        unknown = sorted(getattr(settings, name).keys() - world.TASKS.keys())
        if unknown:
            known = ", ".join(world.TASKS)
            raise ConfigError(f"pretrain.{name}: expected tasks of {known}, got {', '.join(unknown)}. Name one of them.")
    missing = sorted(settings.weights.keys() - settings.levels.keys())
    if missing or not settings.weights:
        raise ConfigError(f"pretrain.levels: expected levels of every task, got none of {', '.join(missing)}. Add them.")


def teach(
    network: nn.Module, tokenizer: PreTrainedTokenizerFast, settings: Course, weights: Mapping[str, float], loss: Loss
) -> Iterator[Done]:
    """AdamW with warm-up and cosine until the budget is read or the caller stops asking; `weights` may change on the way."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    rest = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))
    pad: Any = tokenizer.pad_token_id
    read = step = 0
    for tokens, labels in batches(tokenizer, settings, weights):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate_at(read / settings.tokens, settings.warmup)
        found = loss(tokens, labels)
        found.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        read, step = read + int(tokens.ne(pad).sum()), step + 1
        yield Done(step, read, found.item())
        if read >= settings.tokens:
            return


def rate_at(progress: float, warmup: float) -> float:
    """Factor of the learning rate after this share of the tokens: linear to 1 over `warmup`, then half a cosine to 0."""
    if progress < warmup:
        return (progress + 1e-4) / (warmup + 1e-4)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


def batches(tokenizer: PreTrainedTokenizerFast, settings: Course, weights: Mapping[str, float]) -> Iterator[tuple[Tensor, Tensor]]:
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


def pass_rates(complete: Complete, tasks: Iterable[str], count: int, seed: int = 0) -> Rates:
    """Share of completions that verify, at every level, on the same `count` held-out problems for every seed."""
    torch.manual_seed(seed)
    return {task: {level: shares(complete, {task: level}, count)[task] for level in world.LEVELS} for task in tasks}


def shares(complete: Complete, levels: Mapping[str, int], count: int) -> dict[str, float]:
    """Task -> share of `count` completions that verify, at one level each; all tasks in one batch."""
    some = [
        made
        for task, level in levels.items()
        for made in islice(world.problems(TEST_SEED, {task: 1.0}, {task: (level,)}, test=True), count)
    ]
    texts = complete([made.text for made in some])
    right = [world.TASKS[made.info["task"]].verify(text, made.info) for made, text in zip(some, texts, strict=True)]
    return {task: sum(right[at * count : (at + 1) * count]) / count for at, task in enumerate(levels)}


def leave(folder: Path, lm: Any, tokenizer: PreTrainedTokenizerFast, rates: Rates, report: Report) -> None:
    """Model and tokenizer into `folder`, and the pass rates told."""
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for task, levels in rates.items():
        report(f"{task}: " + ", ".join(f"level {level} {rate:.2f}" for level, rate in levels.items()))
