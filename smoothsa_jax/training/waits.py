"""Whether training waits for its data, seen from the host alone: no step is waited for to find out."""

import time
from collections.abc import Iterator
from typing import Any

import jax

SHORT = 1e-3  # seconds that any queue may take


class DataWaits:
    """Counts the steps that waited for a batch.

    A step waited where its batch was long in coming and the device had nothing left to do when it came: a batch that comes
    late while the device still works on the step before costs nothing.
    """

    def __init__(self) -> None:
        self._running: Any = None
        self._steps = self._waited = 0
        self._seconds = 0.0

    def runs(self, outputs: Any) -> None:
        """The arrays that the step begun last will give. Until the first, nothing is counted: that is the start."""
        self._running = outputs

    def next_of(self, batches: Iterator[Any]) -> Any:
        """The next batch."""
        begin = time.perf_counter()
        batch = next(batches)
        seconds = time.perf_counter() - begin
        if self._running is not None:
            self._steps += 1
            if seconds > SHORT and all(x.is_ready() for x in jax.tree.leaves(self._running)):
                self._waited += 1
                self._seconds += seconds
        return batch

    def take(self) -> dict[str, float]:
        """The share of steps that waited and milliseconds a step, of all steps; counting starts anew. Empty without steps."""
        if not self._steps:
            return {}
        found = {
            "data_wait_share": round(self._waited / self._steps, 4),
            "data_wait_ms": round(1e3 * self._seconds / self._steps, 3),
        }
        self._steps = self._waited = 0
        self._seconds = 0.0
        return found
