"""Is this installation in order? One line per check; each says what to do when it is not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from studio.process import PACKAGES


class Check(NamedTuple):
    name: str
    good: bool
    says: str


def checks(runs: Path) -> Iterator[Check]:
    """All checks, cheapest first; a broken torchvision is probed in a process of its own."""
    ok = sys.version_info >= (3, 11)
    yield Check("python", ok, sys.version.split()[0] + ("" if ok else ": expected 3.11 or newer"))
    for package in PACKAGES:
        try:
            yield Check(package, True, version(package))
        except PackageNotFoundError:
            yield Check(package, False, f"missing: pip install {package}")
    yield _probe(
        "torchvision works",
        "import torchvision; from torchvision.ops import nms",
        "torch and torchvision must come from the same index: reinstall both together",
    )
    yield _probe("diffusers works", "from diffusers import StableDiffusion3Pipeline", "reinstall diffusers and transformers")
    yield _probe(
        "accelerator",
        "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else 'none: bundled models run on CPU')",
        "torch does not import: reinstall it",
    )
    free = shutil.disk_usage(runs if runs.exists() else Path.cwd()).free / 2**30
    yield Check("disk", free > 1, f"{free:.0f} GiB free" + ("" if free > 1 else ": expected at least 1 GiB for runs"))


def _probe(name: str, code: str, advice: str, run: Callable = subprocess.run) -> Check:
    done = run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    last = lines[-1] if lines else "yes"
    return Check(name, done.returncode == 0, last if done.returncode == 0 else f"{last} — {advice}")
