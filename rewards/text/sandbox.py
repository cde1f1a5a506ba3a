"""Running a program that nobody has read: in a process of its own, with limits, out of reach of files and network.

What holds it, from the outside in: namespaces without network and with their own processes (Linux, where `unshare` may make
them); a wall clock after which everything is killed; limits of CPU time, memory, file size and processes; Landlock on Linux,
which lets it write in its folder only and read that and the interpreter; seccomp on Linux, which lets it start no process; an
audit hook that refuses processes, sockets and changes outside of the folder.  The hook alone is no wall against a determined
attacker: where namespaces, Landlock or seccomp are not to be had, work in a container.
"""

from __future__ import annotations

import math
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

INSIDE = Path(__file__).with_name("inside.py")
OUTSIDE = ["--user", "--net", "--ipc", "--pid", "--fork", "--kill-child"]  # of unshare: killing it kills all that is within
PLAIN = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    seconds: float = 5.0  # of wall clock, after which it is killed; of CPU time one more
    memory: int = 512  # MiB of address space
    output: int = 64  # KiB that are read; more counts as too much and ends it
    file: int = 1_024  # KiB of one file in its folder


@dataclass(frozen=True)
class Ran:
    """What a program left behind."""

    output: str
    status: str  # ended | timeout | output | failed


def run(program: str, calls: Sequence[str] = (), given: str = "", limits: Limits = Limits()) -> Ran:
    """Run a program, then evaluate calls in its names; the answers are lines `number<TAB>repr`, without calls what it prints.

    `given` is its standard input.  Never raises for what the program does, and returns at the latest a moment after `seconds`.
    """
    folder = Path(tempfile.mkdtemp(prefix="studio-code-"))
    try:
        (folder / "program.py").write_text(program, encoding="utf-8", errors="replace")
        (folder / "calls.txt").write_text("\n".join(calls), encoding="utf-8", errors="replace")
        (folder / "given.txt").write_text(given, encoding="utf-8", errors="replace")
        with (folder / "given.txt").open("rb") as source:
            return _watched(_command(folder, limits, bool(calls)), folder, source, limits)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@lru_cache(maxsize=1)
def fence() -> tuple[str, ...]:
    """The command that puts a process into namespaces of its own; empty where that is not possible."""
    command = shutil.which("unshare")
    if command is None or sys.platform != "linux":
        return ()
    try:
        done = subprocess.run([command, *OUTSIDE, sys.executable, "-I", "-c", ""], capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return (command, *OUTSIDE) if done.returncode == 0 else ()


def _command(folder: Path, limits: Limits, calls: bool) -> list[str]:
    numbers = [math.ceil(limits.seconds) + 1, limits.memory * 2**20, limits.file * 2**10, int(calls)]
    source = INSIDE.read_text(encoding="utf-8")
    return [*fence(), sys.executable, "-I", "-c", source, str(folder), *map(str, numbers)]


def _watched(command: list[str], folder: Path, source: IO[bytes], limits: Limits) -> Ran:
    """Start, read until the end, the deadline or too much output, and kill the whole process group whatever happened."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=PLAIN | {"TMPDIR": str(folder), "HOME": str(folder)},
        stdin=source,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        deadline = time.monotonic() + limits.seconds
        output, status = _read(process.stdout, deadline, limits.output * 2**10)
        if status == "ended":
            try:  # what closed its output may still run
                status = "ended" if process.wait(timeout=max(deadline - time.monotonic(), 0.1)) == 0 else "failed"
            except subprocess.TimeoutExpired:
                status = "timeout"
    finally:
        _kill(process)
    return Ran(output.decode("utf-8", "replace"), status)


def _read(pipe: IO[bytes], deadline: float, most: int) -> tuple[bytes, str]:
    """(what was written, ended | timeout | output)."""
    content = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if not selector.select(left):
                break
            some = os.read(pipe.fileno(), 65_536)
            if not some:
                return bytes(content), "ended"
            content += some
            if len(content) > most:
                return bytes(content[:most]), "output"
    return bytes(content), "timeout"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The process, its group and, through `--kill-child`, all of its namespace; nothing is left unreaped."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
