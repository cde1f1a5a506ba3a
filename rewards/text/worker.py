"""A helper process that answers one line for each line, and is started anew when it hangs or dies."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path

from studio.errors import RewardError

STARTING = 120.0  # seconds until the process has imported what it needs


class Worker:
    """Runs a script with this interpreter; the script prints a line when it is ready, then one for each line it reads.

    Needed where a library bounds its own time with signals, which only the main thread of a process receives.
    """

    def __init__(self, script: Path) -> None:
        self.script, self._lock = script, threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""

    def ask(self, line: str, seconds: float) -> str | None:
        """The answer; None when there was none in time or the process died over it."""
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            try:
                process.stdin.write(line.encode() + b"\n")
                process.stdin.flush()
                answer = self._line(process, seconds)
            except BrokenPipeError:
                answer = None
            if answer is None:
                self.stop()
            return answer

    def stop(self) -> None:
        """End the process; the next question starts another."""
        process, self._process, self._rest = self._process, None, b""
        if process is not None:
            _end(process)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-c", self.script.read_text(encoding="utf-8")]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            self._process, self._rest = process, b""
            weakref.finalize(self, _end, process)
            if self._line(process, STARTING) is None:
                self.stop()
                raise RewardError(
                    f"{self.script.name}: expected a helper process that starts, got one that ended or kept silent for "
                    f"{STARTING:.0f} s. Try `python {self.script}` and look at its error."
                )
        return self._process

    def _line(self, process: subprocess.Popen[bytes], seconds: float) -> str | None:
        assert process.stdout is not None
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    return None
                some = os.read(process.stdout.fileno(), 65_536)
                if not some:
                    return None
                self._rest += some
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode("utf-8", "replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):  # what was not read any more
                pipe.close()
