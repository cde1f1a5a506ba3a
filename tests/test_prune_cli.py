"""`studio prune` as a user meets it: one table and a report, and one message for every mistake, before a folder is made."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pruning.launch import load_prune_recipe
from pruning.network import check_network
from studio.cli import app
from studio.errors import StudioError
from studio.layout import default_name
from studio.recipe import recipe_names
from studio.run import RunView

SMALL = ("calibration.rows=8", "calibration.batch=8", "evaluate=8", "sampler.steps=2", "sampler.eval_steps=2")


def studio(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "studio.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=300)


def called(*arguments: str) -> tuple[int, str]:
    """Exit code and message of a command in this process, where nothing has to be imported again."""
    done = CliRunner().invoke(app, list(arguments))
    if isinstance(done.exception, StudioError):
        return done.exception.exit_code, f"{type(done.exception).__name__}: {done.exception}"
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A runs folder with one finished run, made by the command line."""
    root = tmp_path_factory.mktemp("runs")
    done = studio("prune", "shapes/taylor", *SMALL, "--runs", str(root), "--name", "first", "--progress", "plain")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stderr + done.stdout
    (root / "stdout.txt").write_text(done.stdout)
    return root


@pytest.mark.slow
def test_a_table_a_summary_and_a_report(runs):
    lines = (runs / "stdout.txt").read_text().splitlines()
    head = next(line for line in lines if "parameters" in line)
    assert [word.strip() for word in head.split("┃")[2:6]] == ["parameters", "FLOPs", "time", "latent error"]  # none is cut off
    assert [name for name in ("dense", "cut", "compensated") if any(f"│ {name} " in line for line in lines)] == [
        "dense",
        "cut",
        "compensated",
    ]
    assert lines[-1] == str(runs / "first")
    summary = json.loads((runs / "first" / "summary.json").read_text())
    assert {"params_kept", "flops_kept", "latency_ratio", "latent_error", "before", "after", "seconds"} <= summary.keys()
    assert summary["prompts"] == 8 and 0.8 <= summary["params_kept"] < 0.801 and summary["flops_kept"] < 1
    page = (runs / "first" / "export" / "report.html").read_text(encoding="utf-8")
    assert "Pruning report" in page and "What was removed" in page and "<span>pruned</span>" in page


@pytest.mark.slow
def test_a_prune_run_is_listed_and_shown(runs):
    listed = json.loads(studio("runs", "--runs", str(runs), "--json").stdout)
    assert [(run["name"], run["state"]) for run in listed] == [("first", "finished")]
    told = studio("show", "first", "--runs", str(runs)).stdout
    assert "compensated" in told and "criterion.name" in told and "'groups'" not in told
    assert json.loads(studio("show", "first", "--runs", str(runs), "--json").stdout)["summary"]["groups"]


@pytest.mark.slow
@pytest.mark.parametrize("command", [("sample",), ("evaluate",), ("export",)], ids=lambda command: command[0])
def test_what_needs_trained_weights_says_so(runs, command):
    code, told = called(*command, "first", "--runs", str(runs))
    assert code == 2 and "one of `studio prune`" in told and "pruned-compact" in told and "\n" not in told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--name", "first", "--resume"), "finished"),
        (("--name", "first", "--resume", "target.params=0.9"), "target.params (0.8 → 0.9)"),
        (("--name", "first", "--resume", "seed=5"), "seed"),
        (("shapes/taylor", *SMALL, "--name", "first"), "already exists"),
        (("--name", "none", "--resume"), "none"),
    ],
    ids=["of a finished run", "with another target", "with another seed", "an existing name", "of no run"],
)
def test_run_mistakes(runs, arguments, says):
    code, told = called("prune", *arguments, "--runs", str(runs))
    assert code == 2 and says in told


MISTAKES = {
    "no recipe": ((), "expected a recipe, got none"),
    "an unknown recipe": (("shapes/tailor",), "did you mean 'shapes/taylor'"),
    "a recipe of train": (("shapes/grpo-guard",), "it is a recipe of `studio train`"),
    "a file of train": (("train.yaml",), "expected a recipe of `studio prune`, got 'train.yaml'"),
    "an unknown key": (("shapes/taylor", "calibration.rws=3"), "did you mean 'rows'"),
    "a target above one": (("shapes/taylor", "target.params=1.5"), "in (0, 1], got 1.5"),
    "a target of nothing": (("shapes/taylor", "target.params=0"), "in (0, 1], got 0"),
    "two targets": (("shapes/taylor", "target.params=0.5", "target.flops=0.5"), "got params, flops"),
    "a target out of reach": (("shapes/taylor", "target.params=0.1"), "expected at least 0.4411"),
    "a pattern without sites": (("shapes/taylor", "sites.include=nothing"), "got kinds heads, neurons, include 'nothing'"),
    "no regular expression": (("shapes/taylor", "sites.include=(a"), "expected a regular expression, got '(a'"),
    "blocks and units": (("shapes/depth", "criterion=random", "sites.kinds=[blocks, heads]"), "expected blocks alone"),
    "blocks for a criterion of units": (
        ("shapes/taylor", "sites.kinds=[blocks]"),
        "for criterion 'taylor', got blocks",
    ),
    "units for a criterion of blocks": (("shapes/depth", "sites.kinds=[heads]"), "expected some of blocks for criterion"),
    "no prompts to calibrate on": (("shapes/taylor", "prompts={name: file, train: empty.txt}"), "an empty file"),
    "no prompts to measure on": (("shapes/taylor", "prompts={name: file, train: cats.txt}"), "expected held-out prompts"),
    "a prompt that the reward cannot judge": (("shapes/taylor", "prompts={name: file, train: cats.txt, test: cats.txt}"), "a cat"),
    "a start above saturation": (("shapes/ecodiff", "criterion={name: ecodiff, start: 4.0, noise: 1.0}"), "below 2.68"),
    "resuming nothing": (("shapes/taylor", "--resume"), "expected --name NAME"),
}


@pytest.mark.parametrize(("arguments", "says"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told_before_a_folder_is_made(tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("")
    Path("cats.txt").write_text("a cat\ntwo cats\n")
    Path("train.yaml").write_text("policy: denoise\nalgorithm: grpo\nprompts: shapes\nrewards: {clip: 1}\n")
    code, told = called("prune", *arguments, "--runs", "runs")
    assert code == 2 and says in told
    assert not list(Path().glob("runs/*"))


def test_a_prune_recipe_given_to_train_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("prune.yaml").write_text("criterion: taylor\ntarget: {params: 0.8}\nprompts: shapes\n")
    for name, says in (("shapes/taylor", "it is a recipe of `studio prune`"), ("prune.yaml", "one of `studio prune`. Use that.")):
        code, told = called("train", name, "--runs", "runs")
        assert code == 2 and says in told and not Path("runs").exists()


def test_a_network_without_sites_is_refused(tmp_path, monkeypatch):
    """A U-Net without attention, known by its config alone."""
    monkeypatch.chdir(tmp_path)
    config = {"block_out_channels": [8, 8], "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    config |= {"mid_block_type": None, "norm_num_groups": 4, "sample_size": 8}
    Path("bare/unet").mkdir(parents=True)
    Path("bare/unet/config.json").write_text(json.dumps(config))
    Path("bare/model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet2DConditionModel"]}))
    code, told = called("prune", "shapes/taylor", "model.id=./bare", "--runs", "runs")
    assert code == 2 and "expected a network with prunable sites, got a UNet2DConditionModel" in told
    assert not Path("runs").exists()


def test_operations_are_counted_where_a_blueprint_says_how_long_prompts_are():
    tiny = "model={random: tiny-sd3, resolution: 16, text_length: 6}"
    recipe, _ = load_prune_recipe("shapes/taylor", [tiny, "target.flops=0.9"])
    assert 0 < float(check_network(recipe)["smallest possible share"]) < 0.9
    recipe, _ = load_prune_recipe("shapes/taylor", [tiny, "target.flops=0.01"])
    with pytest.raises(StudioError, match="recipe.target: expected at least"):
        check_network(recipe)


@pytest.mark.parametrize("name", recipe_names("prune"))
def test_a_bundled_recipe_passes_its_check(name):
    recipe, _ = load_prune_recipe(name, [])
    assert recipe.check(prompts=False) == []


@pytest.mark.parametrize(
    ("criterion", "model", "name"),
    [({"name": "end_to_end"}, {"id": "shapes"}, "end-to-end_shapes"), ("obs", {"id": "shapes", "random": "sdxl"}, "obs_sdxl")],
    ids=["of a bundled model", "of a random model"],
)
def test_a_run_without_a_name_is_called_by_its_criterion(criterion, model, name):
    assert f"_{name}_" in default_name({"criterion": criterion, "model": model})


@pytest.mark.slow
def test_a_learned_mask_is_stopped_and_goes_on(tmp_path):
    """SIGTERM after the first update leaves a checkpoint; --resume learns the rest and ends with a table."""
    options = [*SMALL, "learn.steps=6", "learn.rows=2", "learn.evaluate_every=100", "learn.checkpointing_steps=100"]
    where = ["--runs", str(tmp_path), "--name", "mask", "--progress", "plain"]
    command = [sys.executable, "-m", "studio.cli", "prune", "shapes/ecodiff", *options, *where]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        metrics = tmp_path / "mask" / "metrics.jsonl"
        for _ in range(1200):
            if metrics.is_file() and '"step": 1,' in metrics.read_text():
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    view = RunView.open(tmp_path / "mask")
    assert view.status["state"] == "stopped" and view.checkpoints() == [view.status["step"]] and view.summary is None
    done = studio("prune", "--resume", *where)
    assert done.returncode == 0, done.stderr
    steps = [record["step"] for record in view.metrics().records if "prune/error" in record]
    assert steps == list(range(1, 7)) and view.status["state"] == "finished"
    assert "compensated" in done.stdout and view.summary is not None
