"""Which process works on a run, and in what surroundings."""

from __future__ import annotations

import os
import platform
import re
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = [
    "alignment-studio",
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "safetensors",
]
PACKAGES += ["open-clip-torch", "gradio", "pillow", "numpy"]


def this_process() -> dict[str, Any]:
    return {"pid": os.getpid(), "pid_started": process_started(os.getpid()), "host": socket.gethostname()}


def process_started(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process: tells a process from a later one with the same number.

    None when there is no such process, when it has ended and only waits for its parent, or without /proc.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # the name may hold blanks
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def alive(status: Mapping[str, Any]) -> bool | None:
    """Whether the process of a run lives; None when that cannot be told from here."""
    pid = status.get("pid")
    if status.get("host") != socket.gethostname() or not isinstance(pid, int):
        return None
    if Path("/proc/self/stat").exists():
        started = process_started(pid)
        return started is not None and status.get("pid_started") in (None, started)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def environment(command: Sequence[str]) -> dict[str, Any]:
    """What could change the result, and nothing else: environment variables may hold secrets."""
    return {
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": _without_secrets(command),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpus": os.cpu_count(),
        "git": _commit(),
        "versions": _versions(),
    }


_SECRET = re.compile(r"(?i)(^|[._-])(token|secret|password|api[_-]?key)$")


def _without_secrets(command: Sequence[str]) -> list[str]:
    shown, hide = [], False
    for word in command:
        key, equals, _ = word.partition("=")
        secret = bool(_SECRET.search(key))
        shown.append("***" if hide else f"{key}=***" if secret and equals else word)
        hide = secret and not equals and word.startswith("-")
    return shown


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _commit() -> str | None:
    """The commit of this source tree; None when installed, even inside somebody else's repository."""
    tree = Path(__file__).resolve().parent.parent
    ask = ["git", "-C", str(tree), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        top, commit = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=10).stdout.split("\n")[:2]
    except (OSError, subprocess.SubprocessError):
        return None
    return commit if Path(top) == tree else None
