"""The web interface over 200 runs of 10,000 steps: how soon its pages are there, and whether its memory grows.

first_page_s: from the address to a table with every run, in headless Chromium, of a server that has read nothing yet.
growth_mb: resident memory of the server after 1,000 refreshes of its pages less that after 100, while one run goes on.
All runs share the text of their metrics, 5 MB each, by hard links: it is in the memory of the system from the second run on.

    python -m benchmarks.ui_load
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import gradio_http

LIMIT_S = 2.0
FILLED = {  # address -> what is there once a page is filled
    "run": "svg.plot",
    "samples": ".studio-header a",
    "compare": ".comparison *",
    "launch": ".picker a",
    "rewards": "form, button, input",
    "prune": ".scatter .dot",
    "export": ".exports *",
}
RECIPES: dict[str, dict[str, Any]] = {
    "image": {"policy": {"name": "denoise", "model": {"id": "shapes"}}, "algorithm": {"name": "grpo_guard"}},
    "control": {"policy": {"name": "policyflow"}, "algorithm": {"name": "policyflow"}, "env": {"name": "multigoal"}},
    "text": {"policy": {"name": "text", "model": {"id": "bundled"}}, "algorithm": {"name": "grpo"}},
    "prune": {"criterion": {"name": "taylor"}, "target": {"params": 0.8}, "model": {"id": "shapes"}},
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=200)
    arguments.add_argument("--steps", type=int, default=10_000)
    arguments.add_argument("--refreshes", type=int, default=1000)
    given = arguments.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("ui_load: expected Chromium, got none. Install it: apt-get install chromium.")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "runs"
        began = time.perf_counter()
        names = make_runs(root, given.runs, given.steps)
        made = time.perf_counter() - began
        server = serve(root)
        try:
            address = server.stdout.readline().strip().rstrip("/")  # type: ignore[union-attr]
            pages = visit(chromium, address, given.runs, names["image"][0], names["prune"][0])
            memory, refresh = refreshed(address, server.pid, root, names["image"][0], given.refreshes)
        finally:
            server.terminate()
            server.wait()
    first = pages.pop("first")
    result = {
        "first_page_s": round(first, 2),
        "growth_mb": round(memory[-1] - memory[0], 1),
        "limit_s": LIMIT_S,
        "pages_s": {name: round(value, 2) for name, value in pages.items()},
        "resident_mb": [round(value, 1) for value in memory],
        "refresh_ms": round(1000 * refresh, 1),
        "making_s": round(made, 1),
        "runs": given.runs,
        "steps": given.steps,
        "refreshes": given.refreshes,
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(result))


def metrics(steps: int) -> str:
    """About 500 bytes for every step."""
    draw, lines = random.Random(0), []
    for step in range(1, steps + 1):
        rise = 1 - math.exp(-4 * step / steps)
        values = {
            "reward/mean": rise + draw.gauss(0, 0.05),
            "reward/std": 0.1,
            "loss/total": draw.gauss(0, 0.1),
            "kl/ref": rise / 50,
        }
        values |= {f"ratio/{name}@{t}": draw.gauss(1, 0.1) for name in ("mean", "std", "above") for t in range(3)}
        values |= {"loss/grad_norm": draw.random(), "time/step": 0.5, "time/sample": 0.3, "reward/held_out.clip": 0.3 * rise}
        lines.append(json.dumps({"t": 1.7e9 + step, "step": step} | {name: round(value, 6) for name, value in values.items()}))
    return "\n".join(lines) + "\n"


def make_runs(root: Path, count: int, steps: int) -> dict[str, list[str]]:
    """Run folders of all branches -> their names by branch, newest first."""
    root.mkdir()
    text, shared = metrics(steps), root.parent / "metrics.jsonl"
    shared.write_text(text)
    names: dict[str, list[str]] = {kind: [] for kind in RECIPES}
    for k in range(count):
        kind = list(RECIPES)[k % len(RECIPES)]
        name = f"{kind}-{k:04d}"
        folder = root / name
        for part in ("samples", "checkpoints", "logs", "control"):
            (folder / part).mkdir(parents=True)
        (folder / "recipe.yaml").write_text(json.dumps({**RECIPES[kind], "train": {"steps": steps}, "seed": k}))  # also YAML
        status = {
            "schema": 1,
            "state": "finished",
            "step": steps,
            "total_steps": steps,
            "started": 1.7e9 + k,
            "seconds_per_step": 0.5,
        }
        (folder / "status.json").write_text(json.dumps({**status, "heartbeat": 1.7e9, "pid": 1, "host": "elsewhere"}))
        (folder / "env.json").write_text("{}")
        (folder / "events.jsonl").write_text('{"t": 1.7e9, "kind": "state", "state": "finished"}\n')
        if kind == "prune":
            figures = {
                "params_kept": 0.5 + 0.4 * (k / count),
                "flops_kept": 0.8,
                "latency_ratio": 0.9,
                "latent_error": 0.1 / (1 + k),
            }
            (folder / "summary.json").write_text(json.dumps({**figures, "before": {"scene": 0.8}, "after": {"scene": 0.7}}))
        os.link(shared, folder / "metrics.jsonl")
        names[kind].insert(0, name)
    own = root / names["image"][0] / "metrics.jsonl"  # this run goes on: its text is its own
    own.unlink()
    own.write_text(text)
    return names


def serve(root: Path) -> subprocess.Popen:
    """`studio ui` in a process of its own."""
    command = [sys.executable, "-m", "studio.cli", "ui", "--runs", str(root)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)


def visit(chromium: str, address: str, count: int, run: str, pruned: str) -> dict[str, float]:
    """Seconds until the first page, the same again, and every other page are filled."""
    from playwright.sync_api import sync_playwright

    found = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})

        def filled(place: str, ready: str) -> float:
            began = time.perf_counter()
            page.goto(f"{address}/{place}", wait_until="commit")
            page.wait_for_function(ready, timeout=60_000)
            return time.perf_counter() - began

        table = f"document.querySelectorAll('tbody tr').length >= {count}"
        found["first"] = filled("", table)
        found["runs again"] = filled("", table)
        for place, mark in FILLED.items():
            name = pruned if place == "prune" else run
            found[place] = filled(
                f"{place}?run={name}" if place != "launch" else place, f"document.querySelector({mark!r}) !== null"
            )
        browser.close()
    return found


def refreshed(address: str, pid: int, root: Path, run: str, count: int) -> tuple[list[float], float]:
    """Resident memory [MB] after a tenth, a half and all of the refreshes, and the mean time [s] of one.

    Every page is open in a session of its own, and is refreshed in its turn; after each round the run has another step.
    """
    growing, pages = root / run / "metrics.jsonl", [Opened(address, page, run) for page in ("", *FILLED)]
    last, memory, done, began = json.loads(growing.read_bytes().splitlines()[-1]), [], 0, time.perf_counter()
    for mark in (count // 10, count // 2, count):
        while done < mark:
            for page in pages[: mark - done]:
                page.refresh()
                done += 1
            last["step"] += 1
            with open(growing, "ab") as handle:
                handle.write(json.dumps(last).encode() + b"\n")
        memory.append(resident(pid))
    return memory, (time.perf_counter() - began) / count


class Opened:
    """A page as a browser has it open: a session, the events of its opening, then those of every refresh."""

    def __init__(self, address: str, page: str, run: str) -> None:
        self.address, self.query, self.session = address, f"run={run}", secrets.token_hex(6)
        self.events = [each for each in gradio_http.events(address) if each.page == page]
        self._send([each for each in self.events if each.trigger == "load"])

    def refresh(self) -> None:
        """A tick of the timer, and what follows from the states that it has changed."""
        done = self._send([each for each in self.events if each.trigger == "tick"])
        changed = {source for message in done for source in message["output"].get("changed_state_ids") or ()}
        self._send([each for each in self.events if each.trigger == "change" and each.source in changed])

    def _send(self, events: Sequence[gradio_http.Event]) -> list[dict[str, Any]]:
        if not events:
            return []
        sent = [(each.number, each.inputs, None) for each in events]
        done = gradio_http.send(self.address, sent, self.query, self.session)
        failed = [each["output"] for each in done if not each["success"]]
        if failed or len(done) != len(events):
            raise RuntimeError(f"ui_load: expected {len(events)} answers, got {len(done)} and these failures: {failed}")
        return done


def resident(pid: int) -> float:
    """Memory of a process [MB]."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/{pid}/status has no VmRSS")


if __name__ == "__main__":
    main()
