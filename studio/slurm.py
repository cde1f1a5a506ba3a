"""A run as a SLURM job through submitit: the same command on every node of the allocation."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.errors import ConfigError, MissingError


@dataclass(frozen=True)
class Command:
    """What a job does on its node: `studio` with these arguments; its exit code is the job's."""

    arguments: tuple[str, ...]

    def __call__(self) -> int:
        code = subprocess.run([sys.executable, "-m", "studio.cli", *self.arguments]).returncode
        if code:
            raise SystemExit(code)
        return code


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
    if nodes > 1 and name is None:
        raise ConfigError("studio train --slurm --nodes: expected --name NAME, which all nodes share, got none. Add it.")
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
    executor.update_parameters(name="studio", nodes=nodes, tasks_per_node=1, gpus_per_node=gpus, timeout_min=minutes, **options)
    return str(executor.submit(Command(tuple(arguments))).job_id)
