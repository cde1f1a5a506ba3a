"""Human preference of a picture given its prompt, as learned by HPSv3: a vision-language model with a head of two numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from rewards.facts import Facts
from rewards.image.chat import template_text
from rewards.pictures import as_pil, check_pictures
from rewards.weights import device_of, fetch, fill, no_weights, read_weights, split_revision, weight_file
from studio.errors import MissingError
from studio.types import Prompts, Scores

if TYPE_CHECKING:
    from torch import Tensor, nn

TOKEN = "<|Reward|>"  # where the head reads
PIXELS = 256 * 28 * 28  # of a picture after resizing
TEMPLATE = "Rate this picture by its visual quality and by how well it shows the description.\nDescription: {prompt}\nRating:"
# Qwen2-VL's names in checkpoints of transformers 4 and 5 -> those of the bare model
NAMES = ((r"^model\.(visual|language_model)\.", r"\1."), (r"^model\.", "language_model."), (r"^rm_head\.", "head."))


@dataclass(frozen=True)
class HPSv3:
    """First output of head(h), h the last hidden state at a special token that ends the question; part `hpsv3_spread`.

    The second output, the part, is the model's uncertainty.  Source: HPSv3 (arXiv:2508.03789); verl-omni multiplies by
    0.1.  The score depends on the wording of the question: for published numbers, give the published one, with its token,
    as `template`.  Takes about 16 GB in bfloat16, on the device and while it is loaded: no other weights are made.
    """

    model: str = "MizzenAI/HPSv3"  # folder or Hub id[@revision] with the weights of everything
    file: str = "HPSv3.safetensors"
    base: str = "Qwen/Qwen2-VL-7B-Instruct"  # where sizes, tokenizer and image processor are
    template: str = TEMPLATE  # the question, with {prompt}; or the path of a .txt file that holds it
    scale: float = 1.0
    dtype: str = "bfloat16"
    device: str = "auto"
    batch_size: int = 4  # pictures per forward

    name: ClassVar[str] = "hpsv3"
    reads: ClassVar[str] = "image"
    differentiable: ClassVar[bool] = False
    range: ClassVar[tuple[float, float]] = (-float("inf"), float("inf"))
    license: ClassVar[str] = "weights: see the card of MizzenAI/HPSv3; Apache-2.0 (Qwen2-VL-7B)"
    facts: ClassVar[Facts] = Facts("HPSv3 (arXiv:2508.03789)", f"about {PIXELS} pixels, multiples of 28, shape kept")

    @property
    def model_id(self) -> str:
        return f"{self.model}/{self.file}"

    def check(self, prompts: Prompts) -> None:
        """ConfigError when the template has no place for the prompt."""
        template_text(self.template, "reward 'hpsv3'")

    def __call__(self, samples: Tensor, prompts: Prompts) -> Scores:
        """Scores of pictures [B, 3, H, W] in [0, 1]."""
        import torch

        check_pictures(self.name, samples)
        ask = template_text(self.template, "reward 'hpsv3'")
        network, processor = load_hpsv3(self.model, self.file, self.base, self.dtype, self.device)
        outputs = []
        for start in range(0, len(samples), self.batch_size):
            rows = slice(start, start + self.batch_size)
            asked = [chat(processor, ask.replace("{prompt}", text.replace(TOKEN, ""))) for text in prompts.text[rows]]
            batch = processor(images=as_pil(samples[rows]), text=asked, padding=True, return_tensors="pt")
            with torch.no_grad():
                outputs.append(network(batch))
        mean, spread = torch.cat(outputs).unbind(1)
        return Scores(mean * self.scale, None, {"hpsv3_spread": spread})


def chat(processor: Any, text: str) -> str:
    """A picture and the question as the conversation the base model knows; the token is added where there is none."""
    asked = text if TOKEN in text else f"{text} {TOKEN}"
    content = [{"type": "image"}, {"type": "text", "text": asked}]
    return processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)


def build_network(config: Any, token: int) -> nn.Module:
    """Qwen2-VL without its language head, and the head hidden-1024-16-2, with random weights."""
    from torch import nn
    from transformers import Qwen2VLModel

    class Rating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Qwen2VLModel(config)
            wide = config.text_config.hidden_size
            # positions 0, 3, 5 carry weights, as in the published file
            layers = (nn.Linear(wide, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2))
            self.head = nn.Sequential(*layers)

        def forward(self, batch: Any) -> Tensor:
            """Mean and uncertainty [B, 2] float32 of a processed batch."""
            weight = self.head[0].weight
            batch = batch.to(weight.device)
            hidden = self.body(**batch | {"pixel_values": batch["pixel_values"].to(weight.dtype)}).last_hidden_state
            at = (batch["input_ids"] == token).int().argmax(1)
            return self.head(hidden[range(len(hidden)), at]).float()

    return Rating()


@lru_cache(maxsize=1)
def load_hpsv3(place: str, name: str, base: str, dtype: str, device: str) -> tuple[nn.Module, Any]:
    """The frozen network with all its weights from one file, and the processor that knows the token."""
    import torch
    from transformers import AutoProcessor, Qwen2VLConfig

    where, revision = split_revision(base)
    try:
        config = Qwen2VLConfig.from_pretrained(where, revision=revision)
        processor = AutoProcessor.from_pretrained(where, revision=revision, min_pixels=PIXELS, max_pixels=PIXELS)
    except (OSError, ValueError) as problem:
        first = str(problem).splitlines()[0]
        raise MissingError(
            f"reward 'hpsv3': expected config and processor of Qwen2-VL in {base}, got {first} {fetch(base)}"
        ) from problem
    processor.tokenizer.add_special_tokens({"additional_special_tokens": [TOKEN]})
    file = weight_file(place, name)
    weights = rename(read_weights(file))
    config.text_config.vocab_size = len(weights.get("body.language_model.embed_tokens.weight", ()))
    with no_weights():
        network = build_network(config, processor.tokenizer.convert_tokens_to_ids(TOKEN))
    # parameters only: the rotary frequencies, which are buffers, must stay float32
    fill(network, {key: value.to(getattr(torch, dtype)) for key, value in weights.items()}, file, assign=True)
    return network.to(device_of(device)).eval().requires_grad_(False), processor


def rename(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published names as ours; the language head, which the score does not use, is left out."""
    named = {}
    for key, value in weights.items():
        if key.startswith("lm_head."):
            continue
        for pattern, ours in NAMES:
            if re.search(pattern, key):
                key = re.sub(pattern, ours, key)
                break
        named[key if key.startswith("head.") else f"body.{key}"] = value
    return named
