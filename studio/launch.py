"""Starting a run: create or resume its folder, then train in this process or under a launcher, and answer with an exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from studio.config import apply_overrides, build, differences, dump
from studio.errors import ConfigError, RunError, StudioError
from studio.nodes import Cluster
from studio.progress import Progress
from studio.recipe import Recipe, load_recipe, recipe_source
from studio.run import Run, RunView
from studio.run_view import request
from studio.signals import handled

INTERRUPTED, OUT_OF_MEMORY = 130, 5
R = TypeVar("R")  # a kind of recipe


def open_run(
    name: str | None, overrides: list[str], *, runs: Path, run_name: str | None, resume: bool, processes: int
) -> tuple[Run, Recipe]:
    """A new run folder, or an existing one to continue; everything that can be refused is refused here."""
    if resume:
        return reopen(Recipe, name, overrides, runs, run_name)
    if name is None:
        raise ConfigError("studio train: expected a recipe, got none. Name one of `studio list recipes` or a YAML file.")
    recipe, source = load_recipe(name, overrides)
    warnings = recipe.check(processes)
    run = Run.create(runs, run_name, dump(recipe), source, total_steps=recipe.train.steps, command=sys.argv)
    for text in warnings:
        run.event("warning", message=text)
    return run, recipe


def reopen(
    kind: type[R], name: str | None, overrides: list[str], runs: Path, run_name: str | None, *, work: str = "train"
) -> tuple[Run, R]:
    """The run continues with its own recipe; a changed file or a differing override is refused, not ignored."""
    if run_name is None:
        raise ConfigError("--resume: expected --name NAME of the run to continue, got none. See `studio runs`.")
    if name is not None and "=" in name:  # an override, where no recipe has to be named
        name, overrides = None, [name, *overrides]
    view = RunView.find(runs, run_name)
    stored = view.recipe
    changed = differences(stored, dump(build(kind, apply_overrides(stored, overrides))))
    if changed:
        listed = ", ".join(f"{path} ({before!r} → {after!r})" for path, before, after in changed)
        raise RunError(
            f"{view.folder}: expected the run's own recipe, got changes: {listed}. Resume without them, or start a new run with "
            "another --name."
        )
    source = view.folder / "recipe.source.yaml"
    if name is not None and source.is_file() and source.read_text(encoding="utf-8") != recipe_source(name, work):
        raise RunError(
            f"{view.folder}: expected the recipe it was started with ({source.name}), got another text for {name!r}. Resume "
            f"without naming a recipe, or start a new run with another --name."
        )
    return Run.resume(view.folder), build(kind, stored)


def start(run: Run, recipe: Recipe, *, where: Cluster | None = None, progress: str = "auto", log_every: int = 1) -> int:
    """Train to the end or a stop -> exit code."""
    where = where or Cluster()
    if where.total == 1:
        return work(run, recipe, progress=progress, log_every=log_every)
    command = [*where.command(), "-m", "studio.worker", str(run.folder)]
    settings = {"STUDIO_PROGRESS": progress, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    code = _supervise(command, os.environ | settings | where.environment(), run.folder)
    status = RunView.open(run.folder).status
    if status["state"] in ("running", "starting", "queued", "stopping"):
        if where.rank == 0:
            run.status("lost", exit_code=1, reason=f"the launcher ended with {code} without a final state")
        return code if where.rank else 1
    return int(status.get("exit_code") or 0)  # launchers flatten exit codes; the worker's own is in status.json


def _supervise(command: Sequence[str], environment: dict[str, str], folder: Path) -> int:
    """Run a launcher -> its exit code. Its own session keeps Ctrl-C and other signals from workers that hear them from here.

    The first signal asks the run to stop after the step, as `studio stop` does: handed to the launcher it would leave the
    workers 30 s, and a step with its checkpoint may take longer.  Later ones are handed on, for a run that does not listen.
    """
    asked: list[int] = []
    children: list[subprocess.Popen] = []

    def stop(number: int, frame: object) -> None:
        asked.append(number)
        if len(asked) == 1:
            with suppress(StudioError):  # a disk that refuses
                return request(folder, "stop")
        for child in children:
            child.send_signal(number)

    with handled(stop, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        children.append(subprocess.Popen(command, env=environment, start_new_session=True))
        return children[0].wait()


def join_run(runs: Path, name: str | None, patience: float = 600.0) -> tuple[Run, Recipe]:
    """The run that machine 0 has made, or is about to make, in the folder that all machines share."""
    if name is None:
        raise ConfigError("--nodes: expected --name NAME, the same on every machine, got none. Add it.")
    begun = time.monotonic()
    while not (runs / name / "status.json").is_file():
        if time.monotonic() - begun > patience:
            raise RunError(
                f"{runs / name}: expected a run made by machine 0 within {patience:.0f} s, got none. Use the same --runs and "
                "--name everywhere, on a file system that all machines see."
            )
        time.sleep(0.5)
    return Run.attach(runs / name), build(Recipe, RunView.open(runs / name).recipe)


def work(run: Run, recipe: Recipe, *, progress: str = "auto", log_every: int = 1, main: bool = True) -> int:
    """Train in this process; whatever happens ends in status.json and an exit code."""
    from studio.train import train

    def body() -> None:
        with Progress(recipe.train.steps, style=progress if main else "none", every=log_every) as report:
            train(recipe, run, report=report)

    return accounted(run, body, main=main)


def accounted(run: Run, body: Callable[[], Any], *, main: bool = True) -> int:
    """Run `body`; whatever happens ends in status.json and an exit code."""
    try:
        body()
        return 0
    except StudioError as error:
        _failed(run, main, error.exit_code, str(error))
        raise
    except KeyboardInterrupt:
        _failed(run, main, INTERRUPTED, "interrupted")
        return INTERRUPTED
    except Exception as error:
        code = OUT_OF_MEMORY if type(error).__name__ == "OutOfMemoryError" else 1
        _failed(run, main, code, f"{type(error).__name__}: {error}", traceback.format_exc())
        raise


def _failed(run: Run, main: bool, code: int, reason: str, details: str | None = None) -> None:
    if main:
        run.status("stopped" if code == INTERRUPTED else "failed", exit_code=code, reason=reason, error=details or reason)
