"""Ctrl-C and SIGTERM for a program that has things to stop in order."""

from __future__ import annotations

import signal
import time


class StopSignal:
    """While entered, SIGINT and SIGTERM ask the loop to end, and interrupt what waits before it."""

    def __init__(self) -> None:
        self.received = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        first, self.received = not self.received, True
        if first:  # a second Ctrl-C must not break the orderly stop
            raise KeyboardInterrupt

    def wait(self, seconds: float) -> bool:
        """Sleep; whether to end."""
        time.sleep(seconds)
        return self.received
