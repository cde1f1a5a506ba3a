"""Healing a pruned network: towards the dense velocities, and on a reward; what is exported is the healed network."""

from __future__ import annotations

import pytest
import torch
from test_train import fresh

from pruning.heal import HEAL, PRUNED, START, Distill, healed_policy, healing, trajectories
from pruning.launch import load_prune_recipe
from pruning.run import prune
from studio.config import dump
from studio.errors import NeedsError
from studio.run import Run, RunView
from studio.train import train

SMALL = ["calibration={rows: 8, batch: 8}", "evaluate=8", "sampler={steps: 3, eval_steps: 3}", "target.params=0.75"]


def pruned_run(folder, *overrides):
    recipe, source = load_prune_recipe("shapes/taylor", [*SMALL, *overrides])
    run = Run.create(folder, "run", dump(recipe), source, total_steps=0, command=[])
    assert prune(recipe, run, tell=lambda text: None, report=lambda step, values: None) == "finished"
    return recipe, run, RunView.open(run.folder).summary


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    settings = "heal={method: distill, steps: 12, rows: 8, learning_rate: 1.0e-3, checkpointing_steps: 6}"
    return pruned_run(tmp_path_factory.mktemp("heal"), settings)


def test_distillation_brings_the_latents_closer_to_the_dense_model(distilled):
    *_, summary = distilled
    dense, cut, compensated, healed = summary["stages"]
    assert healed["latent_error"] < compensated["latent_error"] < cut["latent_error"]
    assert healed["params"] == compensated["params"] < dense["params"]


def test_the_exported_network_is_the_healed_one(distilled):
    """RUN/pruned answers as the healed policy does, and not as the network before its healing."""
    from pruning.compact import load_compact

    recipe, run, _ = distilled
    policy = healed_policy(recipe, run)
    x = torch.randn((2, *policy.backbone.latent_shape), generator=torch.Generator().manual_seed(0))
    answers = [policy.velocity(["a red circle"] * 2)(x, x.new_full((2,), 0.5))]
    for name in (PRUNED, START):
        policy.backbone.network = load_compact(run.folder / name)
        answers.append(policy.velocity(["a red circle"] * 2)(x, x.new_full((2,), 0.5)))
    healed, stored, before = (answer.detach() for answer in answers)
    torch.testing.assert_close(stored, healed, rtol=1e-5, atol=1e-5)
    assert (before - healed).abs().max() > 1e-3


def test_the_teachers_velocities_are_those_of_its_own_trajectory(distilled):
    """v recovered from an Euler step equals a call of the network at the same point."""
    from pruning.build import dense_policy

    recipe, _, _ = distilled
    teacher = dense_policy(recipe.model, recipe.sampler, 0)
    x, sigma, velocity = trajectories(teacher, ["a red circle", "two blue squares"], [1, 2])
    with torch.no_grad():
        texts = [text for text in ("a red circle", "two blue squares") for _ in range(3)]
        torch.testing.assert_close(velocity, teacher.velocity(texts)(x, sigma), rtol=1e-3, atol=1e-4)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(tmp_path):
    """LoRA starts at zero: the first loss of distillation from the same model is rounding."""
    from dataclasses import replace

    from studio.config import Component

    recipe = healing(load_prune_recipe("shapes/taylor", [*SMALL, "heal={method: distill, steps: 1, rows: 4}"])[0], fake(tmp_path))
    model = replace(recipe.policy.options.model, pruned=None)
    policy = replace(recipe.policy.options, model=model)
    algorithm = Component("distill", Distill(model, policy.sampler))
    own = replace(recipe, policy=Component("denoise", policy), algorithm=algorithm)
    run = fresh(own, tmp_path, "same")
    train(own, run)
    first = next(record for record in RunView.open(run.folder).metrics().records if "loss/total" in record)
    assert first["loss/total"] < 1e-8


class fake:
    """A run as far as `healing` looks at it."""

    def __init__(self, folder):
        self.folder = folder


def test_distillation_is_refused_on_a_policy_without_a_sampler_of_latents():
    from studio.core import check_fit
    from studio.registry import lookup

    check_fit("distill", Distill().objective(), lookup("policy", "denoise").provides, "denoise")
    for other in ("match", "gated"):
        with pytest.raises(NeedsError, match="latents"):
            check_fit("distill", Distill().objective(), lookup("policy", other).provides, other)


@pytest.mark.parametrize(("model", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_the_first_replay_is_as_exact_as_the_weights(tmp_path, model, tolerance):
    overrides = [*SMALL, "heal={method: reward}", f"model.dtype={model}"]
    assert healing(load_prune_recipe("shapes/taylor", overrides)[0], fake(tmp_path)).train.ratio_tolerance == tolerance


@pytest.mark.parametrize("on", [True, False])
def test_masks_are_trained_as_they_will_be_cut(on):
    """Removed modulation outputs become their mean with compensation, and zero without."""
    overrides = [f"compensation={{on: {on}}}", "criterion.first=wanda", "sites.kinds=[modulation]"]
    recipe, _ = load_prune_recipe("shapes/end-to-end", [*overrides, "target.params=0.99"])
    assert recipe.training().policy.options.compensation.on is on


@pytest.mark.slow
def test_healing_by_reward_goes_through_grpo_guard(tmp_path):
    recipe, run, summary = pruned_run(tmp_path, "heal={method: reward, steps: 2, rows: 16}", "sampler.steps=4")
    assert [stage["name"] for stage in summary["stages"]] == ["dense", "cut", "compensated", "healed"]
    assert healing(recipe, run).algorithm.name == "grpo_guard"
    assert RunView.open(run.folder / HEAL).status["state"] == "finished"
