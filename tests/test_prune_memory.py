"""The memory of a prune run: its parts by hand on tiny blueprints, and where the command line shows them."""

import json

import pytest
import torch
from torch import nn
from toys import saved_for_backward

from flows.blueprint import find, on_meta
from pruning.build import dense_policy, score
from pruning.calibrate import Calibration
from pruning.evidence import draw_pairs
from pruning.launch import load_prune_recipe
from pruning.memory import live_peak, memory_plan
from pruning.sites import Sites
from studio.cli import app
from studio.config import component
from studio.recipe import recipe_names

SD3 = "model={random: tiny-sd3, resolution: 16, text_length: 6}"  # 2 blocks, width 16, 2 heads of 8, 64 neurons
LIMITS = {"24 GB": 24, "80 GB": 80}


def plan(*overrides, name="shapes/obs"):
    recipe, _ = load_prune_recipe(name, [SD3, "sampler.guidance=2", "calibration={rows: 8, batch: 4}", "evaluate=5", *overrides])
    return {stage.name: stage for stage in memory_plan(recipe)}


def test_what_is_alive_at_once_by_hand():
    """Rows of 8, 2 and 4 numbers in float32: the widest moment has 8 and 2 of them, 40 bytes; the input was there before."""
    with torch.device("meta"):
        network, x = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(2, 4)), torch.empty(1, 4)
    assert live_peak(network, lambda: network(x)) == 4 * (8 + 2)
    assert live_peak(network, lambda: network(x).mul_(2)) == 4 * (8 + 2)  # in place


def test_gram_matrices_by_hand():
    """Consumers: attention outputs of 16 inputs (text and picture in block 0, picture in 1), feed-forwards of 64 (text in 0 alone).

    Squares: 3·16² + 3·64² = 13056 at 8 bytes. In five packages each of the five modules is alone: 64² at most.
    """
    network = on_meta(find("tiny-sd3"))
    widths = [dict(network.named_modules())[s.module].in_features for g in Sites().of(network) for s in g.consumers]
    assert sorted(widths) == [16] * 3 + [64] * 3
    whole = plan()
    for stage in ("scoring", "compensation"):
        assert whole[stage].uses["gram"] == 8 * (3 * 16**2 + 3 * 64**2) and whole[stage].uses["solver"] == 48 * 64**2
        assert whole[stage].uses["rows"] == pytest.approx(whole["pictures"].uses["rows"])
    assert plan("calibration.packages=5")["scoring"].uses["gram"] == 8 * 64**2
    assert "compensation" not in plan("compensation.on=false")


def test_weights_and_decoding_by_hand():
    network = on_meta(find("tiny-sd3"))
    parameters = sum(p.numel() for p in network.parameters())
    pictures = plan()["pictures"].uses
    assert pictures["weights"] == 4 * parameters and pictures["workspace"] == 1e9
    assert pictures["decoding"] == 5000 * 4 * 16**2  # the pictures of a calibration batch
    assert plan("model.dtype=bfloat16")["pictures"].uses["weights"] == 2 * parameters
    late = plan("target={latency: 0.9}")["pictures"].uses
    assert late["copy"] == 4 * parameters and late["weights"] == 4 * parameters


def test_updates_and_gradients_by_hand():
    """One step of R rows twice (guidance) is kept, and 16 bytes of each number of every latent: 4·8·8 numbers, 8 steps."""
    learned = [plan(f"learn={{rows: 4, parts: {parts}}}", name="shapes/end-to-end")["updates"].uses for parts in (1, 2)]
    assert learned[0]["activations"] == 2 * learned[1]["activations"] > 0
    assert learned[0]["record"] == 16 * 4 * 8 * 8 * 4 * 8
    assert learned[0]["logits"] == 16 * (2 * 2 + 3 * 64)
    cut = [m for m in on_meta(find("tiny-sd3")).named_modules() if m[0] in NAMES]
    held = sum(p.numel() for _, m in cut for p in m.parameters())
    assert plan(name="shapes/taylor")["scoring"].uses["gradients"] == (12 + 4) * held
    assert "gradients" not in plan("criterion={name: end_to_end, first: wanda}", name="shapes/end-to-end")["scoring"].uses


NAMES = {f"transformer_blocks.{i}.attn.{part}" for i in (0, 1) for part in ("to_q", "to_k", "to_v", "to_out.0")}
NAMES |= {f"transformer_blocks.{i}.attn.add_{part}_proj" for i in (0, 1) for part in "qkv"} | {
    "transformer_blocks.0.attn.to_add_out"
}
NAMES |= {f"transformer_blocks.{i}.ff.net.{part}" for i in (0, 1) for part in ("0.proj", "2")}
NAMES |= {f"transformer_blocks.0.ff_context.net.{part}" for part in ("0.proj", "2")}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["all kept", "recomputed"])
def test_what_gates_keep_is_what_autograd_keeps(checkpointing):
    """Against a real forward of two rows less one of one row, all under gates; what is recomputed is less."""
    from flows.load import Model, load_backbone
    from pruning.gating import gated

    model = Model(random="tiny-sd3", resolution=16, text_length=6, device="cpu", gradient_checkpointing=checkpointing)
    backbone = load_backbone(model)
    groups = Sites().of(backbone.network)

    def kept(rows):
        gates = {group.name: torch.ones(group.units, requires_grad=True) for group in groups}
        x = torch.randn(rows, *backbone.latent_shape, requires_grad=True)
        with saved_for_backward(backbone.network) as sizes, gated(backbone.network, groups, gates):
            condition = {key: value.expand(rows, *value.shape[1:]) for key, value in backbone.encode(["a"]).items()}
            backbone.velocity(x, torch.full((rows,), 0.5), condition)
        return sum(sizes.values())

    overrides = [f"model.gradient_checkpointing={str(checkpointing).lower()}", "learn={rows: 1}", "sampler.guidance=1"]
    found = plan(*overrides, name="shapes/ecodiff")["updates"].uses["activations"]
    real = kept(2) - kept(1)
    assert found > real if checkpointing else found == pytest.approx(real, rel=0.15)


def test_a_model_without_a_blueprint_has_no_plan():
    recipe, _ = load_prune_recipe("shapes/obs", [])
    assert memory_plan(recipe) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in recipe_names("prune") if not name.startswith("shapes")])
def test_a_recipe_fits_the_gpu_that_it_names(name):
    recipe, source = load_prune_recipe(name, [])
    limit = next(size for words, size in LIMITS.items() if f"one {words} GPU" in source)
    needed = max(stage.total for stage in memory_plan(recipe)) / 1e9
    assert limit / 4 < needed < 0.92 * limit


def test_check_prints_a_line_for_every_stage():
    from typer.testing import CliRunner

    done = CliRunner().invoke(app, ["check", "shapes/obs", SD3, "--json"])
    facts = json.loads(done.stdout)
    assert done.exit_code == 0 and facts["units that may go"] == "196 in 5 modules"
    assert [key for key in facts if key.startswith("memory")] == [
        f"memory for {stage} (estimate)" for stage in ("scoring", "compensation", "pictures")
    ]


def test_scores_do_not_depend_on_the_number_of_packages():
    recipe, _ = load_prune_recipe("shapes/obs", [])
    policy = dense_policy(recipe.model, recipe.sampler, 0)
    groups = recipe.sites.of(policy.model)[:5]
    pairs = draw_pairs(recipe.prompts.options.build(0), 2, 0)
    options = component("criterion", "obs", rounds=2).options
    one, three = (score(policy, groups, options, pairs, Calibration(rows=2, packages=count), 0) for count in (1, 3))
    assert one.keys() == three.keys() and all(torch.equal(one[name], three[name]) for name in one)
