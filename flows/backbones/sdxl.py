"""Stable Diffusion XL: any StableDiffusionXLPipeline; a U-Net of a diffusion model, spoken to in the coordinates of flows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flows.backbones.protocol import Condition
from flows.backbones.sd3 import decode_latents, encoder_device
from flows.diffusion import flow_scale, flow_sigma, flow_velocity
from flows.sde import over
from studio.errors import ConfigError

LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")  # self- and cross-attention, as DDPO's trainers have it (arXiv:2305.13301)
PREDICTIONS = ("epsilon", "v_prediction")


class SDXL:
    """Latents [4, H/8, W/8] of the flow state (see `flows.diffusion`), DDIM time steps, true guidance with a zero embedding.

    `sampler.kernel=ddim` with level η is DDIM's stochastic step, DDPO's with η = 1.
    """

    name = "sdxl"
    lora_targets = LORA_TARGETS

    def __init__(self, pipeline, *, resolution: int | None = None) -> None:
        from diffusers import DDIMScheduler

        factor, config = pipeline.vae_scale_factor, pipeline.unet.config
        self.pipeline = pipeline
        self.network: nn.Module = pipeline.unet
        self.resolution = resolution or config.sample_size * factor
        self.latent_shape = (config.in_channels, self.resolution // factor, self.resolution // factor)
        self.scheduler: Any = DDIMScheduler.from_config(pipeline.scheduler.config)
        self.prediction = self.scheduler.config.prediction_type
        if self.prediction not in PREDICTIONS:
            raise ConfigError(
                f"recipe.model: expected a scheduler with prediction_type {' or '.join(PREDICTIONS)}, got {self.prediction!r}. "
                "Choose another model, or set it in the pipeline's scheduler folder."
            )
        self.levels = flow_sigma(self.scheduler.alphas_cumprod.double()).float()  # [1000] ascending: sigma of every training step
        self.last = flow_sigma(torch.as_tensor(self.scheduler.final_alpha_cumprod).double()).float()
        self.top = self.levels[-1].item()  # an alpha-bar schedule does not reach pure noise

    def encode(self, texts: list[str]) -> Condition:
        """Prompt embeddings [N, 77, 2048] and pooled embeddings [N, 1280]; zeros for an empty text, when the model says so."""
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            texts, device=encoder_device(self.pipeline), do_classifier_free_guidance=False
        )
        if self.pipeline.config.force_zeros_for_empty_prompt:
            told = torch.tensor([bool(text) for text in texts], device=embeds.device)
            embeds, pooled = embeds * over(told, embeds), pooled * over(told, pooled)
        return {"embeds": embeds, "pooled": pooled}

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        """DDIM starts from z ~ N(0, 1) at its first time step: in flow coordinates a little less than unit noise."""
        return noise * flow_scale(sigma).to(noise.device)

    def velocity(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """e - x₀ in float32; the network sees the diffusion state and the nearest of its 1000 training steps."""
        dtype = self.pipeline.unet.dtype
        levels = self.levels.to(sigma.device)
        timestep = (levels[None] - sigma[:, None]).abs().argmin(1)
        z = x / over(flow_scale(sigma), x)
        size = [self.resolution, self.resolution, 0, 0, self.resolution, self.resolution]  # original, crop corner, target
        output = self.network(
            z.to(dtype),
            timestep,
            encoder_hidden_states=condition["embeds"].to(dtype),
            added_cond_kwargs={
                "text_embeds": condition["pooled"].to(dtype),
                "time_ids": torch.tensor([size] * len(x), device=x.device, dtype=torch.float32),
            },
            return_dict=False,
        )[0]
        return flow_velocity(z, output.float(), sigma, self.prediction)

    def decode(self, latents: Tensor) -> Tensor:
        return decode_latents(self.pipeline.vae, latents / flow_scale(self.last).item())

    def sigmas(self, steps: int) -> Tensor:
        """DDIM's time steps and its final level as sigmas [steps + 1], below 1 at the start."""
        self.scheduler.set_timesteps(steps)
        return torch.cat([self.levels[self.scheduler.timesteps.long().cpu()], self.last[None]])
