"""Live progress: a bar on a terminal, plain lines elsewhere; always on stderr, stdout is for results."""

from __future__ import annotations

import sys
import time
from typing import Any

SHOWN = ("reward/mean", "ratio/clipped", "loss/grad_norm")


class Progress:
    """Reports steps of one run; `with Progress(total) as report: report(step, metrics)`."""

    def __init__(self, total: int, *, style: str = "auto", every: int = 1) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)
        bar = style == "bar" or (style == "auto" and self.console.is_terminal)
        self.total, self.every, self.bar, self.silent = total, every, self._bar() if bar else None, style == "none"
        self.began, self.first = time.monotonic(), None

    def __enter__(self) -> Progress:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, step: int, values: dict[str, float]) -> None:
        if self.silent:
            return
        if self.first is None:
            self.first, self.began = step - 1, time.monotonic() - values.get("time/step", 0.0)
        numbers = "  ".join(f"{name.split('/')[1]} {values[name]:.4g}" for name in SHOWN if name in values)
        if self.bar is not None:
            self.bar.update(self.task, completed=step, numbers=numbers)
        elif step % self.every == 0 or step == self.total:
            pace = (time.monotonic() - self.began) / max(step - self.first, 1)
            left = int(pace * (self.total - step))
            line = f"step {step}/{self.total}  {numbers}  {pace:.1f}s/step  {left // 60}m{left % 60:02d}s left"
            print(line, file=sys.stderr, flush=True)

    def _bar(self):
        from rich import progress

        bar = progress.Progress(
            progress.TextColumn("step {task.completed}/{task.total}"),
            progress.BarColumn(),
            progress.TextColumn("{task.fields[numbers]}"),
            progress.TimeRemainingColumn(),
            console=self.console,
        )
        self.task = bar.add_task("train", total=self.total, numbers="")
        return bar
