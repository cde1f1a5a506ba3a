"""A reward model: a language model with a classification head that scores a prompt with its completion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from rewards.facts import Facts
from rewards.text.given import check_texts
from rewards.weights import device_of, fetch, split_revision
from studio.errors import ConfigError, MissingError
from studio.types import Prompts, Scores

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RewardModel:
    """The logit of a one-output head, or log p(label) - log(1 - p(label)) of a head with several classes.

    `chat` makes a dialog of prompt and completion with the tokenizer's template, `pair` gives both to the tokenizer as a
    pair of texts, `plain` joins them; `auto` is chat where there is a template and pair elsewhere.  Weights are read from
    safetensors only, and no code that comes with a model is run.
    """

    model: str = "Skywork/Skywork-Reward-V2-Qwen3-0.6B"  # Hub id[@revision] or folder
    form: Literal["auto", "chat", "pair", "plain"] = "auto"
    label: int = 1  # the good class of a head with several
    longest: int = 2_048  # tokens; more are cut from the beginning, so that the end of the answer is seen
    batch_size: int = 16
    device: str = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    name: ClassVar[str] = "reward_model"
    reads: ClassVar[str] = "text"
    differentiable: ClassVar[bool] = False
    range: ClassVar[tuple[float, float]] = (-float("inf"), float("inf"))
    license: ClassVar[str] = "the model's own"
    facts: ClassVar[Facts] = Facts("a sequence classifier of transformers", "chat template or pair of texts", "see its card")

    @property
    def model_id(self) -> str:
        return self.model

    def __call__(self, samples: list[str], prompts: Prompts) -> Scores:
        """Scores of completions [B]."""
        import torch

        check_texts(self.name, samples)
        scorer = load_scorer(self.model, device_of(self.device), self.dtype)
        rows = self.encoded(scorer.tokenizer, prompts.text, samples)
        order = sorted(range(len(samples)), key=lambda row: len(rows["input_ids"][row]))  # equal lengths together
        size = self.batch_size if scorer.tokenizer.pad_token_id is not None else 1
        value = torch.zeros(len(samples))
        for at in range(0, len(order), size):
            some = order[at : at + size]
            value[some] = self._score(scorer, {name: [column[row] for row in some] for name, column in rows.items()})
        return Scores(value)

    def encoded(self, tokenizer: Any, asked: Sequence[str], answers: Sequence[str]) -> dict[str, list[list[int]]]:
        """Token ids, and what else the tokenizer gives, of every prompt with its completion: at most `longest` tokens."""
        form = self.form
        if form == "auto":
            form = "chat" if tokenizer.chat_template else "pair"
        cut: dict[str, Any] = {"truncation": True, "max_length": self.longest}
        if form == "pair":
            return dict(tokenizer(list(asked), list(answers), **cut))
        both = list(zip(asked, answers, strict=True))
        if form == "plain":
            return dict(tokenizer([prompt + text for prompt, text in both], **cut))
        chats = [[{"role": "user", "content": prompt}, {"role": "assistant", "content": text}] for prompt, text in both]
        texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
        return dict(tokenizer(texts, add_special_tokens=False, **cut))  # the template has written them

    def _score(self, scorer: Scorer, rows: dict[str, list[list[int]]]) -> Tensor:
        import torch

        filled = scorer.tokenizer.pad(rows, padding_side="right", return_tensors="pt") if len(rows["input_ids"]) > 1 else rows
        filled = {name: torch.as_tensor(column).to(scorer.network.device) for name, column in filled.items()}
        with torch.no_grad():
            logits = scorer.network(**filled).logits.float().cpu()
        if logits.shape[1] == 1:
            return logits[:, 0]
        if not 0 <= self.label < logits.shape[1]:
            raise ConfigError(
                f"reward {self.name!r}: expected a label below {logits.shape[1]}, the classes of {self.model}, got {self.label}. "
                "Name the good class."
            )
        rest = logits[:, [at for at in range(logits.shape[1]) if at != self.label]]
        return logits[:, self.label] - rest.logsumexp(1)


class Scorer(NamedTuple):
    """A loaded model."""

    network: Any
    tokenizer: Any


@lru_cache(maxsize=2)
def load_scorer(model: str, device: str, dtype: str) -> Scorer:
    """The classifier and its tokenizer from a folder or the Hub's cache; MissingError without them."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    place, revision = split_revision(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision)
        network, found = AutoModelForSequenceClassification.from_pretrained(
            place, revision=revision, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, SafetensorError) as problem:  # not there, not cached, of another kind
        first = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        raise MissingError(f"reward model {model!r}: expected a sequence classifier, got: {first} {fetch(place)}") from problem
    if found["missing_keys"]:
        raise MissingError(
            f"reward model {model!r}: expected all weights of {type(network).__name__}, got none for "
            f"{', '.join(sorted(found['missing_keys'])[:3])}. Is this a language model without a head? Name a reward model."
        )
    tokenizer.truncation_side = "left"  # the end of the answer is what counts
    network.config.pad_token_id = tokenizer.pad_token_id  # the class finds the last token of a row by it
    return Scorer(network.to(device).eval().requires_grad_(False), tokenizer)
