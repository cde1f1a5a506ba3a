"""Profiles and machines: how many processes run where, and the launcher's command for this one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from studio.errors import ConfigError
from studio.names import suggestion

PORT = 29500


def profile_names() -> list[str]:
    """Shipped accelerate profiles."""
    return sorted(path.stem for path in Path(str(files("studio") / "profiles")).glob("*.yaml"))


def profile_file(name: str) -> Path:
    """A shipped profile by name, or a file of `accelerate config`."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    known = profile_names()
    if name not in known:
        raise ConfigError(
            f"--profile: expected one of {', '.join(known)} or an accelerate file, got {name!r}{suggestion(name, known)}."
        )
    return Path(str(files("studio") / "profiles" / f"{name}.yaml"))


@dataclass(frozen=True)
class Cluster:
    """Processes of a run over machines."""

    processes: int = 1  # on each machine, one per GPU
    nodes: int = 1
    profile: str | None = None
    rank: int = 0  # of this machine
    address: str = "127.0.0.1"  # of machine 0
    port: int = 0  # 0 = any free one, on a single machine

    @property
    def total(self) -> int:
        return self.processes * self.nodes

    @property
    def sharded(self) -> bool:
        return self.profile is not None and "distributed_type: FSDP" in profile_file(self.profile).read_text(encoding="utf-8")

    def command(self) -> list[str]:
        """accelerate on GPUs; torch.distributed.run with gloo on CPUs, where `accelerate launch --cpu` starts one process only."""
        import torch

        port = self.port or _free_port()
        if not torch.cuda.is_available():
            head = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(self.processes)]
            machines = ["--nnodes", str(self.nodes), "--node-rank", str(self.rank)] if self.nodes > 1 else []
            return [*head, *machines, "--master-addr", self.address, "--master-port", str(port)]
        head = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(self.total)]
        kind = ["--config_file", str(profile_file(self.profile))] if self.profile else ["--multi_gpu"]
        machines = ["--num_machines", str(self.nodes), "--machine_rank", str(self.rank), "--main_process_ip", self.address]
        rest = ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(port)]
        return [*head, *kind, *rest, *(machines if self.nodes > 1 else [])]

    def environment(self) -> dict[str, str]:
        """What the workers must know beyond the command: accelerate says it itself, torch's launcher does not."""
        return {"ACCELERATE_USE_FSDP": "true"} if self.sharded else {}


def cluster(processes: int, nodes: int = 1, profile: str | None = None, environ: Mapping[str, str] = os.environ) -> Cluster:
    """This machine's place, from the scheduler's variables when there are several; ConfigError when they do not say."""
    if profile is not None:
        profile_file(profile)
    if nodes == 1:
        return Cluster(processes, profile=profile)
    rank = next((environ[name] for name in ("NODE_RANK", "SLURM_NODEID", "GROUP_RANK") if environ.get(name)), None)
    address = environ.get("MASTER_ADDR") or _first_host(environ.get("SLURM_JOB_NODELIST"))
    if rank is None or not rank.isdigit() or int(rank) >= nodes or not address:
        raise ConfigError(
            f"--nodes {nodes}: expected NODE_RANK from 0 to {nodes - 1} and MASTER_ADDR in the environment, got "
            f"NODE_RANK={rank} and MASTER_ADDR={address or 'nothing'}. Set them on every machine, or start through SLURM."
        )
    port = environ.get("MASTER_PORT") or str(PORT)
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(
            f"--nodes {nodes}: expected MASTER_PORT from 1 to 65535, got {port!r}. Set the same free port on every machine, or "
            f"unset it for {PORT}."
        )
    return Cluster(processes, nodes, profile, int(rank), address, int(port))


def _first_host(nodelist: str | None) -> str | None:
    if not nodelist:
        return None
    try:
        done = subprocess.run(["scontrol", "show", "hostnames", nodelist], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return next(iter(done.stdout.split()), None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
