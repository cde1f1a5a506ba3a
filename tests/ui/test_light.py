"""The interface runs without torch: it is built, served, and every page filled for a run of every branch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SERVED = """
import importlib, sys
from importlib.abc import MetaPathFinder
from pathlib import Path

class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "diffusers", "transformers", "accelerate", "peft"):
            raise ModuleNotFoundError(f"{name} is blocked by the test", name=name)

sys.meta_path.insert(0, Blocked())
from benchmarks import gradio_http as raw
from ui.app import build, launch
from ui.shell import PAGES

root = Path(sys.argv[1])
app = build(root)
address = launch(app).rstrip("/")
for _, page in PAGES:
    code, text, _ = raw.ask(f"{address}/{page}")
    assert code == 200 and b"Alignment Studio" in text, page
loads = [each for each in raw.events(address) if each.trigger == "load"]
assert len(loads) >= len(PAGES)
for name in sorted(path.name for path in root.iterdir() if (path / "status.json").is_file()):
    done = raw.send(address, [(each.number, each.inputs, None) for each in loads], f"run={name}")
    failed = [each["output"].get("error") for each in done if not each["success"]]
    print(name, len(done), len(done) - len(failed), failed)
assert "torch" not in sys.modules
app.close()
"""


def test_every_page_is_built_served_and_filled_without_torch(runs):
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", SERVED, str(runs)], capture_output=True, text=True, timeout=180, cwd=here.parents[1],
        env={**os.environ, "PYTHONPATH": f"{here.parents[1]}:{here}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    filled = [line for line in done.stdout.splitlines() if "-run" in line or "gone" in line]
    assert len(filled) >= 5
    for line in filled:
        assert "blocked by the test" not in done.stderr + line
        _, events, good, failed = line.split(" ", 3)
        assert events == good, failed + done.stderr[-2000:]
