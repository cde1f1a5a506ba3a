"""FSDP2 with the tiny FLUX in two processes: the weights of one process, sharded checkpoints, whole files to export."""

import pytest
import torch
from ranks import run_two
from safetensors.torch import load_file
from test_train import fresh, tiny

from studio.parts import build_parts
from studio.run import RunView
from studio.shards import FOLDER, load_shards, put_back
from studio.state import WEIGHTS, load_state
from studio.train import train

pytestmark = pytest.mark.slow

STEPS = 3
KINDS = {
    "full": ("policy.model.train=full", "algorithm={name: grpo_guard, clip: 1.0e-5, kl: 0.01}"),
    "lora": ("policy.model.train=lora", "policy.model.gradient_checkpointing=true"),
}
TWO = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, "tests")
import torch
torch.set_num_threads(1)
import test_fsdp as shared
from studio.dist import Processes
from studio.run import Run, RunView, request

root, end, main = Path(sys.argv[1]), Processes.end, os.environ["RANK"] == "0"
Processes.end = lambda self: None  # one process group for all the runs of this test

def go(kind, name):
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    recipe, folder = shared.recipe_of(kind), root / name
    if main and not folder.exists():
        run = shared.fresh(recipe, root, name)
        if name.startswith("again"):
            request(folder, "stop")
        (folder / "ready").touch()
    while not (folder / "ready").exists():
        time.sleep(0.05)
    resumed = (folder / "checkpoints" / "latest").exists()
    torch.distributed.barrier() if torch.distributed.is_initialized() else None
    run = Run.resume(folder) if main and resumed else Run.attach(folder) if main else Run(folder, {})
    return shared.train(recipe, run)

for kind in shared.KINDS:
    assert go(kind, kind) == "finished"
    assert go(kind, "again-" + kind) == "stopped"
    assert go(kind, "again-" + kind) == "finished"
"""


def recipe_of(kind):
    flux = "policy.model={random: tiny-flux, resolution: 32, text_length: 6, lora: {rank: 2, alpha: 4}, device: cpu}"
    return tiny(flux, *KINDS[kind], "rewards={jpeg_size: 1.0}", "watch.every=2", steps=STEPS)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    root = tmp_path_factory.mktemp("alone")
    for kind in KINDS:
        train(recipe_of(kind), fresh(recipe_of(kind), root, kind))
    return root


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    root = tmp_path_factory.mktemp("two")
    run_two(TWO, root)
    return root


def state_of(folder):
    """The last checkpoint's state with whole tensors, whoever wrote it."""
    folder = RunView.open(folder).checkpoint(STEPS)
    state = torch.load(folder / "state.pt", weights_only=True)
    shapes = {tuple(p.shape): p for p in build_parts(recipe_of(KIND_OF[folder.parents[1].name])).policy.trainable()}
    return put_back(state, load_shards(folder, state, list(shapes.values())))


KIND_OF = {name + kind: kind for kind in KINDS for name in ("", "again-")}


def apart(a, b):
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_two_shards_learn_what_one_process_learns(alone, two, kind):
    one, many = state_of(alone / kind), state_of(two / kind)
    print(kind, "largest difference", apart(one["trainable"], many["trainable"]))
    assert apart(one["trainable"], many["trainable"]) <= 1e-5
    moments = [[s["exp_avg"] for s in state["parts"]["optimizer"]["state"].values()] for state in (one, many)]
    assert apart(*moments) <= 1e-5
    averages = [state["parts"]["average"]["model"]["shadow_params"] for state in (one, many)]
    assert apart(*averages) <= 1e-5
    for x, y in zip(RunView.open(alone / kind).metrics().records, RunView.open(two / kind).metrics().records, strict=True):
        assert x.keys() == y.keys()
        for name in x.keys() - {"t"}:
            if not name.startswith("time/"):
                assert x[name] == pytest.approx(y[name], rel=1e-2, abs=1e-5), name


@pytest.mark.parametrize("kind", KINDS)
def test_each_rank_writes_its_share(two, kind):
    folder = RunView.open(two / kind).checkpoint(STEPS)
    shares = [path.stat().st_size for path in sorted((folder / FOLDER).glob("*.distcp"))]
    assert len(shares) == 2 and max(shares) < 1.5 * min(shares)
    whole = sum(p.numel() for p in state_of(two / kind)["trainable"]) * 4
    assert (folder / "state.pt").stat().st_size < whole / 2 + 100_000  # random states and names, no weights


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_ends_where_the_whole_run_ends(two, kind):
    whole, again = state_of(two / kind), state_of(two / f"again-{kind}")
    assert apart(whole["trainable"], again["trainable"]) <= 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_continues_from_shards(two, kind):
    parts = build_parts(recipe_of(kind))
    load_state(RunView.open(two / kind).checkpoint(STEPS), parts.policy, parts.stateful())
    assert apart(parts.policy.trainable(), state_of(two / kind)["trainable"]) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_saved_weights_are_whole_and_load(alone, two, kind):
    one, many = (RunView.open(root / kind).checkpoint(STEPS) / WEIGHTS for root in (alone, two))
    files = {path.relative_to(one) for path in one.rglob("*") if path.is_file()}
    assert files == {path.relative_to(many) for path in many.rglob("*") if path.is_file()}
    for file in files:
        if file.suffix == ".safetensors":
            a, b = load_file(one / file), load_file(many / file)
            assert a.keys() == b.keys() and apart(a.values(), b.values()) <= 1e-5
        else:
            assert (one / file).read_text() == (many / file).read_text()
    policy = build_parts(recipe_of(kind)).policy
    policy.load(many)
    assert apart(policy.trainable(), state_of(two / kind)["parts"]["average"]["model"]["shadow_params"]) <= 1e-6
