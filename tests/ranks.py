"""Scripts in two processes of one group."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
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
    assert train(recipe, run) == "finished"
"""


def train_two(module: str, recipes: Mapping[str, str], root: Path) -> None:
    """Runs in two processes, one after the other, in root/NAME; a recipe is an expression of `shared`, the test module."""
    run_two(TRAIN.format(module=module, recipes=", ".join(f"{name!r}: {made}" for name, made in recipes.items())), root)


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
