"""Tiny random models in the formats of the published ones, for rewards that read a model."""

from __future__ import annotations

import torch
from torch import Tensor

from studio.types import Prompts


def prompts(*texts: str, **info) -> Prompts:
    return Prompts(list(texts), [f"key of {text}" for text in texts], [dict(info) for _ in texts])


TWO = prompts("a red circle", "two blue squares")


def smooth(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Pictures without single-pixel detail, so that resizing loses little."""
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)


def save_clip(folder, *, projection: int = 16, seed: int = 0):
    """A random CLIP over 32x32 pictures and the words of the bundled world."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    from flows.shapes.models import build_tokenizer, text_config

    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
    text = text_config(tokenizer, width=32, layers=2, heads=2, projection=projection)
    config = CLIPConfig(text_config=text, vision_config=vision | {"projection_dim": projection}, projection_dim=projection)
    model = CLIPModel(config)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    for part in (model, tokenizer, processor):
        part.save_pretrained(folder)
    return model.eval(), tokenizer, processor


def save_siglip(folder, seed: int = 0):
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    from flows.shapes.models import build_tokenizer

    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    text = small | dict(vocab_size=len(tokenizer), max_position_embeddings=12, projection_size=32)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=small | dict(image_size=32, patch_size=8)))
    for part in (model, tokenizer, SiglipImageProcessor(size={"height": 32, "width": 32})):
        part.save_pretrained(folder)
    return model.eval(), tokenizer


def raises_its_score(reward, texts: Prompts = TWO, size: tuple[int, int] = (48, 40), step: float = 1e-2) -> None:
    """A small step along the gradient raises the score of every picture, and every picture has a gradient."""
    images = smooth(len(texts), *size).clamp(0.1, 0.9).requires_grad_()
    score = reward(images, texts)
    score.sum().backward()
    assert images.grad.abs().sum((1, 2, 3)).min() > 0
    largest = images.grad.abs().amax((1, 2, 3), keepdim=True)
    with torch.no_grad():
        assert (reward(images + step * images.grad / largest, texts) > score).all()


def save_qwen2_vl(folder, seed: int = 0):
    """Config, tokenizer, image processor and chat template of a tiny Qwen2-VL."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2VLConfig,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    special = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE({token: at for at, token in enumerate([*special, *letters])}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token=special[0], additional_special_tokens=special[1:])
    pictures = Qwen2VLImageProcessor(patch_size=4, merge_size=2, min_pixels=64, max_pixels=1024)
    template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
        "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}"
        "{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    )
    videos = Qwen2VLVideoProcessor(patch_size=4, merge_size=2)
    Qwen2VLProcessor(pictures, tokenizer, videos, chat_template=template).save_pretrained(folder)
    vocabulary = len(tokenizer) + 1  # and the token that HPSv3 adds
    text = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2)
    text |= dict(vocab_size=vocabulary, rope_parameters={"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4})
    vision = dict(depth=2, embed_dim=32, hidden_size=32, num_heads=2, patch_size=4, mlp_ratio=2, spatial_merge_size=2)
    ids = {f"{name}_token_id": special.index(f"<|{token}|>") for name, token in (("image", "image_pad"), ("video", "video_pad"))}
    ids |= {f"{name}_token_id": special.index(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
    config.save_pretrained(folder)
    return config, tokenizer
