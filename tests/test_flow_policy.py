"""The denoising policy on the bundled pipeline and on a tiny random one: replay, references, files, a whole update."""

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file
from toys import updated

from flows.adapter import LORA_FILE, attach_lora
from flows.backbones.sd3 import LORA_TARGETS, SD3
from flows.denoise import RowNoise
from flows.flow_grpo import FlowGRPO
from flows.guard import GRPOGuard, regulated_ratio
from flows.load import Lora, Model, build_policy, locate
from flows.policy import DenoisePolicy
from flows.sampler import Sampler, Window
from flows.shapes.world import SIZE
from rewards.image.jpeg import JpegSize
from studio.core import decision_ratio
from studio.errors import ConfigError, MissingError
from studio.types import Prompts

TEXTS = ["two red circles left of a blue square", "a cyan triangle", "three green squares"]
NOISY = {"flow_sde": 0.7, "dance_sde": 0.3, "cps": 0.8, "ddim": 0.7}
ROWS = 12


def build(train="lora", sampler=None, **model):
    lora = Lora(rank=4, alpha=8.0)
    return build_policy(Model(train=train, lora=lora, device="cpu", text_length=1, **model), sampler or Sampler(), seed=0)


@pytest.fixture(scope="module")
def policies():
    """Policies that no test of this module changes but for their sampler."""
    return {"lora": build("lora"), "full": build("full")}


def prompts(rows=ROWS):
    texts = [TEXTS[i * len(TEXTS) // rows] for i in range(rows)]
    return Prompts(texts, texts, [{}] * rows)


def draw(policy, rows=ROWS, micro=8, step=0, **others):
    group = torch.tensor([TEXTS.index(text) for text in prompts(rows).text])
    return policy.sample(prompts(rows), group=group, seeds=range(100, 100 + rows), step=step, micro=micro, **others)


def perturb(policy, scale=0.05):
    draws = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(scale * torch.randn(parameter.shape, generator=draws))


@torch.no_grad()
def velocity_of(policy):
    x = RowNoise([1, 2, 3], policy.backbone.latent_shape)()
    return policy.velocity(TEXTS)(x, torch.tensor([0.9, 0.5, 0.1]))


@pytest.mark.parametrize("kernel", NOISY)
@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("train", ["lora", "full"])
def test_the_first_replay_has_ratio_one(policies, train, guidance, kernel):
    """Micro-batches of 8 in the rollout, other sizes in the replay: matrix products differ in the last bit, no more."""
    policy = policies[train]
    policy.sampler = Sampler(guidance=guidance, kernel=kernel, level=NOISY[kernel])
    rollout = draw(policy)
    rows = (slice(0, 12), slice(3, 8), slice(0, 1)) if (train, guidance) == ("lora", 1.0) else (slice(0, 5), slice(11, 12))
    for cut in (*((pick, slice(None)) for pick in rows), (slice(2, 5), slice(5, 7))):
        part = rollout.at(*cut)
        with torch.no_grad():
            new = policy.evaluate(part)
        assert regulated_ratio(new, part).abs().max() <= 1e-6
        assert decision_ratio(new, part).abs().max() <= 1e-6


@pytest.mark.parametrize("kernel", NOISY)
def test_a_rollout_records_the_window(policies, kernel):
    policy = policies["lora"]
    policy.sampler = Sampler(kernel=kernel, level=NOISY[kernel], window=Window(size=3, low=2))
    rollout = draw(policy)
    grid = policy.grid(8)
    assert rollout.samples.shape == (ROWS, 3, SIZE, SIZE) and rollout.old.mean.shape == (ROWS, 3, 8, 8, 8)
    assert torch.equal(rollout.trace.sigma, grid[2:5].expand(ROWS, 3))
    assert torch.equal(rollout.old.dt, (grid[2:5] - grid[3:6]).expand(ROWS, 3))
    assert rollout.mask.all() and rollout.mask.shape == (ROWS, 3)
    ends = rollout.old.mean + rollout.old.std[..., None, None, None] * rollout.old.noise
    assert torch.equal(ends[:, :-1], rollout.trace.x[:, 1:])
    with torch.no_grad():
        new = policy.evaluate(rollout)
    methods = {"pathwise", "latents"}  # what objectives call: the rest is a field of the evaluation
    assert callable(policy.latents)
    assert not {name for name in policy.provides - methods - {"ref"} if getattr(new, name) is None}


def test_a_row_depends_on_its_seed_alone(policies):
    policy = policies["lora"]
    policy.sampler = Sampler()
    whole, small = draw(policy, micro=12), draw(policy, micro=5)
    assert torch.equal(whole.old.noise, small.old.noise) and torch.equal(whole.trace.x[:, 0], small.trace.x[:, 0])
    torch.testing.assert_close(whole.samples, small.samples, atol=1e-4, rtol=0)
    images = policy.images(TEXTS, [7, 8, 9], micro=2)
    torch.testing.assert_close(images[1:2], policy.images(TEXTS[1:2], [8]), atol=1e-4, rtol=0)
    assert (images[1:2] - policy.images(TEXTS[1:2], [9])).abs().max() > 0.1


def test_a_group_may_share_its_start(policies):
    policy = policies["lora"]
    policy.sampler = Sampler(same_noise=True)
    start, later = draw(policy).trace.x[:, 0], draw(policy, step=1).trace.x[:, 0]
    assert torch.equal(start[0], start[3]) and not torch.equal(start[0], start[4]) and not torch.equal(start, later)
    assert not torch.equal(draw(policy).old.noise[0], draw(policy).old.noise[3])


def test_a_fraction_of_the_steps_trains(policies):
    policy = policies["lora"]
    policy.sampler = Sampler(train_fraction=0.6)
    mask = draw(policy).mask
    assert (mask.sum(1) == 4).all()  # round(0.6·7)
    assert len({tuple(row.tolist()) for row in mask}) > 1 and torch.equal(mask, draw(policy, micro=5).mask)


def test_finished_sees_every_micro_batch_once(policies):
    policy, seen = policies["lora"], []
    policy.sampler = Sampler(steps=2)
    rollout = draw(policy, finished=lambda rows, images: seen.append((rows.text, images)))
    assert [len(text) for text, _ in seen] == [8, 4] and sum((text for text, _ in seen), []) == rollout.prompts.text
    assert torch.equal(torch.cat([images for _, images in seen]), rollout.samples)


def test_guidance_extrapolates(policies):
    policy = policies["lora"]
    policy.sampler = Sampler()
    x, t = RowNoise([1, 2, 3], (8, 8, 8))(), torch.full((3,), 0.8)
    with torch.no_grad():
        conditional, free = policy.velocity(TEXTS)(x, t), policy.velocity([""] * 3)(x, t)
        policy.sampler = Sampler(guidance=2.5)
        guided = policy.velocity(TEXTS)(x, t)
    torch.testing.assert_close(guided, free + 2.5 * (conditional - free), atol=1e-4, rtol=0)


@pytest.mark.parametrize("train", ["lora", "full"])
def test_the_reference_is_the_initial_policy(train):
    policy = build(train)
    policy.keep_reference()
    before = velocity_of(policy)
    perturb(policy)
    after = velocity_of(policy)
    assert (after - before).abs().max() > 1e-3
    with policy.reference():
        torch.testing.assert_close(velocity_of(policy), before, atol=1e-6, rtol=0)
    assert torch.equal(velocity_of(policy), after)
    with pytest.raises(KeyError), policy.reference():
        raise KeyError
    assert torch.equal(velocity_of(policy), after)


def test_full_training_without_a_stored_reference_says_so():
    with pytest.raises(RuntimeError, match="keep_reference"), build("full").reference():
        pass


def test_lora_weights_come_back_and_draw_the_same_in_the_stock_pipeline(tmp_path):
    policy = build("lora")
    perturb(policy)
    policy.save(tmp_path)
    fresh = build("lora")
    assert (velocity_of(fresh) - velocity_of(policy)).abs().max() > 1e-3
    fresh.load(tmp_path)
    torch.testing.assert_close(velocity_of(fresh), velocity_of(policy), atol=1e-6, rtol=0)
    stock = StableDiffusion3Pipeline.from_pretrained(locate("shapes"))
    stock.set_progress_bar_config(disable=True)
    stock.load_lora_weights(tmp_path)
    noise = RowNoise([1, 2, 3], (8, 8, 8))()
    call = dict(num_inference_steps=8, guidance_scale=1.0, max_sequence_length=1, output_type="pt")
    torch.testing.assert_close(stock(TEXTS, latents=noise, **call).images, policy.images(TEXTS, [1, 2, 3]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shard", ["10GB", "1MB"], ids=["one file", "shards"])
def test_full_weights_come_back(tmp_path, shard):
    policy = build("full")
    perturb(policy, 0.01)
    policy.save(tmp_path)
    if shard != "10GB":  # what save_pretrained does by itself for a large network
        (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
        policy.model.save_pretrained(tmp_path / "transformer", max_shard_size=shard)
    fresh = build("full")
    fresh.load(tmp_path)
    assert torch.equal(velocity_of(fresh), velocity_of(policy))


@pytest.mark.parametrize("train", ["lora", "full"])
def test_no_weights_is_a_missing_error(policies, tmp_path, train):
    with pytest.raises(MissingError, match="expected trained weights"):
        policies[train].load(tmp_path)


def test_adapters_of_another_network_are_refused(tmp_path):
    policy = build("lora")
    policy.save(tmp_path)
    stored = load_file(tmp_path / LORA_FILE)
    save_file({key.replace("transformer.", "unet."): value for key, value in stored.items()}, tmp_path / LORA_FILE)
    with pytest.raises(MissingError, match="adapters of this network, got .* besides"):
        policy.load(tmp_path)
    save_file({key: stored[key] for key in sorted(stored)[2:]}, tmp_path / LORA_FILE)
    with pytest.raises(MissingError, match="adapters of this network, got none for .*lora_A"):
        policy.load(tmp_path)


@pytest.mark.parametrize("train", ["lora", "full"])
def test_frozen_weights_in_half_precision_leave_training_in_float32(train):
    policy = build(train, Sampler(steps=3), dtype="bfloat16")
    assert {parameter.dtype for parameter in policy.trainable()} == {torch.float32}
    assert policy.backbone.pipeline.text_encoder.dtype == torch.bfloat16
    assert policy.backbone.pipeline.vae.dtype == torch.float32
    rollout = draw(policy, rows=3)
    new = policy.evaluate(rollout)
    assert rollout.samples.dtype == new.logp.dtype == new.mean.dtype == torch.float32
    new.logp.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in policy.trainable() if p.grad is not None)


def tiny_policy(sampler):
    """A random SD3 of two layers without text encoders; its conditions are given."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=16,
    )
    vae = AutoencoderKL(
        sample_size=16,
        block_out_channels=(4,),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
        scaling_factor=1.5,
    )
    encoders = {name: None for i in ("", "_2", "_3") for name in (f"text_encoder{i}", f"tokenizer{i}")}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline = StableDiffusion3Pipeline(transformer=transformer, vae=vae, scheduler=scheduler, **encoders)
    transformer.requires_grad_(False)
    attach_lora(transformer, LORA_TARGETS, rank=4, alpha=8.0)
    policy = DenoisePolicy(SD3(pipeline), sampler, lora=True)
    policy._conditions = {text: {"embeds": torch.randn(4, 16), "pooled": torch.randn(16)} for text in (*TEXTS, "")}
    return policy


@pytest.mark.parametrize("algorithm", [GRPOGuard(kl=0.1), FlowGRPO()], ids=["guard", "flow_grpo"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_one_update_of_a_tiny_sd3(algorithm, guidance):
    policy = tiny_policy(Sampler(steps=4, guidance=guidance))
    rollout = draw(policy)
    assert rollout.samples.shape == (ROWS, 3, 8, 8)
    rollout = replace(rollout, reward=JpegSize()(rollout.samples, rollout.prompts))
    updated(policy, algorithm.objective(), rollout)


@pytest.mark.parametrize(("kernel", "trained"), [("flow_sde", 7), ("dance_sde", 7), ("cps", 6), ("ddim", 6)])
def test_steps_without_enough_noise_are_not_trained(policies, kernel, trained):
    """The grid ends 0.338, 0.0089, 0; the noise of cps and ddim goes with the next sigma, so at 0.0089 little is left."""
    policy = policies["lora"]
    policy.sampler = Sampler(kernel=kernel, level=NOISY[kernel])
    assert policy.noisy_steps(0) == list(range(trained))
    assert draw(policy, rows=2).old.std.shape == (2, trained) and draw(policy, rows=2).old.std.min() >= 0.01
    policy.sampler = replace(policy.sampler, min_std=0.0)
    assert policy.noisy_steps(0) == list(range(7))
    policy.sampler = replace(policy.sampler, min_std=2.0)
    with pytest.raises(ConfigError, match="recipe.sampler: expected a window with a step of std at least min_std = 2"):
        policy.noisy_steps(0)
