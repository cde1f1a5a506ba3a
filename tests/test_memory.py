"""The memory estimate: its trace against what autograd keeps for real, its arithmetic by hand, and where `check` shows it."""

import re

import pytest
import torch
from toys import saved_for_backward

from flows.blueprint import find
from flows.load import Lora, Model, load_backbone
from flows.memory import estimate, footprint
from flows.sampler import Sampler, Window
from studio.recipe import load_recipe, plan, recipe_names

SIZES = {"tiny-sd3": 16, "tiny-flux": 32, "tiny-sdxl": 16}
LIMITS = {"24gb": 24, "80gb": 80}


def model(name, **options):
    return Model(random=name, resolution=SIZES.get(name, 512), device="cpu", text_length=6, **options)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", SIZES)
def test_what_is_kept_is_what_autograd_keeps(name, checkpointing):
    """Against a real forward of two rows less one of one row: what is there once, not per row, falls out."""
    wanted = model(name, train="full", gradient_checkpointing=checkpointing)
    backbone = load_backbone(wanted)
    backbone.network.requires_grad_(True)

    def kept(rows):
        with saved_for_backward(backbone.network) as sizes:
            condition = {key: value.expand(rows, *value.shape[1:]) for key, value in backbone.encode(["a"]).items()}
            answer = backbone.velocity(torch.randn(rows, *backbone.latent_shape), torch.full((rows,), 0.5), condition)
        assert answer.requires_grad
        return sum(sizes.values())

    assert footprint(wanted, find(name)).kept == pytest.approx(kept(2) - kept(1), rel=0.15)


def test_operations_of_a_known_network():
    """SD3.5-M at 512 px: 2 operations per weight and token it is used on, plus attention, is 2.2 teraflops."""
    cost = footprint(Model(random="sd35-medium", resolution=512, dtype="bfloat16", text_length=128), find("sd35-medium"))
    assert cost.parameters / 1e9 == pytest.approx(2.243, abs=1e-3) and cost.event == 16 * 64 * 64 and cost.pixels == 512**2
    # adapters of rank 32 on eight projections of 24 joint blocks and four of 13 dual ones, all 1536 wide but for the last block
    assert cost.trained == pytest.approx((24 * 8 + 13 * 0) * 2 * 1536 * 32, rel=0.03)
    assert 2.0e12 < cost.flops < 2.4e12


def test_the_sum_by_hand():
    tiny = model("tiny-sd3", lora=Lora(rank=2), gradient_checkpointing=True)
    cost = footprint(tiny, find("tiny-sd3"))
    sampler = Sampler(steps=4, guidance=2.0, window=Window(size=2))
    found = estimate(tiny, sampler, samples=6, part=3, average=True, reference=True)
    n = cost.trained
    assert (found.weights, found.gradients, found.optimizer, found.average) == (4 * cost.parameters + 4 * n, 4 * n, 8 * n, 4 * n)
    assert found.reference == 0  # adapters are switched off
    assert found.activations == (cost.kept + cost.block) * 3 * 2 * 2 and found.record == 16 * 4 * 8 * 8 * 6 * 2
    apart = estimate(tiny, sampler, samples=6, part=3, average=False, reference=True, split_steps=True, gpus=2)
    assert apart.activations == found.activations / 2 and apart.average == 0 and apart.gradients == 8 * n
    assert found.total == pytest.approx(sum(vars(found).values()))


def test_full_training_keeps_everything_in_float32():
    full = model("tiny-flux", train="full", dtype="bfloat16")
    cost = footprint(full, find("tiny-flux"))
    sampler = Sampler(steps=4)
    alone = estimate(full, sampler, samples=4, part=4, average=True, reference=True)
    assert cost.trained == cost.parameters
    assert alone.weights == alone.gradients == alone.average == alone.reference == 4 * cost.parameters
    sharded = estimate(full, sampler, samples=4, part=4, average=True, reference=True, gpus=4, sharded=True)
    assert sharded.weights == cost.parameters and sharded.optimizer == 2 * cost.parameters
    assert sharded.activations == alone.activations


def test_a_model_without_a_blueprint_has_no_estimate():
    recipe, _ = load_recipe("shapes/grpo-guard")
    assert not [key for key in plan(recipe) if "memory" in key]


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.endswith("gb")])
def test_a_recipe_fits_the_memory_in_its_name(name):
    recipe, _ = load_recipe(name)
    assert recipe.check(prompts=False) == []
    shown = plan(recipe)["memory per GPU (estimate)"]
    size = float(re.match(r"([\d.]+) GB = weights", shown)[1])
    limit = LIMITS[name.rpartition("-")[2]]
    assert limit / 6 < size < 0.92 * limit, shown


def test_a_second_guidance_is_warned_about():
    recipe, _ = load_recipe("grpo-guard/flux-dev-lora-80gb", ["policy.sampler.guidance=4.5"])
    assert any("guided by model.embedded_guidance" in warning for warning in recipe.check(prompts=False))
