"""A tokenizer of characters for the bundled language model, in the format that transformers loads anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, END, UNKNOWN = "<pad>", "<eos>", "<unk>"
SPECIAL = (PAD, END, UNKNOWN)
CHARACTERS = ("\n", *(chr(code) for code in range(32, 127)))  # printable ASCII
LENGTH = 256  # most tokens of prompt and completion together
# A chat is its messages in a row: problems need no roles. Finished answers end as the model ends them.
TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character and newline, after `<pad>`, `<eos>` and `<unk>`; encoding adds no token."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = Tokenizer(models.WordLevel({token: at for at, token in enumerate([*SPECIAL, *CHARACTERS])}, unk_token=UNKNOWN))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    letters.decoder = decoders.Fuse()
    named: dict[str, Any] = dict(pad_token=PAD, eos_token=END, unk_token=UNKNOWN)
    return PreTrainedTokenizerFast(
        tokenizer_object=letters,
        **named,
        model_max_length=LENGTH,
        padding_side="left",  # completions start at the same column
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        chat_template=TEMPLATE,
    )


def save_tokenizer(folder: str | Path) -> None:
    """The files from which `AutoTokenizer.from_pretrained(folder)` makes the same tokenizer."""
    build_tokenizer().save_pretrained(folder)
