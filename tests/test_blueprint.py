"""Random models from blueprints: the published parameter counts, weights that answer in every dtype, recipes that name them."""

import pytest
import torch

from flows.blueprint import blueprints, find, on_meta
from flows.load import Lora, Model, build_policy, load_backbone
from flows.sampler import Sampler
from studio.config import build
from studio.errors import ConfigError
from studio.types import Prompts

# billions, from the models' pages and their safetensors indices
PUBLISHED = {"sd35-medium": 2.243, "sd35-large": 8.057, "sd3-medium": 2.028, "flux-dev": 11.901, "flux-schnell": 11.891}
PUBLISHED |= {"sdxl": 2.567}
TINY = {"tiny-sd3": 16, "tiny-flux": 32, "tiny-flux-schnell": 32, "tiny-sdxl": 16}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name):
    network = on_meta(blueprints()[name])
    assert sum(p.numel() for p in network.parameters()) / 1e9 == pytest.approx(PUBLISHED[name], abs=1e-3)
    assert {p.device.type for p in network.parameters()} == {"meta"}


def test_a_blueprint_is_found_by_name_and_by_hub_id():
    assert find("black-forest-labs/FLUX.1-dev") is find("flux-dev") and find("flux-dev").part == "transformer"
    assert find("someone/else") is None and find("sdxl").part == "unet"
    assert find("sd35-medium").text_tokens(128) == 205 and find("flux-dev").text_tokens(512) == 512
    assert find("sdxl").text_tokens(512) == 77


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", TINY)
def test_a_random_model_answers_with_numbers_of_its_dtype(name, dtype):
    model = Model(random=name, resolution=TINY[name], dtype=dtype, device="cpu", text_length=6, lora=Lora(rank=2))
    policy = build_policy(model, Sampler(steps=2, eval_steps=2), seed=0)
    frozen = {p.dtype for p in policy.model.parameters() if not p.requires_grad}
    assert frozen == {getattr(torch, dtype)} and {p.dtype for p in policy.trainable()} == {torch.float32}
    images = policy.images(["a lamp", "two chairs"], [1, 2])
    assert images.shape == (2, 3, TINY[name], TINY[name]) and images.std() > 0.01
    assert (images[0] - policy.images(["two chairs"], [1])[0]).abs().max() > 1e-5  # the text matters


def test_weights_and_texts_depend_on_their_names_alone():
    model = Model(random="tiny-flux", resolution=32, device="cpu", text_length=6)
    one, two = load_backbone(model), load_backbone(model)
    for a, b in zip(one.network.parameters(), two.network.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(one.encode(["a", "b"])["embeds"][1], two.encode(["b"])["embeds"][0])
    assert one.network.transformer_blocks[0].attn.to_q.weight.std() == pytest.approx(1 / 32**0.5, rel=0.1)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", TINY)
def test_gradient_checkpointing_keeps_the_gradient_and_less_memory(name, checkpointing):
    def gradients(checkpointing):
        model = Model(random=name, resolution=TINY[name], device="cpu", text_length=6, gradient_checkpointing=checkpointing)
        policy = build_policy(model, Sampler(steps=3), seed=0)
        rollout = policy.sample(Prompts(["a"], ["a"], [{}]), group=torch.zeros(1, dtype=torch.int64), seeds=[1], step=0)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.nbytes) or x, lambda x: x):
            loss = policy.evaluate(rollout).velocity.square().mean()
        loss.backward()
        return [p.grad for p in policy.trainable()], sum(kept)

    usual, most = gradients(False)
    found, kept = gradients(checkpointing)
    for a, b in zip(usual, found, strict=True):
        torch.testing.assert_close(a, b)
    assert kept < 0.8 * most if checkpointing else kept == most


@pytest.mark.parametrize(
    ("options", "words"),
    [({"random": "sd35-medum"}, "sd35-medium"), ({"random": "sdxl", "id": "a/b"}, "got both 'a/b' and 'sdxl'")],
)
def test_a_wrong_name_is_a_config_error(options, words):
    with pytest.raises(ConfigError, match=words):
        build(Model, options)


@pytest.mark.parametrize(
    ("name", "resolution", "says"),
    [
        ("tiny-sd3", 30, "expected a multiple of 4"),
        ("tiny-flux", 30, "expected a multiple of 4"),
        ("tiny-flux", 2, "expected a multiple of 4"),
        ("tiny-sdxl", 31, "expected a multiple of 2"),
        ("tiny-sd3", 4096, "up to"),
    ],
)
def test_a_size_that_the_network_cannot_draw_is_a_config_error(name, resolution, says):
    """FLUX would draw 28 pixels for 30, and SD3 end in a mismatch of tensors at the first step."""
    with pytest.raises(ConfigError, match=rf"recipe.model.resolution: .*{says}.* got {resolution}"):
        load_backbone(Model(random=name, resolution=resolution, device="cpu", text_length=4))
