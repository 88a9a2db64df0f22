"""Stop a run cleanly on SIGTERM and Ctrl-C."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):  # noqa: N818, not an error
    """A signal asked the run to stop.

    Args:
        number: number of the signal.
        message: text of the exception; default: names the signal.
    """

    def __init__(self, number: int, message: str = ""):
        self.number = number
        super().__init__(
            message or f"stopped by {signal.Signals(number).name}; the same command resumes"
        )

    @property
    def exit_code(self) -> int:
        """The exit code of a process ended by the signal: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number


class SignalGuard:
    """A handler of SIGTERM and Ctrl-C: the first signal asks to stop, the second exits at once.

    Inside `with guard.finishing_steps():`, the first signal only sets `received`, so that the loop
    can save. Elsewhere it raises `Stopped`, since there is nothing to save.

    Attributes:
        received: number of the first signal; None: none yet.
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
        """Let the loop finish its step and save when a signal arrives."""
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
            2, f"\n{name}: finishing this step, then saving; repeat to exit immediately\n".encode()
        )
