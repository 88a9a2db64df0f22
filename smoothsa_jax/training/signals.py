"""Signals that ask a run to leave."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):  # noqa: N818, it is no error
    """A signal asked the run to leave."""

    def __init__(self, number: int, message: str = ""):
        self.number = number
        super().__init__(
            message or f"stopped by {signal.Signals(number).name}; the same command goes on"
        )

    @property
    def exit_code(self) -> int:
        """What shells report for a process that a signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number


class SignalGuard:
    """SIGTERM and Ctrl-C: the first asks, the second leaves at once.

    Inside `with guard.finishing_steps():` the first signal only sets `received`, so that the loop can save. Elsewhere it
    raises `Stopped`: there is nothing to save.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._finishing = False

    def __enter__(self) -> "SignalGuard":
        self._before = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *ignored: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def finishing_steps(self) -> Iterator[None]:
        self._finishing = True
        try:
            yield
        finally:
            self._finishing = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.received is not None:
            os.write(2, b"\nleaving at once\n")
            os._exit(128 + number)
        self.received = number
        if not self._finishing:
            raise Stopped(number)
        name = signal.Signals(number).name
        os.write(
            2, f"\n{name}: finishing this step, then saving; once more to leave at once\n".encode()
        )
