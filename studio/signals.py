"""Signals ask the loop to stop; they never cut a step."""

from __future__ import annotations

import signal


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
