"""A reward that fails for good in the middle of a run: the last complete step is saved, and nothing of the broken one."""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from PIL import Image
from test_train import fresh

import rewards
import studio.train as loop
from studio.errors import RewardError
from studio.launch import work
from studio.recipe import load_recipe
from studio.rollout import _scores_of_all
from studio.run import Run, RunView

SMALL = ("train.groups_per_step=2", "train.group_size=4", "train.steps=5", "train.checkpointing_steps=100", "held_out={}")
SMALL += ("watch.prompts=4", "watch.every=100", "policy.sampler.steps=4", "policy.sampler.eval_steps=4")
SMALL += ("policy.sampler.window.size=2", "rewards={fragile: 1.0}")
CALLS = {"left": 0}


@dataclass(frozen=True)
class Fragile:
    """Brightness plus a little noise from the global generator, until its server is gone after so many calls."""

    name = "fragile"
    reads = "image"
    differentiable = False
    range = (0.0, 1.0)
    license = "Apache-2.0"
    model_id = None

    def __call__(self, samples, prompts):
        if CALLS["left"] <= 0:
            raise RewardError("reward 'fragile': expected an answer, got none. Start the server again.")
        CALLS["left"] -= 1
        return samples.flatten(1).mean(1) + 0.01 * torch.rand(len(samples))


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.setitem(rewards.REWARDS, "fragile", f"{__name__}:Fragile")
    return lambda *more: load_recipe("shapes/grpo-guard", [*SMALL, *more])[0]


def rewards_by_step(folder) -> dict[int, float]:
    return {record["step"]: record["reward/mean"] for record in RunView.open(folder).metrics().records if "reward/mean" in record}


@pytest.mark.slow
@pytest.mark.parametrize("good_calls", [3, 4], ids=["at the third step", "at the fourth step"])
def test_the_last_complete_step_is_saved_and_continues_as_if_nothing_had_happened(tmp_path, recipe, good_calls):
    whole = recipe()
    CALLS["left"] = 100
    loop.train(whole, fresh(whole, tmp_path, "whole"))
    CALLS["left"] = good_calls  # one for the evaluation of the base, one for every step
    with pytest.raises(RewardError, match="Start the server again"):
        work(fresh(whole, tmp_path, "cut"), whole, progress="none")
    steps = good_calls - 1
    view = RunView.open(tmp_path / "cut")
    assert (view.status["state"], view.status["exit_code"]) == ("failed", 4)
    assert view.checkpoints() == [steps] and max(rewards_by_step(view.folder)) == steps
    CALLS["left"] = 100
    assert loop.train(whole, Run.resume(view.folder)) == "finished"
    assert rewards_by_step(view.folder) == rewards_by_step(tmp_path / "whole")
    weights = [torch.load(tmp_path / name / "checkpoints" / "000005" / "state.pt") for name in ("whole", "cut")]
    assert all(torch.equal(a, b) for a, b in zip(*(w["trainable"] for w in weights), strict=True))


def test_an_evaluation_that_fails_saves_the_step_before_it(tmp_path, recipe):
    small = recipe("watch.every=2", "train.steps=2")
    CALLS["left"] = 3  # the base, two steps; the evaluation after them fails
    with pytest.raises(RewardError, match="Start the server again"):
        loop.train(small, fresh(small, tmp_path, "run"))
    assert RunView.open(tmp_path / "run").checkpoints() == [2]


def test_a_failure_before_the_first_step_saves_nothing(tmp_path, recipe):
    CALLS["left"] = 1
    with pytest.raises(RewardError):
        loop.train(recipe(), fresh(recipe(), tmp_path, "run"))
    assert RunView.open(tmp_path / "run").checkpoints() == []


def test_a_failure_on_another_rank_is_a_failure_here():
    class Here:
        def collect(self):
            return {"fragile": "scores"}

    class Gone:
        def collect(self):
            raise RewardError("gone here")

    class Ranks:
        def gather_objects(self, mine):
            return [mine, RewardError("gone on rank 1")]

    with pytest.raises(RewardError, match="gone on rank 1"):
        _scores_of_all(Here(), Ranks())
    with pytest.raises(RewardError, match="gone here"):
        _scores_of_all(Gone(), Ranks())


@pytest.mark.slow
def test_a_reward_that_fails_on_one_of_two_ranks_saves_a_checkpoint(tmp_path):
    """Rank 1's function raises in the third step; rank 0, which writes, learns it where scores are gathered."""
    (tmp_path / "fragile_function.py").write_text(
        "import os\ncalls = []\n\ndef bright(samples, prompts):\n    calls.append(1)\n"
        "    if os.environ.get('RANK') == '1' and len(calls) == 3:\n        raise OSError('gone on rank 1')\n"
        "    return samples.mean((1, 2, 3))\n"
    )
    reward = "rewards={function: {weight: 1.0, target: 'fragile_function:bright'}}"
    line = [sys.executable, "-m", "studio.cli", "train", "shapes/grpo-guard", *SMALL[:-1], reward, "--processes", "2"]
    line += ["--runs", str(tmp_path), "--name", "run", "--progress", "none"]
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": paths})
    view = RunView.open(tmp_path / "run")
    assert done.returncode == 4, done.stderr
    assert view.checkpoints() == [2] and "gone on rank 1" in view.status["reason"]


class FragileWithGradient(Fragile):
    differentiable = True


def test_direct_back_propagation_saves_its_last_complete_step_too(tmp_path, monkeypatch):
    monkeypatch.setitem(rewards.REWARDS, "fragile", f"{__name__}:FragileWithGradient")
    small = [setting for setting in SMALL if "window" not in setting]
    recipe = load_recipe("shapes/draft", [*small, "algorithm.k=2"])[0]
    CALLS["left"] = 3  # the evaluation of the base and two steps
    with pytest.raises(RewardError, match="Start the server again"):
        loop.train(recipe, fresh(recipe, tmp_path, "run"))
    assert RunView.open(tmp_path / "run").checkpoints() == [2]


def test_a_small_file_of_many_pixels_is_refused_before_it_is_unpacked():
    """20 KB of PNG are 169 million white pixels: 2 GB of numbers, and a request may hold many of them."""
    from rewards.server import Refused, read_request

    file = io.BytesIO()
    Image.new("1", (1000, 1000)).save(file, "PNG")
    request = {"images": [base64.b64encode(file.getvalue()).decode()] * 3, "prompts": ["x"] * 3}
    assert len(read_request(request, pixels=3_000_000)[0]) == 3
    with pytest.raises(Refused, match="expected at most 2999999 pixels in a request") as refused:
        read_request(request, pixels=2_999_999)
    assert refused.value.code == 413
