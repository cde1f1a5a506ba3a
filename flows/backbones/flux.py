"""FLUX.1: any FluxPipeline; latents are packed 2x2 into tokens and guidance is an embedding, not a second forward."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from flows.backbones.protocol import Condition
from flows.backbones.sd3 import LORA_TARGETS as ATTENTION
from flows.backbones.sd3 import decode_latents, encoder_device
from flows.schedule import scheduler_grid

FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")


class Flux:
    """Latents [L, 4C] with L = (H/16)·(W/16) tokens; the network takes sigma in [0, 1]."""

    name = "flux"
    lora_targets = (*ATTENTION, *FEED_FORWARD)

    def __init__(self, pipeline, *, resolution: int | None = None, text_length: int = 512, embedded_guidance: float = 3.5):
        self.pipeline = pipeline
        self.network: nn.Module = pipeline.transformer
        self.resolution = resolution or pipeline.default_sample_size * pipeline.vae_scale_factor
        self.side = self.resolution // (2 * pipeline.vae_scale_factor)
        self.latent_shape = (self.side**2, pipeline.transformer.config.in_channels)
        self.text_length = text_length
        self.embedded_guidance = embedded_guidance

    def encode(self, texts: list[str]) -> Condition:
        embeds, pooled, _ = self.pipeline.encode_prompt(
            texts, None, device=encoder_device(self.pipeline), max_sequence_length=self.text_length
        )
        return {"embeds": embeds, "pooled": pooled}

    def velocity(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        transformer = self.pipeline.transformer
        embeds = condition["embeds"].to(transformer.dtype)  # encoders may be half precision, the network not
        image_ids = self.pipeline._prepare_latent_image_ids(1, self.side, self.side, x.device, embeds.dtype)
        guidance = x.new_full((len(x),), self.embedded_guidance) if transformer.config.guidance_embeds else None
        return self.network(
            hidden_states=x.to(transformer.dtype),
            timestep=sigma,
            guidance=guidance,
            pooled_projections=condition["pooled"].to(transformer.dtype),
            encoder_hidden_states=embeds,
            txt_ids=embeds.new_zeros(embeds.shape[1], 3),
            img_ids=image_ids,
            return_dict=False,
        )[0]

    def decode(self, latents: Tensor) -> Tensor:
        grid = self.pipeline._unpack_latents(latents, self.resolution, self.resolution, self.pipeline.vae_scale_factor)
        return decode_latents(self.pipeline.vae, grid)

    def sigmas(self, steps: int) -> Tensor:
        evenly = np.linspace(1.0, 1 / steps, steps).tolist()
        return scheduler_grid(self.pipeline.scheduler, steps, self.latent_shape[0], sigmas=evenly)
