"""What experiments share: a run that is trained once and read afterwards, and mean ± spread over seeds."""

from __future__ import annotations

import os
import statistics
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def run_once(root: Path, name: str, recipe: str, overrides: list[str]) -> list[dict[str, Any]]:
    """The metrics of the run `name`, trained or resumed unless its folder is finished."""
    from studio.launch import open_run, start
    from studio.run import RunView

    if not (root / name / "status.json").is_file() or RunView.open(root / name).status["state"] != "finished":
        resume = (root / name / "checkpoints" / "latest").is_file()
        run, parsed = open_run(recipe, [] if resume else overrides, runs=root, run_name=name, resume=resume, processes=1)
        print(f"{name}: {recipe}", file=sys.stderr, flush=True)
        start(run, parsed, progress="plain", log_every=10)
        if RunView.open(root / name).status["state"] != "finished":  # asked to stop: so is the experiment
            sys.exit(f"{name} is not finished. The same command continues it.")
    return RunView.open(root / name).metrics().records


def spread(values: list[float], form: str = "+.3f") -> str:
    """mean ± standard deviation over seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):{form}} ± {deviation:{form.replace('+', '')}}"
