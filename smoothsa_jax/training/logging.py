"""Log a training run: a progress bar, and JSON rows and TensorBoard events every few steps."""

import contextlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar
from tqdm import tqdm

from smoothsa_jax.devices import hosts
from smoothsa_jax.errors import UserError

LOG_FILE = "log.jsonl"
EVENTS_FOLDER = "tensorboard"
# Report waits for data above this share of steps, at most once in this many seconds.
WAITS_TOLD, WAITS_TOLD_EVERY = 0.1, 60.0
# Short names of the losses, for the progress bar.
SHORT = {
    "loss": "loss",
    "loss/reconstruction": "rec",
    "loss/distillation": "dist",
    "loss/slot_contrast": "contr",
    "loss/category": "cat",
    "loss/box": "box",
}


def truncate_log(path: Path, last_step: int) -> None:
    """Keep the rows of steps up to `last_step`.

    A resumed run computes the rows after its last checkpoint again. A truncated row is dropped
    together with everything after it.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break
        if row["step"] <= last_step:
            kept.append(line + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)


def read_log(path: str | Path) -> list[dict[str, float]]:
    """Return the rows of a `log.jsonl`."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def has_row(step: int, metrics: Mapping[str, float], log_every: int, num_steps: int) -> bool:
    """Tell whether the metrics of a step are written."""
    return step % log_every == 0 or step == num_steps or _scored(metrics)


def _scored(metrics: Mapping[str, float]) -> bool:
    return any(name.startswith("validation/") for name in metrics)


def _longest(waits: Mapping[str, float]) -> dict[str, float]:
    """Return the waits of the process that waited most, and its number if there are several.

    All processes have to call this. In every step the others wait for that process, so their own
    waits do not show it.
    """
    found = hosts.gather(dict(waits))
    worst = max(range(len(found)), key=lambda i: found[i].get("data_wait_share", 0.0))
    number = {"data_wait_process": worst} if len(found) > 1 and found[worst] else {}
    return {**found[worst], **number}


SHORT_WAIT = 1e-3  # seconds that any queue may need


class DataWaits:
    """A counter of the steps that waited for a batch.

    A step waited if its batch was late and the device was idle when it arrived. A batch that is
    late while the device still works on the previous step costs nothing.
    """

    def __init__(self) -> None:
        self._running: Any = None
        self._steps = self._waited = 0
        self._seconds = 0.0

    def runs(self, outputs: Any) -> None:
        """Note the outputs of the step just started; before the first step, nothing is counted."""
        self._running = outputs

    def next_of(self, batches: Iterator[Any]) -> Any:
        """Return the next batch, and measure how long it takes."""
        begin = time.perf_counter()
        batch = next(batches)
        seconds = time.perf_counter() - begin
        if self._running is not None:
            self._steps += 1
            if seconds > SHORT_WAIT and all(x.is_ready() for x in jax.tree.leaves(self._running)):
                self._waited += 1
                self._seconds += seconds
        return batch

    def take(self) -> dict[str, float]:
        """Return the waits since the last call, and reset the counter.

        Returns:
            data_wait_share, the share of steps that waited, and data_wait_ms, the mean wait over
            all steps in milliseconds. Empty without steps.
        """
        if not self._steps:
            return {}
        found = {
            "data_wait_share": round(self._waited / self._steps, 4),
            "data_wait_ms": round(1e3 * self._seconds / self._steps, 3),
        }
        self._steps = self._waited = 0
        self._seconds = 0.0
        return found


class RunLog:
    """The log of a run: `log.jsonl`, TensorBoard events and the progress bar.

    Rows are written immediately and in the calling thread, so that a full disk raises here and not
    silently in another thread.

    Args:
        workdir: the run's folder.
        first_step: number of steps already done; later rows are dropped from the log.
        num_steps: number of steps of the whole training.
        log_every: number of steps between rows.
        stream: where the progress bar goes; None: stderr.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        first_step: int,
        num_steps: int,
        log_every: int,
        stream: TextIO | None = None,
    ):
        stream = stream or sys.stderr
        self._workdir = workdir
        self.log_every, self.num_steps = log_every, num_steps
        self.waits = DataWaits()
        self._told_waits = -math.inf
        # Time and step at which the current measurement of speed began.
        self._clock: tuple[float, int] | None = None
        truncate_log(workdir / LOG_FILE, first_step)
        self._rows = open(workdir / LOG_FILE, "a")  # noqa: SIM115, closed by close()
        (workdir / EVENTS_FOLDER).mkdir(exist_ok=True)
        # The file name has a resolution of seconds; the process number keeps a quick restart from
        # overwriting the previous file.
        self._events = EventsWriter(str(workdir / EVENTS_FOLDER / "events"), f".{os.getpid()}")
        # Makes TensorBoard discard later steps of an interrupted run.
        self._event(session_log=SessionLog(status=SessionLog.START), step=first_step + 1)
        self._stream = stream
        self._bar: tqdm | None = None

    def _begin_bar(self, step: int) -> tqdm:
        """Start the bar after the first step: its compilation would distort the time left."""
        return tqdm(
            total=self.num_steps,
            initial=step,
            unit=" steps",
            desc="train",
            file=self._stream,
            # Some terminals report a size of zero.
            ncols=shutil.get_terminal_size((130, 24)).columns,
            nrows=24,
            # In a file, each update is a line, so update rarely.
            mininterval=0.3 if self._stream.isatty() else 20.0,
            bar_format="{desc} {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} "
            "[{rate_fmt}, {remaining} left{postfix}]",
        )

    def record(self, step: int, metrics: Mapping[str, float], done_at: float | None = None) -> None:
        """Show the metrics of a step, and write them every `log_every` steps.

        Args:
            step: number of steps done, including this one.
            metrics: the step's metrics, by name.
            done_at: when the step was done, of `time.perf_counter`; None: now. What came after it,
                such as scoring, is not time of training.

        Raises:
            UserError: the log cannot be written.
        """
        now = time.perf_counter() if done_at is None else done_at
        if self._clock is None:
            self._clock = (now, step)
        losses = {short: f"{metrics[name]:.3f}" for name, short in SHORT.items() if name in metrics}
        if self._bar is None:
            self._bar = self._begin_bar(step)
        self._bar.set_postfix(losses, refresh=False)
        self._bar.update(step - self._bar.n)
        if not has_row(step, metrics, self.log_every, self.num_steps):
            return
        waits = _longest(self.waits.take())
        if self._clock is not None and step > self._clock[1]:
            speed = (step - self._clock[1]) / (now - self._clock[0])
            metrics = {**metrics, "steps_per_second": round(speed, 3), **waits}
            self._tell_waits(waits, now)
        # Time for compiling or scoring in between is not training time.
        self._clock = None if _scored(metrics) else (now, step)
        plain = {name: float(value) for name, value in metrics.items()}
        row = {
            "step": step,
            **{name: value if math.isfinite(value) else None for name, value in plain.items()},
        }
        try:
            self._rows.write(json.dumps(row) + "\n")
            self._rows.flush()
            for name, value in plain.items():
                tag = name if name.startswith("validation/") else f"train/{name}"
                self._event(summary=scalar(tag, np.float32(value)), step=step)
            self._events.flush()
        except OSError as error:
            raise UserError(
                f"the log in {self._workdir} cannot be written at step {step}: {error.strerror}; "
                "checkpoints are intact; fix that, then run the same command to resume"
            ) from error

    def _tell_waits(self, waits: Mapping[str, float], now: float) -> None:
        if waits.get("data_wait_share", 0.0) < WAITS_TOLD:
            return
        if now - self._told_waits < WAITS_TOLD_EVERY:
            return
        self._told_waits = now
        who = f"process {waits['data_wait_process']} " if "data_wait_process" in waits else ""
        tqdm.write(
            f"{who}waited for data in {waits['data_wait_share']:.0%} of steps "
            f"({waits['data_wait_ms']:.1f} ms a step): raise train.num_workers or "
            "train.num_threads, prepare the folder with --uncompressed, or train on cached "
            "features (docs/datasets.md)",
            file=self._stream,
        )

    def close(self) -> None:
        """Close the progress bar and the files."""
        if self._bar is not None:
            self._bar.close()
        for file in (self._rows, self._events):
            with contextlib.suppress(OSError):  # writing the row has reported a full disk
                file.close()

    def _event(self, **content: object) -> None:
        self._events.write_event(Event(wall_time=time.time(), **content))


class SilentLog:
    """The log of processes other than the first: it only reports waits for data to the first.

    Args:
        num_steps: number of steps of the whole training.
        log_every: number of steps between rows.
    """

    def __init__(self, *, num_steps: int, log_every: int):
        self.log_every, self.num_steps = log_every, num_steps
        self.waits = DataWaits()

    def record(self, step: int, metrics: Mapping[str, float], done_at: float | None = None) -> None:
        """Report the waits if the first process writes a row for this step."""
        del done_at
        if has_row(step, metrics, self.log_every, self.num_steps):
            _longest(self.waits.take())

    def close(self) -> None:
        pass


class NonFiniteLoss(UserError):
    """A loss or gradient is infinite or not a number."""


def check_finite(step: int, metrics: Mapping[str, float], last_good: Callable[[], str]) -> None:
    """Stop the run if a loss or the gradient is not finite.

    Args:
        step: number of steps done.
        metrics: the step's metrics, by name.
        last_good: returns a description of the last good checkpoint.

    Raises:
        NonFiniteLoss: the message gives the step, all loss terms and the last good checkpoint.
    """
    if all(math.isfinite(value) for value in metrics.values()):
        return
    terms = ", ".join(
        f"{name} {value:.6g}" for name, value in metrics.items() if "learning_rate" not in name
    )
    raise NonFiniteLoss(
        f"step {step} is not finite: {terms}; {last_good()}; lower optimizer.learning_rate or look "
        "at the data, and start from another workdir"
    )


def say(text: str) -> None:
    """Print a line to stderr, on the first process only."""
    if hosts.is_primary():
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Print a warning to stderr, on every process: their problems may differ."""
    print(f"warning: {text}", file=sys.stderr, flush=True)
