"""A run that was stopped or killed and then resumed equals the run that was not, bit for bit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_train import fresh, tiny

from flows.shapes.prompts import ShapesPrompts
from studio.run import Run, RunView, request
from studio.train import train

ROOT = Path(__file__).parents[1]
STEPS = 4


def captions(folder: Path) -> Path:
    """Three captions: every second iteration meets one that is known already, together with one that may not be."""
    file = folder / "captions.txt"
    file.write_text("\n".join(ShapesPrompts().build(5).next(3).text), encoding="utf-8")
    return file


def settings(folder: Path) -> list[str]:
    move = "policy.sampler.window={size: 1, move: random}"
    return [f"prompts={{name: file, train: {captions(folder)}, test: {captions(folder)}}}", move, "train.epochs=2"]


def outcome(folder: Path):
    """Metrics without times, trained tensors, averaged tensors, and the pictures of the last evaluation."""
    view = RunView.open(folder)
    metrics = [
        {name: value for name, value in record.items() if name != "t" and not name.startswith("time/")}
        for record in view.metrics().records
    ]
    last = view.checkpoint()
    state = torch.load(last / "state.pt", weights_only=True)
    saved = {file.name: load_file(file) for file in sorted((last / "weights").rglob("*.safetensors"))}
    pictures = [record["file"].read_bytes() for record in view.samples(view.sample_steps()[-1])]
    return metrics, state, saved, pictures


def assert_same(a, b) -> None:
    """Equal values of nested containers; tensors bit for bit."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run."""
    root = tmp_path_factory.mktemp("whole")
    recipe = tiny(*settings(root), "train.checkpointing_steps=2", steps=STEPS)
    assert train(recipe, fresh(recipe, root)) == "finished"
    return root, outcome(root / "run")


def test_four_steps_equal_two_and_two(tmp_path, whole):
    root, expected = whole
    recipe = tiny(*settings(root), "train.checkpointing_steps=2", steps=STEPS)
    run = fresh(recipe, tmp_path)
    stopped = train(recipe, run, report=lambda step, _: request(run.folder, "stop") if step == 2 else None)
    assert stopped == "stopped" and RunView.open(run.folder).checkpoints() == [2]
    torch.manual_seed(123)  # a resumed run may not depend on what the process did before
    assert train(recipe, Run.resume(run.folder)) == "finished"
    assert [m["step"] for m in expected[0]] == list(range(STEPS + 1))
    assert_same(outcome(run.folder), expected)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_reference_is_kept_across_a_resume(tmp_path, kind):
    recipe = tiny(f"policy.model.train={kind}", "algorithm={name: grpo_guard, clip: 1.0e-5, kl: 0.01}", steps=2)
    train(recipe, fresh(recipe, tmp_path, "whole"))
    run = fresh(recipe, tmp_path, "parted")
    train(recipe, run, report=lambda step, _: request(run.folder, "stop") if step == 1 else None)
    train(recipe, Run.resume(run.folder))
    assert_same(outcome(run.folder), outcome(tmp_path / "whole"))


KILLED_AND_RESUMED = """
import os, random, sys
from pathlib import Path
import torch
sys.path.insert(0, "tests")
from test_train import fresh, tiny
from studio.run import Run
import studio.train, flows.policy, flows.load, diffusers, accelerate, transformers  # before the forks

threads, root, steps, *overrides = sys.argv[1:]
folder = Path(root) / "run"
moments = random.Random(7)
kills = 0
while True:
    at = moments.randint(15, 60) if kills < 5 else None
    child = os.fork()
    if child == 0:
        torch.set_num_threads(int(threads))
        recipe = tiny(*overrides, steps=int(steps))
        run = Run.resume(folder) if folder.exists() else fresh(recipe, Path(root))
        left = at
        def die(event, args):
            global left
            if left is None or event not in ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate"):
                return
            if isinstance(args[0], (str, os.PathLike)) and str(args[0]).startswith(str(folder)):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), 9)
        sys.addaudithook(die)
        studio.train.train(recipe, run)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == 9:
        kills += 1
    else:
        print("kills", kills, "exit", os.waitstatus_to_exitcode(status))
        sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed(tmp_path, whole):
    """SIGKILL at seeded counts of file operations in the run folder: half-written records and checkpoints included."""
    root, expected = whole
    given = [str(torch.get_num_threads()), str(tmp_path), str(STEPS), *settings(root), "train.checkpointing_steps=2"]
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AND_RESUMED, *given],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "kills 5 exit 0" in done.stdout
    assert_same(outcome(tmp_path / "run"), expected)
