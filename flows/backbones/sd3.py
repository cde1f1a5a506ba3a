"""Stable Diffusion 3 and 3.5: any StableDiffusion3Pipeline, the bundled one included."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flows.backbones.protocol import Condition
from flows.schedule import scheduler_grid

LORA_TARGETS = tuple(
    f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
)
DECODED_PIXELS = 2**20  # at once, 4 pictures of 512 x 512: the autoencoder needs about 5 KB a pixel in float32


class SD3:
    """Latents [C, H/8, W/8] (times the autoencoder's own factor), timestep 1000·sigma, true classifier-free guidance."""

    name = "sd3"
    lora_targets = LORA_TARGETS

    def __init__(self, pipeline, *, resolution: int | None = None, text_length: int = 256) -> None:
        config = pipeline.transformer.config
        side = config.sample_size if resolution is None else resolution // pipeline.vae_scale_factor
        self.resolution = side * pipeline.vae_scale_factor
        self.pipeline = pipeline
        self.network: nn.Module = pipeline.transformer
        self.latent_shape = (config.in_channels, side, side)
        self.text_length = text_length

    def encode(self, texts: list[str]) -> Condition:
        """Prompt embeddings [N, L, D] and pooled embeddings [N, D']."""
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            texts,
            None,
            None,
            device=encoder_device(self.pipeline),
            do_classifier_free_guidance=False,
            max_sequence_length=self.text_length,
        )
        return {"embeds": embeds, "pooled": pooled}

    def velocity(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        dtype = self.pipeline.transformer.dtype
        return self.network(
            x.to(dtype),
            timestep=1000 * sigma,
            encoder_hidden_states=condition["embeds"].to(dtype),  # encoders may be half precision, the network not
            pooled_projections=condition["pooled"].to(dtype),
            return_dict=False,
        )[0]

    def decode(self, latents: Tensor) -> Tensor:
        return decode_latents(self.pipeline.vae, latents)

    def sigmas(self, steps: int) -> Tensor:
        _, height, width = self.latent_shape
        patch = self.pipeline.transformer.config.patch_size
        return scheduler_grid(self.pipeline.scheduler, steps, (height // patch) * (width // patch))


def decode_latents(vae, latents: Tensor) -> Tensor:
    """Images [N, 3, H, W] float32 in [0, 1]; the autoencoder runs in float32, where half precision bands and overflows."""
    shift = vae.config.shift_factor or 0.0
    z = latents.float() / vae.config.scaling_factor + shift
    rows = max(1, DECODED_PIXELS // (z.shape[2] * z.shape[3] * 4 ** (len(vae.config.block_out_channels) - 1)))
    with torch.autocast(z.device.type, enabled=False):
        parts = [vae.decode(part.to(vae.dtype), return_dict=False)[0].float() for part in z.split(rows)]
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)


def encoder_device(pipeline) -> torch.device:
    """Where the text encoders are at present: they may wait on the CPU while the network is elsewhere."""
    found = (getattr(pipeline, name, None) for name in ("text_encoder", "text_encoder_2", "text_encoder_3"))
    return next((encoder.device for encoder in found if encoder is not None), pipeline.device)
