"""Tiny random models in the formats of the published ones, for rewards that read a model."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
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


def save_hps(folder):
    """Both versions of HPSv2 for a tiny CLIP of open_clip -> the network of v2.1."""
    import json

    from open_clip import CLIP

    tower = dict(layers=1, width=32)
    config = dict(embed_dim=16, vision_cfg=tower | dict(image_size=32, patch_size=8, head_width=16))
    config["text_cfg"] = tower | dict(context_length=77, vocab_size=49408, heads=2)
    (folder / "tiny.json").write_text(json.dumps(config))
    for seed, name in enumerate(("HPS_v2_compressed.pt", "HPS_v2.1_compressed.pt")):
        torch.manual_seed(seed)
        network = CLIP(**config).eval()
        save_file(
            {key: value.contiguous() for key, value in network.state_dict().items()}, folder / f"{Path(name).stem}.safetensors"
        )
    return network


def save_image_reward(folder):
    """ImageReward over a tiny BLIP, with the names of the published file -> (network, tokenizer)."""
    from transformers import BlipConfig

    from flows.shapes.models import build_tokenizer
    from rewards.image.image_reward import build_network

    tokenizer = build_tokenizer()
    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.3)
    vision = small | dict(image_size=32, patch_size=8)
    text = small | dict(encoder_hidden_size=32, vocab_size=len(tokenizer), max_position_embeddings=40)
    config = BlipConfig(vision_config=vision, text_config=text)
    torch.manual_seed(0)
    network = build_network(config.vision_config, config.text_config).eval()
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = {_blip_name(key): value.contiguous() for key, value in network.state_dict().items()}
    weights["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]  # the published file has it too
    weights["blip.vision_proj.weight"] = torch.zeros(4, 32)
    save_file(weights, folder / "ImageReward.safetensors")
    return network, tokenizer


def _blip_name(ours: str) -> str:
    """The name that the published file has for a weight, written from its side: BLIP's towers and `mlp.layers`."""
    if ours.startswith("head."):
        return ours.replace("head.", "mlp.layers.")
    if ours.startswith("text."):
        return ours.replace("text.", "blip.text_encoder.")
    name = ours.replace("vision.", "blip.visual_encoder.")
    for here, there in {
        "embeddings.patch_embedding": "patch_embed.proj",
        "embeddings.position_embedding": "pos_embed",
        "embeddings.class_embedding": "cls_token",
        "post_layernorm": "norm",
        "encoder.layers": "blocks",
        "layer_norm": "norm",
        "self_attn.projection": "attn.proj",
        "self_attn.qkv": "attn.qkv",
    }.items():
        name = name.replace(here, there)
    return name


def save_hpsv3(folder):
    """HPSv3 over a tiny Qwen2-VL, with the names of the published file -> the network."""

    from rewards.image.hpsv3 import build_network

    config, tokenizer = save_qwen2_vl(folder)
    torch.manual_seed(0)
    network = build_network(config, len(tokenizer)).eval()
    weights = {}
    for key, value in network.state_dict().items():
        key = key.replace("body.language_model.", "model.").replace("body.visual.", "visual.").replace("head.", "rm_head.")
        weights[key] = value.contiguous().clone()
    weights["lm_head.weight"] = torch.zeros(len(tokenizer) + 1, 32)
    save_file(weights, folder / "HPSv3.safetensors")
    return network


def save_head(folder):
    """The aesthetic head for embeddings of 16 numbers, with the names of the published file -> the network."""
    from rewards.image.head import linear_head

    torch.manual_seed(3)
    network = linear_head(16).eval()
    save_file({f"layers.{key}": value for key, value in network.state_dict().items()}, folder / "head.safetensors")
    return network


def save_yolos(folder) -> None:
    """A detector of boxes that knows dogs and cats, and is sure of something."""
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

    torch.manual_seed(0)
    small = dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=[32, 32], patch_size=8
    )
    small |= dict(num_detection_tokens=6, use_mid_position_embeddings=False)
    detector = YolosForObjectDetection(YolosConfig(**small, id2label={0: "dog", 1: "cat"}, label2id={"dog": 0, "cat": 1}))
    torch.nn.init.normal_(detector.class_labels_classifier.layers[-1].weight, std=3.0)
    detector.save_pretrained(folder)
    YolosImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
