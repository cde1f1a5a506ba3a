"""The FLUX backbone around stock diffusers classes, tiny and random: grid, packing, guidance embedding, a whole update."""

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from toys import updated

from flows.adapter import attach_lora
from flows.backbones.flux import Flux
from flows.dance_grpo import DanceGRPO
from flows.denoise import RowNoise
from flows.guard import GRPOGuard
from flows.policy import DenoisePolicy
from flows.sampler import Sampler
from flows.schedule import dynamic_grid, even_grid, static_shift
from rewards.image.jpeg import JpegSize
from studio.types import Prompts

TEXTS = ["a lamp", "two chairs"]
PIXELS = 32  # 16 x 16 tokens: the autoencoder keeps the size, packing halves it


def build_pipeline(*, embeds=True, dynamic=True):
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=embeds,
    )
    vae = AutoencoderKL(
        sample_size=PIXELS,
        block_out_channels=(4,),
        layers_per_block=1,
        latent_channels=1,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.1,
        scaling_factor=0.4,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic)
    encoders = {"text_encoder": None, "tokenizer": None, "text_encoder_2": None, "tokenizer_2": None}
    pipeline = FluxPipeline(scheduler=scheduler, vae=vae, transformer=transformer, **encoders)
    pipeline.set_progress_bar_config(disable=True)
    transformer.requires_grad_(False)
    return pipeline


def build_policy(pipeline, sampler, *, lora=True):
    backbone = Flux(pipeline, resolution=PIXELS)
    if lora:
        attach_lora(backbone.network, backbone.lora_targets, rank=4, alpha=8.0)
    policy = DenoisePolicy(backbone, sampler, lora=lora)
    draws = torch.Generator().manual_seed(1)
    policy._conditions = {
        text: {"embeds": torch.randn(5, 32, generator=draws), "pooled": torch.randn(32, generator=draws)} for text in TEXTS
    }
    return policy


def test_latents_are_packed_tokens():
    backbone = Flux(build_pipeline(), resolution=PIXELS)
    assert backbone.latent_shape == (256, 4)
    assert backbone.decode(torch.randn(2, 256, 4)).shape == (2, 3, PIXELS, PIXELS)


@pytest.mark.parametrize("steps", [1, 4, 6])
def test_the_grid_is_flux_own(steps):
    backbone = Flux(build_pipeline(), resolution=PIXELS)
    torch.testing.assert_close(backbone.sigmas(steps), dynamic_grid(steps, 256), atol=1e-6, rtol=0)
    backbone.latent_shape = (1024, 4)  # 512 pixels of FLUX.1-dev
    torch.testing.assert_close(backbone.sigmas(steps), dynamic_grid(steps, 1024), atol=1e-6, rtol=0)


def test_without_dynamic_shifting_the_schedulers_static_shift_holds():
    grid = Flux(build_pipeline(dynamic=False), resolution=PIXELS).sigmas(4)
    expected = torch.cat([static_shift(torch.linspace(1, 0.25, 4), 3.0), torch.zeros(1)])
    torch.testing.assert_close(grid, expected, atol=1e-6, rtol=0)
    even = build_policy(build_pipeline(), Sampler(grid="even"), lora=False)
    torch.testing.assert_close(even.grid(4), even_grid(4))


@pytest.mark.parametrize("embeds", [True, False], ids=["dev", "schnell"])
def test_the_stock_pipeline_draws_the_same_pictures(embeds):
    pipeline = build_pipeline(embeds=embeds)
    policy = build_policy(pipeline, Sampler(eval_steps=4), lora=False)
    expected = pipeline(
        prompt_embeds=torch.stack([policy._conditions[text]["embeds"] for text in TEXTS]),
        pooled_prompt_embeds=torch.stack([policy._conditions[text]["pooled"] for text in TEXTS]),
        latents=RowNoise([3, 4], (256, 4))(),
        height=PIXELS,
        width=PIXELS,
        num_inference_steps=4,
        guidance_scale=3.5,
        output_type="pt",
    ).images
    torch.testing.assert_close(policy.images(TEXTS, [3, 4]), expected, atol=1e-4, rtol=0)


def test_guidance_is_an_embedding():
    policy = build_policy(build_pipeline(), Sampler(eval_steps=2), lora=False)
    usual = policy.images(TEXTS, [3, 4])
    policy.backbone.embedded_guidance = 1.0
    assert (policy.images(TEXTS, [3, 4]) - usual).abs().max() > 1e-5


@pytest.mark.parametrize(
    ("kernel", "algorithm"),
    [("flow_sde", GRPOGuard()), ("cps", GRPOGuard(reweight="inv_jacobian", kl=0.1)), ("dance_sde", DanceGRPO())],
    ids=["guard", "guard with cps", "dance"],
)
def test_one_update_of_a_tiny_flux(kernel, algorithm, tmp_path):
    policy = build_policy(build_pipeline(), Sampler(steps=4, kernel=kernel, level=0.5))
    texts = [text for text in TEXTS for _ in range(3)]
    rows, group = Prompts(texts, texts, [{}] * 6), torch.tensor([0, 0, 0, 1, 1, 1])
    rollout = policy.sample(rows, group=group, seeds=range(6), step=0, micro=4)
    assert rollout.samples.shape == (6, 3, PIXELS, PIXELS) and rollout.trace.x.shape == (6, 3, 256, 4)
    rollout = replace(rollout, reward=JpegSize()(rollout.samples, rows))
    rollout, new = updated(policy, algorithm.objective(), rollout)

    policy.save(tmp_path)
    fresh = build_policy(build_pipeline(), policy.sampler)
    fresh.load(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(fresh.evaluate(rollout).velocity, new.velocity, atol=1e-6, rtol=0)


def test_half_precision_encoders_serve_a_float32_network():
    policy = build_policy(build_pipeline(), Sampler(eval_steps=2), lora=False)
    usual = policy.images(TEXTS, [3, 4])
    policy._conditions = {t: {name: v.bfloat16() for name, v in c.items()} for t, c in policy._conditions.items()}
    torch.testing.assert_close(policy.images(TEXTS, [3, 4]), usual, atol=2e-2, rtol=0)
