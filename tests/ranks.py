"""Scripts in two processes of one group."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


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
