"""The benchmark of full-size models runs at toy size; its count of operations against one by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_image import CASES, operations, recipe_of
from flows.blueprint import blueprints
from flows.memory import footprint

ROOT = Path(__file__).parents[1]


def test_every_case_runs_at_toy_size():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_image", "--tiny", "--rounds", "1", "policy.sampler.steps=3"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    assert {"device", "torch", "tiny", *CASES} == results.keys() and results["device"] == "cpu"
    for case in CASES:
        found = results[case]
        assert found["images"] == 4 and found["images_per_s"] == pytest.approx(4 / found["seconds"]["iteration"])
        assert found["seconds"]["iteration"] >= found["seconds"]["update"] > 0 and found["over_bare"] > 0.5
        assert found["mfu"] is None and found["estimated_memory_gb"] > 1


@pytest.mark.parametrize(
    ("case", "calls"), [("sd35-lora", 2 * (10 + 9 * 2)), ("sd35-full", 2 * (10 + 9 * 3)), ("flux-lora", 6 + 5 * 2)]
)
def test_operations_by_hand(case, calls):
    recipe = recipe_of(case, [], tiny=True)
    model = recipe.policy.options.model
    assert operations(recipe) == 4 * calls * footprint(model, blueprints()[model.random]).flops


def test_the_cases_are_those_of_the_papers():
    sd35, full, flux, sdxl = (recipe_of(case, [], tiny=False) for case in CASES)
    assert sd35.train.group_size == 24 and sd35.policy.options.sampler.steps == 10 and sd35.policy.options.model.lora.rank == 32
    assert full.policy.options.model.train == "full" and sdxl.policy.options.sampler.kernel == "ddim"
    assert flux.policy.options.sampler.steps == 6 and flux.policy.options.forwards()["rollout"] == 6
    for recipe in (sd35, full, flux, sdxl):
        assert recipe.train.mixed_precision == "bf16" and recipe.train.split_steps
        recipe.check()
