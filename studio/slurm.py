"""A run as a SLURM job through submitit: the same command on every node of the allocation."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.errors import ConfigError, MissingError, StudioError
from studio.layout import default_name
from studio.run_view import request


@dataclass(frozen=True)
class Command:
    """What a job does on its node: `studio` with these arguments; its exit code is the job's.

    SLURM warns every process of a job before its time is up, with SIGUSR2 and by default 90 s (slurm_signal_delay_s): the run
    is then asked to stop, with a checkpoint.
    """

    arguments: tuple[str, ...]

    def __call__(self) -> int:
        before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # children inherit it: by default the signal ends a process
        try:
            child = subprocess.Popen([sys.executable, "-m", "studio.cli", *self.arguments])
            signal.signal(signal.SIGUSR2, self._stop)
            code = child.wait()
        finally:
            signal.signal(signal.SIGUSR2, before)
        if code:
            raise SystemExit(code)
        return code

    def _stop(self, *_: Any) -> None:
        runs, name = (self.arguments[self.arguments.index(flag) + 1] for flag in ("--runs", "--name"))
        with suppress(StudioError):  # the run has not begun, or its disk refuses
            request(Path(runs) / name, "stop")


def arguments(
    recipe: str | None,
    overrides: Sequence[str],
    *,
    runs: Path,
    name: str | None,
    resume: bool,
    gpus: int,
    nodes: int,
    profile: str | None,
) -> list[str]:
    """The arguments of `studio train` that every node of the job gets."""
    given = ["train", *([recipe] if recipe else []), *overrides, "--runs", str(runs.resolve()), "--gpus", str(gpus)]
    given += ["--nodes", str(nodes), "--progress", "plain"]
    if name is None and nodes > 1:
        raise ConfigError("studio train --slurm --nodes: expected --name NAME, which all nodes share, got none. Add it.")
    if name is None and not resume:
        name = default_name({"algorithm": "slurm", "model": recipe})
    for flag, value in (("--name", name), ("--profile", profile)):
        given += [flag, value] if value else []
    return [*given, *(["--resume"] if resume else [])]


def submit(
    arguments: Sequence[str], *, logs: Path, nodes: int, gpus: int, minutes: int, options: dict[str, Any], where: str | None = None
) -> str:
    """Queue `studio train` with these arguments -> the job's id. `options` go to submitit, for example slurm_partition."""
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise MissingError(
            "studio train --slurm: expected the package submitit, got none. Install it: pip install 'alignment-studio[slurm]'."
        ) from error
    try:
        executor = submitit.AutoExecutor(folder=logs / "%j", cluster=where)
    except RuntimeError as error:  # submitit finds no sbatch
        raise MissingError(
            f"studio train --slurm: expected SLURM's commands on this machine, got: {error}. Run it on a login node."
        ) from error
    ours = {"name": "studio", "nodes": nodes, "tasks_per_node": 1, "gpus_per_node": gpus, "timeout_min": minutes}
    if twice := sorted(ours.keys() & options):
        raise ConfigError(
            f"--slurm-option: expected options of submitit besides {', '.join(ours)}, got {', '.join(twice)}. Use train's flags."
        )
    try:
        executor.update_parameters(**ours, **options)
    except (NameError, TypeError) as error:  # submitit does not know an option, or not with this kind of value
        raise ConfigError(
            f"--slurm-option: expected options of submitit such as slurm_partition, got {', '.join(options)}. It says: {error}"
        ) from error
    return str(executor.submit(Command(tuple(arguments))).job_id)
