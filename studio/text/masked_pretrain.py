"""How the bundled masked-diffusion language model was made: filling in masked tokens of solved problems, from one seed."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import torch
from pydantic import Field
from torch import Tensor

from studio.text import world
from studio.text.card import About, write_card
from studio.text.masked_diffusion import MaskTrace, matching_error
from studio.text.masked_network import MaskedNetwork
from studio.text.teach import Rates, Report, check_tasks, leave, pass_rates, teach
from studio.text.tokenizer import LENGTH, build_tokenizer
from studio.text.unmask import unmask

if TYPE_CHECKING:
    from transformers import ModernBertForMaskedLM, PreTrainedTokenizerFast

MASK = "<mask>"
SHOWN = 40  # times the loss is told on the way
ABOUT = About(
    "fill-mask",
    "The bundled masked-diffusion language model",
    "A `ModernBertForMaskedLM` of characters that solves small problems half-heartedly, by filling in masks.",
    "masked-text",
    """\
Its completions are made by filling in masks block by block (`limit`, `block` and `steps` below), in a recipe by the policy
`masked_text`. A completion is working, the mark `#`, the answer, and end tokens up to the limit.""",
)


@dataclass(frozen=True)
class Pretrain:
    """Settings; the defaults stay below 1.5 million parameters."""

    seed: int = 0
    tokens: Annotated[int, Field(ge=1)] = 20_000_000  # of prompts and completions that are read; a pass learns half of them
    batch: int = 32  # problems per step
    learning_rate: float = 3e-3  # highest, after the warm-up
    warmup: float = 0.02  # share of the tokens over which the learning rate rises
    weight_decay: float = 0.05
    weights: dict[str, float] = field(default_factory=lambda: dict.fromkeys(world.TASKS, 1.0))  # share of each task
    levels: dict[str, tuple[int, ...]] = field(default_factory=lambda: dict.fromkeys(world.TASKS, (1, 2, 2, 3)))
    width: int = 128
    layers: int = 6
    heads: int = 4
    limit: Annotated[int, Field(ge=1)] = 64  # tokens of a completion; the ends that fill up a shorter one are learned too
    block: Annotated[int, Field(ge=1)] = 32  # of the card's completions
    steps: Annotated[int, Field(ge=1)] = 16  # network calls for each of their blocks
    test: int = 32  # held-out problems per task and level in the card


def pretrain(folder: Path, settings: Pretrain, report: Report = print) -> Rates:
    """Train and write model, tokenizer and card into `folder`; the pass rates at the end."""
    check_tasks(settings)
    torch.manual_seed(settings.seed)
    started = time.monotonic()
    tokenizer = masked_tokenizer()
    network = MaskedNetwork(build_model(tokenizer, settings), tokenizer.mask_token_id)  # type: ignore[arg-type]
    report(f"{sum(p.numel() for p in network.parameters()):,} parameters, {settings.tokens:,} tokens")
    train(network, tokenizer, settings, report)
    seconds = time.monotonic() - started
    rates = pass_rates(partial(complete, network, tokenizer, settings), settings.weights, settings.test)
    leave(folder, network.lm, tokenizer, rates, report)
    write_card(folder, ABOUT, settings, rates, seconds)
    report(f"done in {time.monotonic() - started:.0f} s")
    return rates


def masked_tokenizer() -> PreTrainedTokenizerFast:
    """The characters of the causal model, and `<mask>` after them."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"mask_token": MASK})
    return tokenizer


def build_model(tokenizer: PreTrainedTokenizerFast, settings: Pretrain) -> ModernBertForMaskedLM:
    """An untrained ModernBERT with tied embeddings; every layer sees the whole row, and nothing is dropped out."""
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    end: Any = tokenizer.eos_token_id
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=2 * settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=LENGTH,
        layer_types=["full_attention"] * settings.layers,
        initializer_range=0.05,
        pad_token_id=tokenizer.pad_token_id,  # type: ignore[arg-type]
        bos_token_id=None,
        eos_token_id=end,
        cls_token_id=None,
        sep_token_id=None,
    )
    return ModernBertForMaskedLM(config)


def train(network: MaskedNetwork, tokenizer: PreTrainedTokenizerFast, settings: Pretrain, report: Report) -> None:
    """Until the budget of tokens is read."""
    shown, end = 0, cast(int, tokenizer.eos_token_id)
    loss = partial(masked_loss, network, limit=settings.limit, end=end)
    for done in teach(network, tokenizer, settings, settings.weights, loss):
        if done.read * SHOWN // settings.tokens > shown or done.read >= settings.tokens:
            shown = done.read * SHOWN // settings.tokens
            report(f"step {done.step}, {done.read:,} tokens, loss {done.loss:.4f}")
    network.eval()


def masked_loss(network: MaskedNetwork, tokens: Tensor, labels: Tensor, limit: int, end: int) -> Tensor:
    """Mean likelihood bound per token, with one mask a row: the estimator that the policy is trained and judged by.

    tokens [B, L], labels [B, L] with -100 outside the answers.  One half of the rows learns its answer and the ends that fill
    the completion up to `limit`; the other half its answer alone, under the masks that stand there while it is written.
    """
    rows, answers = len(tokens), labels != -100
    start, own = answers.int().argmax(1), answers.sum(1).clamp(max=limit)
    columns = (start[:, None] + torch.arange(limit)).clamp(max=tokens.shape[1] - 1)
    place = torch.arange(limit).expand(rows, -1)
    token = torch.where(place < own[:, None], tokens.gather(1, columns), end)
    length = torch.where(torch.rand(rows) < 0.5, own, limit)
    count = 1 + (torch.rand(rows) * length).long()
    order = torch.rand(rows, limit).masked_fill(place >= length[:, None], 2.0).argsort(1).argsort(1)
    trace = MaskTrace(tokens[:, : int(start.max())], start, token, length, (order < count[:, None])[:, None])
    return matching_error(network, network.mask, trace, torch.arange(rows), torch.zeros(rows, dtype=torch.long)).mean()


def complete(network: MaskedNetwork, tokenizer: PreTrainedTokenizerFast, settings: Pretrain, asked: list[str]) -> list[str]:
    """One completion of each prompt at temperature 1."""
    prompts = [torch.tensor(ids) for ids in tokenizer(asked).input_ids]
    end: Any = tokenizer.eos_token_id
    pad: Any = tokenizer.pad_token_id
    how: dict[str, Any] = {"limit": settings.limit, "block": settings.block, "steps": settings.steps, "end": [end], "pad": pad}
    done = unmask(network.eval(), prompts, range(len(prompts)), **how)
    written = [row[:length].tolist() for row, length in zip(done.token, done.length, strict=True)]
    return tokenizer.batch_decode(written, skip_special_tokens=True)
