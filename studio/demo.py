"""The demo: train the bundled recipe, compare before and after, write the report."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from studio.run import Run, RunView

RECIPE = "shapes/grpo-guard"


def run_demo(overrides: list[str], *, runs: Path, name: str | None, progress: str, prompts: int) -> int:
    """The whole demo -> exit code."""
    from studio.launch import open_run, start

    began = time.monotonic()
    _say("GRPO-Guard aligns a small text-to-image pipeline with its captions: watch reward/mean rise.")
    run, recipe = open_run(RECIPE, overrides, runs=runs, run_name=name, resume=False, processes=1)
    _say(f"run {run.folder}: {recipe.train.steps} steps of {recipe.train.groups_per_step} × {recipe.train.group_size} images")
    code = start(run, recipe, progress=progress)
    if code:
        return code
    conclude(run.folder, prompts=prompts, began=began)
    return 0


def conclude(folder: Path, *, prompts: int, began: float | None = None, quiet: bool = False) -> dict[str, Any]:
    """Compare, write summary.json and the report, print the table -> the summary."""
    from rich.console import Console

    from studio.compare import compare, table
    from studio.report import write_report

    started = time.monotonic() if began is None else began
    summary = compare(folder, prompts, _say)
    summary["seconds"] = time.monotonic() - started
    writer = Run(folder, dict(RunView.open(folder).status))
    writer.summary(summary)
    page = write_report(folder)
    if not quiet:
        Console().print(table(summary))
        print(f"summary {folder / 'summary.json'}")
        print(f"report  {page}")
    return summary


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
