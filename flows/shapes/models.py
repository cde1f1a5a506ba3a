"""The architectures of the bundled models: stock diffusers and transformers classes, built small."""

from __future__ import annotations

import json
from typing import Any

from flows.shapes.world import SIZE, words

LATENT_CHANNELS = 8
TEXT_LENGTH = 12  # the longest caption has 8 words, plus start and end
WIDTH = 96


def build_tokenizer():
    """A CLIPTokenizer whose byte-pair merges make every word of the grammar one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    start, end = "<|startoftext|>", "<|endoftext|>"
    pairs = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    pairs.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=4000, min_frequency=1, end_of_word_suffix="</w>", special_tokens=[start, end], show_progress=False
    )
    pairs.train_from_iterator(words(), trainer)
    model = json.loads(pairs.to_str())["model"]
    merges: Any = [tuple(merge) for merge in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, pad_token=end, model_max_length=TEXT_LENGTH)


def text_config(tokenizer, *, width: int, layers: int, heads: int, projection: int) -> dict:
    """Arguments of a small CLIPTextConfig over this tokenizer."""
    return dict(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=projection,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_vae():
    """AutoencoderKL, 32x32 RGB to 8x8x8 latents, about a quarter of a million parameters."""
    from diffusers import AutoencoderKL

    blocks: Any = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (16, 32, 32),
    }
    return AutoencoderKL(
        **blocks,
        sample_size=SIZE,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def build_pipeline(vae, shift: float):
    """A StableDiffusion3Pipeline around this autoencoder, with untrained text encoders and transformer.

    The class insists on a T5 encoder; ours answers zeros (final norm weight 0), so prompts speak through the CLIP encoders.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5Tokenizer

    tokenizer = build_tokenizer()
    large = CLIPTextConfig(**text_config(tokenizer, width=WIDTH, layers=3, heads=3, projection=WIDTH))
    small = CLIPTextConfig(**text_config(tokenizer, width=32, layers=2, heads=1, projection=32))
    joint = WIDTH + 32
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)] + [("▁" + word, -1.0) for word in words()]
    silent = T5EncoderModel(
        T5Config(vocab_size=len(vocabulary), d_model=joint, d_kv=8, d_ff=8, num_layers=1, num_heads=1, dropout_rate=0.0)
    )
    silent.encoder.final_layer_norm.weight.data.zero_()
    transformer = SD3Transformer2DModel(
        sample_size=SIZE // 4,
        patch_size=1,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=6,
        num_attention_heads=3,
        attention_head_dim=WIDTH // 3,
        joint_attention_dim=joint,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=joint,
        pos_embed_max_size=SIZE // 4,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=vae,
        text_encoder=CLIPTextModelWithProjection(large),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(small),
        tokenizer_2=tokenizer,
        text_encoder_3=silent,
        tokenizer_3=T5Tokenizer(vocab=vocabulary, extra_ids=0),
    )


def build_scorer(tokenizer):
    """A small CLIPModel over 32x32 pictures, about 0.9 million parameters."""
    from transformers import CLIPConfig, CLIPModel

    text = text_config(tokenizer, width=WIDTH, layers=3, heads=3, projection=64)
    vision = dict(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=3,
        image_size=SIZE,
        patch_size=4,
        projection_dim=64,
    )
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))
