"""Signals ask the loop to stop; they never cut a step."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def handled(handler: Callable[[int, Any], None], *numbers: int) -> Iterator[None]:
    """Signals go to `handler` within; ignored ones stay ignored, as under nohup. No effect outside of the main thread."""
    before = {}
    with suppress(ValueError):  # not the main thread: whoever started us handles signals
        before = {n: signal.signal(n, handler) for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


class StopOnSignal:
    """SIGINT and SIGTERM only set a flag; the loop stops after the step, with a checkpoint. A second SIGINT interrupts."""

    def __init__(self) -> None:
        self.wanted = False
        self.before = {}
        try:
            self.before = {s: signal.signal(s, self._set) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: whoever started us handles signals
            self.before = {}

    def _set(self, number, frame) -> None:
        if self.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wanted = True

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
