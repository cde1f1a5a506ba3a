"""`studio` commands as processes of their own: they outlive this one, and what they say goes into a file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_children: list[subprocess.Popen] = []  # asked for their end now and then, or they would stay as zombies


def command(*words: str) -> list[str]:
    """A `studio` command line under this interpreter."""
    return [sys.executable, "-m", "studio.cli", *words]


def start(words: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> int:
    """Start `studio WORDS` apart from this process; its output is appended to `log` -> process id."""
    reap()
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as handle:
        child = subprocess.Popen(
            command(*words),
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=subprocess.STDOUT,
            env={**os.environ, "NO_COLOR": "1", **(environment or {})},
            start_new_session=True,  # no signal that is meant for the interface reaches it
        )
    _children.append(child)
    return child.pid


def answer(words: Sequence[str], *, timeout: float = 120.0) -> tuple[int, str, str]:
    """Run `studio WORDS` to its end -> exit code, output, messages."""
    done = subprocess.run(
        command(*words),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "NO_COLOR": "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
    )
    return done.returncode, done.stdout, done.stderr


def reap() -> None:
    """Take leave of children that have ended."""
    _children[:] = [child for child in _children if child.poll() is None]
