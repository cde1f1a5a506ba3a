"""The command line as a user meets it: results on stdout, one message and the right exit code for every mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from studio.run import RunView

SMALL = (
    "train.steps=2",
    "train.groups_per_step=2",
    "train.group_size=4",
    "train.checkpointing_steps=1",
    "watch.prompts=4",
    "watch.every=1",
    "policy.sampler.steps=4",
    "policy.sampler.eval_steps=4",
    "policy.sampler.window.size=2",
)


def studio(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "studio.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=300)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A runs folder with one finished small run, made by the command line."""
    root = tmp_path_factory.mktemp("runs")
    done = studio("train", "shapes/grpo-guard", *SMALL, "--runs", str(root), "--name", "first", "--progress", "plain")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(root / "first")
    assert done.stderr.count("step ") >= 2 and "\x1b" not in done.stderr
    return root


@pytest.mark.slow
def test_a_run_is_listed_shown_and_reported(runs):
    listed = json.loads(studio("runs", "--runs", str(runs), "--json").stdout)
    shown = json.loads(studio("show", "first", "--runs", str(runs), "--json").stdout)
    assert [(run["name"], run["state"], run["step"]) for run in listed] == [("first", "finished", 2)]
    assert shown["checkpoints"] == [1, 2] and "reward/held_out.clip" in shown["latest"]
    assert (runs / "first" / "export" / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_evaluate_writes_the_summary_that_programs_read(runs):
    done = studio("evaluate", "first", "--runs", str(runs), "--prompts", "6", "--json")
    summary = json.loads((runs / "first" / "summary.json").read_text())
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == summary and summary["prompts"] == 6
    for side in ("before", "after"):
        assert {"scene", "scene_strict", "clip", "guards"} <= summary[side].keys()
        assert 0 <= summary[side]["scene_strict"] <= summary[side]["scene"] <= 1


@pytest.mark.slow
def test_sample_then_score_the_pictures(runs):
    drawn = studio("sample", "first", "--runs", str(runs), "--count", "3", "--prompt", "a red circle")
    folder = drawn.stdout.strip()
    scored = json.loads(studio("score", "scene", folder, "--json").stdout)
    assert [row["file"] for row in scored["files"]] == ["0000.png", "0001.png", "0002.png"]
    assert scored["mean"]["scene"] == pytest.approx(sum(row["scene"] for row in scored["files"]) / 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "code", "says"),
    [
        (("--name", "first"), 2, "already exists"),
        (("--name", "first", "--resume"), 2, "finished"),
        (("--name", "first", "--resume", "algorithm.clip=0.5"), 2, "algorithm.clip"),
        (("--name", "../out"), 2, "name"),
        (("--name", "none", "--resume"), 2, "none"),
    ],
    ids=["existing name", "resume of a finished run", "resume with a changed recipe", "name leaves the folder", "no run"],
)
def test_run_mistakes(runs, extra, code, says):
    options = [e for e in extra if "=" not in e]
    overrides = SMALL if "--resume" not in extra else tuple(e for e in extra if "=" in e)
    done = studio("train", "shapes/grpo-guard", *overrides, "--runs", str(runs), *options)
    assert done.returncode == code and says in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "expected a recipe, got none"),
        (("shapes/grpo-gard",), 2, "did you mean 'shapes/grpo-guard'"),
        (("shapes/grpo-guard", "algorithm.clp=1"), 2, "did you mean 'clip'"),
        (("shapes/grpo-guard", "train.steps=many"), 2, "recipe.train.steps"),
        (("shapes/grpo-guard", "train.group_size=1"), 2, "recipe.train.group_size"),
        (("shapes/grpo-guard", "train.gradient_accumulation_steps=7"), 2, "remainder"),
        (("shapes/grpo-guard", "algorithm=ppo"), 2, "needs logp, value"),
        (("shapes/grpo-guard", "policy.sampler.window.size=9"), 2, "recipe.sampler.window"),
        (("shapes/grpo-guard", "policy.model.id=./nowhere"), 3, "recipe.model.id"),
        (("shapes/grpo-guard", "prompts={name: file, train: /nowhere/p.txt}"), 2, "recipe.prompts"),
    ],
    ids=["none", "recipe", "key", "type", "group of one", "plan", "algorithm", "window", "model folder", "prompt file"],
)
def test_recipe_mistakes(tmp_path, arguments, code, says):
    done = studio("train", *arguments, "--runs", str(tmp_path), "--progress", "none")
    assert done.returncode == code and says in done.stderr and "Traceback" not in done.stderr


def test_a_prompt_that_the_reward_cannot_judge_is_named(tmp_path):
    (tmp_path / "p.txt").write_text("a photo of a cat\n")
    prompts = f"prompts={{name: file, train: {tmp_path / 'p.txt'}}}"
    done = studio("train", "shapes/grpo-guard", prompts, "--runs", str(tmp_path), "--progress", "none")
    assert done.returncode == 2 and "a photo of a cat" in done.stderr and "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_written_is_a_permission_error(tmp_path):
    (tmp_path / "file").write_text("")
    done = studio("train", "shapes/grpo-guard", "--runs", str(tmp_path / "file"), "--progress", "none")
    assert done.returncode == 3 and "Traceback" not in done.stderr


def test_help_list_and_check_work_and_help_does_not_load_torch():
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'torch': raise RuntimeError('torch was imported')\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "sys.argv = ['studio', '--help']\n"
        "from studio.cli import main\n"
        "main()\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
    algorithms = studio("list", "algorithms").stdout
    assert "grpo_guard" in algorithms and "denoise" in algorithms
    facts = json.loads(studio("check", "shapes/grpo-guard", "train.groups_per_step=4", "--json").stdout)
    assert facts["samples per step"] == 48 and any("groups_per_step" in warning for warning in facts["warnings"])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGTERM", "studio stop"])
def test_a_stop_leaves_a_checkpoint_and_exit_code_0(tmp_path, how):
    """The run is stopped once its first step is logged, ends within that step, and says how it goes on."""
    command = [sys.executable, "-m", "studio.cli", "train", "shapes/grpo-guard", *SMALL, "train.steps=1000", "watch.every=1000"]
    command += ["train.checkpointing_steps=1000", "--runs", str(tmp_path), "--name", "long", "--progress", "plain"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        metrics = tmp_path / "long" / "metrics.jsonl"
        for _ in range(600):
            if metrics.is_file() and '"step": 1' in metrics.read_text():
                break
            time.sleep(0.2)
        process.terminate() if how == "SIGTERM" else studio("stop", "long", "--runs", str(tmp_path))
        told = process.communicate(timeout=60)[1]
    assert process.returncode == 0, told
    view = RunView.open(tmp_path / "long")
    step = view.status["step"]
    assert (view.status["state"], view.status["exit_code"]) == ("stopped", 0) and 1 <= step < 1000
    assert view.checkpoints() == [step]
    assert not list(tmp_path.glob("long/**/*.tmp"))
