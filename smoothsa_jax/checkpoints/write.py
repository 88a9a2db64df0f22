"""Write checkpoints in the background; `read.py` describes their layout and reads them."""

import contextlib
import dataclasses
import errno
import json
import logging
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from smoothsa_jax.checkpoints.read import FILES_LIST, FOLDER, fingerprint, flatten_state
from smoothsa_jax.config.values import to_json
from smoothsa_jax.devices import hosts
from smoothsa_jax.devices.host_arrays import copies, on_host
from smoothsa_jax.errors import UserError
from smoothsa_jax.text import printable


@dataclasses.dataclass(frozen=True)
class _LatestAndBest:
    """Which steps to keep, as an Orbax preservation policy."""

    max_to_keep: int
    best_fn: Callable[[Mapping[str, float]], float] | None = None
    best_mode: str = "min"

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        newest_first = sorted(checkpoints, key=lambda found: -found.step)
        # Keep two of the latest if there is room: if the newest is damaged, little is lost.
        latest = self.max_to_keep
        if self.best_fn is not None:
            latest = max(1, min(2, self.max_to_keep - 1))
        kept, others = newest_first[:latest], newest_first[latest:]
        if self.best_fn is not None:
            sign = 1 if self.best_mode == "min" else -1
            others.sort(key=lambda found: sign * self.best_fn(found.metrics or {}))
            kept += others[: self.max_to_keep - latest]
        steps = {found.step for found in kept}
        return [found.step in steps for found in checkpoints]


class CheckpointWriter:
    """Writes checkpoints in the background and keeps `max_to_keep` of them.

    Without `best_metric`, the latest stay. With it, the two latest stay (only the latest if
    `max_to_keep` is 2), and the other places go to the best of the remaining checkpoints.

    Args:
        workdir: the run's folder.
        config: the whole config, saved with each checkpoint.
        max_to_keep: number of checkpoints to keep.
        best_metric: metric that ranks checkpoints; None: none does.
        best_mode: "min" or "max".

    Attributes:
        folder: the folder of checkpoints.
        last_good: step of the latest complete checkpoint; None: there is none.
    """

    def __init__(
        self,
        workdir: str | Path,
        config: ConfigDict,
        *,
        max_to_keep: int = 3,
        best_metric: str | None = None,
        best_mode: str = "min",
    ):
        self.folder = Path(workdir) / FOLDER
        path = str(self.folder.absolute())
        if printable(path) != path:  # Orbax takes no other names
            raise UserError(
                f"checkpoints cannot be written to {printable(path)}, whose name is not UTF-8; use "
                "another --workdir"
            )
        self.config = config
        self.best_metric = best_metric
        self.last_good: int | None = None
        self._pending: int | None = None  # step of the save in flight
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._frozen_listed: dict[str, list[Any]] | None = None
        _drop_reports_of_failed_saves()
        worst = math.inf if best_mode == "min" else -math.inf
        options: dict[str, Any] = {}
        if best_metric:  # a save after a signal comes without it
            best_of = lambda metrics: metrics.get(best_metric, worst)  # noqa: E731
            options = {"best_fn": best_of, "best_mode": best_mode}
        try:
            self._manager = ocp.CheckpointManager(
                self.folder.absolute(),
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=_LatestAndBest(max_to_keep, **options),
                    create=True,
                    enable_async_checkpointing=True,
                    async_options=ocp.options.AsyncOptions(
                        post_finalization_callback=self._list_files
                    ),
                    cleanup_tmp_directories=True,  # leftovers of killed saves, never checkpoints
                    **options,
                ),
            )
        except OSError as error:
            raise UserError(
                f"checkpoints cannot be written to {self.folder}: {error.strerror}; mend its "
                "permissions or use another --workdir"
            ) from error
        steps = self._manager.all_steps()
        self.last_good = max(steps) if steps else None

    def save(
        self,
        step: int,
        state: Any,
        progress: Mapping[str, Any],
        metrics: Mapping[str, float],
        frozen: Any = None,
    ) -> None:
        """Copy the state, then check and write it in the background.

        With several processes, each writes its share.

        Args:
            step: number of updates done so far.
            state: pytree of arrays; may be donated as soon as this returns.
            progress: JSON-like.
            metrics: the values that choose the best checkpoint.
            frozen: pytree of arrays that are never donated and are the same at every save.

        Raises:
            UserError: the previous save failed (disk full, no permission, or its state was not
                finite). With several processes, failures of this save may be raised too.
        """
        self.wait()
        arrays = copies(flatten_state(state))
        scores = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        self._pending = step
        write = lambda: self._write(step, arrays, flatten_state(frozen), dict(progress), scores)  # noqa: E731
        # All processes have to reach this at the same step: they wait for each other.
        if hosts.is_multi_process():
            with self._explained(step):
                write()
        else:
            self._writing = self._thread.submit(write)

    def _write(
        self,
        step: int,
        state: Mapping[str, Any],
        frozen: Mapping[str, Any],
        progress: dict[str, Any],
        scores: dict[str, float],
    ) -> None:
        """Check and write one checkpoint.

        This runs in the writer's thread. With several processes it runs in the calling thread,
        since all have to gather and save in the same order; Orbax then continues in its own thread.
        """
        frozen = on_host(frozen)
        if self._frozen_listed is None:
            self._frozen_listed = self._listed(step, frozen)
        listed = self._listed(step, on_host(state)) | self._frozen_listed
        items = ocp.args.Composite(
            state=ocp.args.StandardSave({**state, **frozen}),
            progress=ocp.args.JsonSave(progress),
            config=ocp.args.JsonSave(json.loads(to_json(self.config))),
            arrays=ocp.args.JsonSave(listed),
        )
        self._manager.save(step, args=items, metrics=scores, force=True)
        if not hosts.is_multi_process():
            self._manager.wait_until_finished()

    def _listed(self, step: int, arrays: Mapping[str, np.ndarray]) -> dict[str, list[Any]]:
        for name, array in arrays.items():
            if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
                raise UserError(
                    f"state of step {step} is not saved: {name} is not finite; "
                    f"{self._last_good_text()}; lower optimizer.learning_rate or look at the data"
                )
        return {name: fingerprint(array) for name, array in arrays.items()}

    def wait(self) -> None:
        """Wait until the pending save is complete.

        Raises:
            UserError: it failed, or its state was not finite; earlier checkpoints are intact.
        """
        if self._pending is None:
            return
        step = self._pending
        with self._explained(step):
            if self._writing is not None:
                self._writing.result()
            self._manager.wait_until_finished()
            self.last_good = step
        self._pending = None

    def poll(self) -> None:
        """Check, without waiting, whether the pending save is complete or has failed.

        Raises:
            UserError: as for `wait`.
        """
        # Several processes would notice at different steps and then wait for each other.
        if self._writing is not None and self._writing.done():
            self.wait()

    def close(self) -> None:
        """Finish the pending save and stop Orbax's threads.

        Never raises, since it may run while another error is handled; call `wait` first to learn
        of a failure.
        """
        if hosts.is_multi_process() and self._pending is not None:
            # This process may have failed. Orbax's threads finish the save if the others are alive.
            hosts.give_others_time(self.wait)
            return
        with contextlib.suppress(Exception):
            self.wait()
        self._thread.shutdown()
        with contextlib.suppress(Exception):
            self._manager.close()

    def describe_last_good(self) -> str:
        """Wait for the pending save, then describe the latest good checkpoint for messages."""
        with contextlib.suppress(UserError):
            self.wait()
        return self._last_good_text()

    def _last_good_text(self) -> str:
        if self.last_good is None:
            return "there is no earlier checkpoint"
        return f"the last good checkpoint is {self.folder / str(self.last_good)}"

    def _list_files(self) -> None:
        """List the sizes of a step's files.

        Orbax calls this in its thread, on process 0 only, once all items of a step are written and
        before the folder gets its final name. No other folder has a temporary name then.
        """
        for folder in self.folder.glob("*.orbax-checkpoint-tmp*"):
            sizes = {str(p.relative_to(folder)): p.stat().st_size for p in _files(folder)}
            (folder / FILES_LIST).write_text(json.dumps(sizes))

    @contextlib.contextmanager
    def _explained(self, step: int) -> Iterator[None]:
        """Turn errors of Orbax and the file system into a one-line error.

        Raises:
            UserError: the checkpoint could not be written.
        """
        try:
            yield
        except Exception as error:
            self._pending = None
            if isinstance(error, UserError) or (hosts.is_multi_process() and hosts.is_loss(error)):
                raise
            reason, advice = _why_not_written(error)
            raise UserError(
                f"checkpoint of step {step} could not be written to {self.folder}: {reason}; "
                f"{self._last_good_text()}; {advice}"
            ) from error


def _drop_reports_of_failed_saves() -> None:
    """Keep the threads of a failed save from printing a traceback for each array.

    Orbax closes its event loop at the first array that cannot be written. The writes of the others
    then fail unseen, or fail to report to the loop. `CheckpointWriter` reports the failure.
    """
    logging.getLogger("asyncio").addFilter(_is_kept)
    report = sys.unraisablehook
    if report.__module__ == __name__:  # replaced already
        return

    def report_others(unraisable: Any) -> None:
        if not (str(unraisable.exc_value) == "Event loop is closed" and unraisable.object is None):
            report(unraisable)

    sys.unraisablehook = report_others


def _is_kept(record: logging.LogRecord) -> bool:
    """Whether a record of asyncio's log is about anything but a task of Orbax."""
    trace = record.exc_info[2] if record.exc_info else None
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace)]
    return not any(os.path.join("orbax", "checkpoint") in file for file in files)


def _why_not_written(error: BaseException) -> tuple[str, str]:
    text = " ".join(str(error).split())
    links: list[BaseException] = [error]
    while (link := links[-1].__cause__ or links[-1].__context__) is not None and link not in links:
        links.append(link)
    codes = {link.errno for link in links if isinstance(link, OSError)}
    everything = " ".join(str(link) for link in links)
    for code, advice in (
        (errno.ENOSPC, "free some space, then run the same command to resume"),
        (errno.EDQUOT, "free some of your quota, then run the same command to resume"),
        (errno.EFBIG, "raise the limit on file sizes, then run the same command to resume"),
        (errno.EACCES, "fix its permissions, then run the same command to resume"),
        (errno.EROFS, "use a --workdir that can be written"),
    ):
        if code in codes or os.strerror(code) in everything:
            return os.strerror(code), advice
    return f"{type(error).__name__}: {text}"[:200], "fix that, then run the same command to resume"


def _files(folder: Path) -> list[Path]:
    # Orbax is still writing _CHECKPOINT_METADATA at this point.
    return [
        p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "_CHECKPOINT_METADATA"
    ]
