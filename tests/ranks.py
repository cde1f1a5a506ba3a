"""Scripts in two processes of one group."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRAIN = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, "tests")
import torch
torch.set_num_threads(1)
import {module} as shared
from studio.dist import Processes
from studio.errors import StudioError
from studio.run import Run
from studio.train import train
from test_train import fresh

Processes.end = lambda self: None  # one process group for all the runs
for name, recipe in {{{recipes}}}.items():
    folder = Path(sys.argv[1]) / name
    if os.environ["RANK"] == "0":
        run = fresh(recipe, folder.parent, name)
        (folder / "ready").touch()
    while not (folder / "ready").exists():
        time.sleep(0.05)
    run = run if os.environ["RANK"] == "0" else Run(folder, {{}})
    if name in {sharded!r}:
        os.environ["ACCELERATE_USE_FSDP"] = "true"  # what the launcher's FSDP profile sets; read once a run
    try:
        assert train(recipe, run) == "finished"
    except StudioError as error:
        if name not in {fails!r}:
            raise
        (folder / ("failed-" + os.environ["RANK"])).write_text(f"{{error.exit_code}} {{error}}")
"""


def train_two(
    module: str, recipes: Mapping[str, str], root: Path, *, sharded: Collection[str] = (), fails: Collection[str] = ()
) -> None:
    """Runs in two processes, one after the other, in root/NAME; a recipe is an expression of `shared`, the test module.

    Those named in `sharded` run with FSDP2; those in `fails` may end with an error, which each rank writes to `failed-RANK`.
    """
    made = ", ".join(f"{name!r}: {recipe}" for name, recipe in recipes.items())
    run_two(TRAIN.format(module=module, recipes=made, sharded=tuple(sharded), fails=tuple(fails)), root)


def run_two(script: str, root: Path) -> None:
    """Runs a script in two processes with `root` as its argument; an error shows what they said last."""
    file = root / "script.py"
    file.write_text(script, encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(file), str(root)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": ".", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
