"""The SDXL backbone around stock diffusers classes, tiny and random: DDIM in flow coordinates, time ids, guidance, an update."""

import math
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors import safe_open
from toys import updated

from flows.adapter import LORA_FILE
from flows.backbones.sdxl import SDXL
from flows.blueprint import blueprints, random_pipeline
from flows.denoise import RowNoise
from flows.diffusion import flow_scale, flow_sigma, flow_velocity
from flows.guard import GRPOGuard
from flows.load import Lora, Model, build_policy
from flows.sampler import Sampler
from flows.sde import ddim, gaussian_logp, over
from rewards.image.jpeg import JpegSize
from studio.errors import ConfigError
from studio.types import Prompts

TEXTS = ["a lamp", "two chairs"]
DDPO = Sampler(steps=5, eval_steps=5, guidance=5.0, kernel="ddim", level=1.0)


def tiny_policy(sampler=DDPO, **model):
    lora = Lora(rank=4, alpha=8.0)
    return build_policy(Model(random="tiny-sdxl", resolution=16, device="cpu", lora=lora, **model), sampler, seed=0)


def tiny_backbone(**schedule):
    blueprint = blueprints()["tiny-sdxl"]
    blueprint = replace(blueprint, schedule=blueprint.schedule | schedule)
    return SDXL(random_pipeline(blueprint, device="cpu", dtype=torch.float32, seed=0), resolution=16)


def test_a_ddpo_step_by_hand():
    """image-flow-rl.md, d5: ᾱ = 0.5 to 0.6, z = 1, e = 0.3 gives s = 0.365148372, mean = 1.017985448."""
    t, after = (flow_sigma(torch.tensor([a], dtype=torch.float64)) for a in (0.5, 0.6))
    z, e = torch.ones(1, 1, dtype=torch.float64), torch.full((1, 1), 0.3, dtype=torch.float64)
    step = ddim(z * flow_scale(t), flow_velocity(z, e, t, "epsilon"), t, after, torch.ones(1))
    assert (step.mean / flow_scale(after)).item() == pytest.approx(1.017985448, abs=1e-8)
    assert (step.std / flow_scale(after)).item() == pytest.approx(0.365148372, abs=1e-8)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("last", [True, False], ids=["ends at 1", "ends at the first step"])
def test_a_step_is_the_schedulers(prediction, eta, last):
    """Mean, noise and end of every step as DDIMScheduler.step makes them, and the log-probability of a Normal."""
    backbone = tiny_backbone(prediction_type=prediction, set_alpha_to_one=last)
    stock = DDIMScheduler.from_config(backbone.scheduler.config)
    stock.set_timesteps(5)
    sigmas, draws = backbone.sigmas(5), torch.Generator().manual_seed(1)
    for index, timestep in enumerate(stock.timesteps):
        z, output, noise = (torch.randn(3, 4, 8, 8, generator=draws) for _ in range(3))
        t, after, level = (torch.full((3,), float(value)) for value in (sigmas[index], sigmas[index + 1], eta))
        step = ddim(z * over(flow_scale(t), z), flow_velocity(z, output, t, prediction), t, after, level)
        ours = (step.mean + over(step.std, z) * noise) / over(flow_scale(after), z)
        theirs = stock.step(output, timestep, z, eta=eta, variance_noise=noise).prev_sample
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        if eta and after[0] > 0:
            mean = stock.step(output, timestep, z, eta=eta, variance_noise=torch.zeros_like(noise)).prev_sample
            std = (theirs - mean).flatten().std() / noise.flatten().std()
            expected = torch.distributions.Normal(mean, std).log_prob(theirs).flatten(1).mean(1)
            logp = gaussian_logp((theirs * over(flow_scale(after), z)).float(), step.mean, step.std)
            torch.testing.assert_close(logp + flow_scale(after).log(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_stock_pipeline_draws_the_same_pictures(guidance, prediction):
    policy = tiny_policy(replace(DDPO, guidance=guidance))
    backbone = tiny_backbone(prediction_type=prediction)
    policy.backbone.scheduler, policy.backbone.prediction = backbone.scheduler, prediction
    pipeline = policy.backbone.pipeline
    pipeline.scheduler = backbone.scheduler
    pipeline.set_progress_bar_config(disable=True)
    conditions = [policy._condition(texts) for texts in (TEXTS, [""] * 2)]
    expected = pipeline(
        prompt_embeds=conditions[0]["embeds"],
        pooled_prompt_embeds=conditions[0]["pooled"],
        negative_prompt_embeds=conditions[1]["embeds"],
        negative_pooled_prompt_embeds=conditions[1]["pooled"],
        latents=RowNoise([3, 4], (4, 8, 8))(),
        height=16,
        width=16,
        num_inference_steps=5,
        guidance_scale=guidance,
        output_type="pt",
    ).images
    torch.testing.assert_close(policy.images(TEXTS, [3, 4]), expected, atol=1e-4, rtol=0)


def test_time_ids_tell_the_size():
    policy, seen = tiny_policy(), []
    policy.model.register_forward_pre_hook(lambda m, a, k: seen.append(k["added_cond_kwargs"]["time_ids"]), with_kwargs=True)
    policy.images(TEXTS, [1, 2], steps=1)
    assert seen[0].tolist() == [[16, 16, 0, 0, 16, 16]] * 4  # doubled for guidance


def test_an_empty_text_is_a_zero_embedding():
    backbone = tiny_backbone()

    class Pipeline:
        device = torch.device("cpu")
        config = backbone.pipeline.config

        def encode_prompt(self, texts, **_):
            return torch.ones(len(texts), 3, 16), None, torch.ones(len(texts), 16), None

    backbone.pipeline = Pipeline()
    condition = backbone.encode(["", "a lamp"])
    assert condition["embeds"].sum((1, 2)).tolist() == [0, 48] and condition["pooled"].sum(1).tolist() == [0, 16]


def test_the_grid_is_ddims_own():
    backbone = tiny_backbone()
    stock = DDIMScheduler.from_config(backbone.scheduler.config)
    stock.set_timesteps(50)
    bars = torch.cat([stock.alphas_cumprod[stock.timesteps], stock.final_alpha_cumprod[None]])
    torch.testing.assert_close(backbone.sigmas(50), flow_sigma(bars), atol=1e-6, rtol=0)
    assert backbone.top == pytest.approx(1 / (1 + math.sqrt(0.00466 / 0.99534)), abs=1e-4)  # ᾱ of the last training step


def test_an_even_grid_is_refused():
    with pytest.raises(ConfigError, match="expected pipeline for sdxl"):
        tiny_policy(replace(DDPO, grid="even")).grid(4)


def test_predicting_the_sample_is_refused():
    with pytest.raises(ConfigError, match="expected a scheduler with prediction_type"):
        tiny_backbone(prediction_type="sample")


@pytest.mark.parametrize("train", ["lora", "full"])
@pytest.mark.parametrize("kernel", ["ddim", "flow_sde"])
def test_one_update_of_a_tiny_sdxl(train, kernel, tmp_path):
    sampler = replace(DDPO, kernel=kernel, level=0.7)
    policy = tiny_policy(sampler, train=train, gradient_checkpointing=True)
    texts = [text for text in TEXTS for _ in range(3)]
    rows, group = Prompts(texts, texts, [{}] * 6), torch.tensor([0, 0, 0, 1, 1, 1])
    policy.keep_reference()
    rollout = policy.sample(rows, group=group, seeds=range(6), step=0, micro=4)
    rollout = replace(rollout, reward=JpegSize()(rollout.samples, rows))
    # a velocity near sigma 0.94 is the network's answer times 15, and so is its rounding
    rollout, new = updated(policy, GRPOGuard(reweight="inv_jacobian", kl=0.1).objective(), rollout, rounding=1e-5)
    assert (new.velocity - rollout.ref.velocity).abs().max() > 1e-4

    policy.save(tmp_path)
    if train == "lora":
        with safe_open(tmp_path / LORA_FILE, "pt") as file:
            assert all(key.startswith("unet.") and ".attn" in key for key in file.keys())  # noqa: SIM118
    fresh = tiny_policy(sampler, train=train)
    fresh.load(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(fresh.evaluate(rollout).velocity, new.velocity, atol=1e-4, rtol=1e-5)
