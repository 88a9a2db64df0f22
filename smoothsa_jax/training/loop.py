"""The training loop."""

import contextlib
import copy
import dataclasses
import signal
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from smoothsa_jax.checkpoints import sources
from smoothsa_jax.checkpoints.read import (
    Checkpoint,
    refuse_different,
    restore_latest,
    restore_state,
)
from smoothsa_jax.checkpoints.workdir import (
    config_of,
    refuse_other_config,
    workdir_for_writing,
    write_config,
)
from smoothsa_jax.checkpoints.write import CheckpointWriter
from smoothsa_jax.devices import hosts
from smoothsa_jax.devices.compiling import CompiledOnce, advice_for_training, telling_out_of_memory
from smoothsa_jax.devices.host_arrays import on_own_devices
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.split import paper_slot_mask
from smoothsa_jax.inputs.build import build_dataset
from smoothsa_jax.inputs.found import is_stored
from smoothsa_jax.inputs.loader import Batches, RandomSource, Source, training_batches
from smoothsa_jax.inputs.records import NoSuchSplit
from smoothsa_jax.inputs.repeats import distinct
from smoothsa_jax.models.build import untrained_queries
from smoothsa_jax.tasks.checks import agree, check
from smoothsa_jax.tasks.stored import refuse_other_features, refuse_other_slots
from smoothsa_jax.training.evaluating import (
    BY_LOSS,
    BY_TRAINING_LOSS,
    GO_ON,
    REPORT_AGAIN,
    best_checkpoint,
    evaluating,
    evaluator_of,
    params_of,
    print_results,
    report,
    slots_of,
    source_of_split,
    untrained,
    validation_scores,
    wants_best,
)
from smoothsa_jax.training.logging import (
    DataWaits,
    RunLog,
    SilentLog,
    check_finite,
    say,
    warn,
)
from smoothsa_jax.training.signals import SignalGuard, Stopped
from smoothsa_jax.training.state import TrainState
from smoothsa_jax.training.step import Training, build_training
from smoothsa_jax.training.weights_and_biases import WandbRun, check_wandb, send_scores

SMALLER = (
    "shard it over more devices with --config.mesh.fsdp, or use a smaller model with another "
    "--workdir"
)


def train(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Train to `train.num_steps`, from the newest sound checkpoint in the workdir where there is
    one, then evaluate.

    Returns:
        The content of `scores.json`.

    Raises:
        UserError: a bad config, a workdir of another config, a disk that is full, a loss that is
            not finite.
        Stopped: a signal asked to leave; the state is saved.
    """
    agree(config)
    stored = config_of(workdir)
    config = sources.with_companions(config, stored, warn)
    check(config)
    check_wandb(config)
    lock = workdir_for_writing(workdir) if hosts.is_primary() else contextlib.nullcontext()
    with lock, SignalGuard() as guard:
        hosts.refuse_other_folders(workdir)
        refuse_other_config(stored, config, workdir)
        # What another process than the first cannot read may be sound.
        checkpoint = hosts.first_then_others(
            lambda: restore_latest(workdir, warn=warn, set_aside=hosts.is_primary())
        )
        refuse_different("newest checkpoint that can be read", checkpoint)
        if checkpoint is not None:
            refuse_other_config(checkpoint.config, config, workdir)
        with telling_out_of_memory("the model with its optimizer", SMALLER):
            state, training = _begin(config, checkpoint)
        if checkpoint is not None:
            checkpoint = dataclasses.replace(checkpoint, arrays={})  # they are on the devices now
        if checkpoint is not None and checkpoint.step >= config.train.num_steps:
            say(
                f"training is finished at step {checkpoint.step}: evaluating only; use another "
                "--workdir to train anew"
            )
        else:
            state = _train_steps(config, workdir, training, state, checkpoint, guard)
        with evaluating(config, REPORT_AGAIN):
            training, params = on_own_devices(training, state.params)
            step = config.train.num_steps
            if wants_best(config):
                chosen = best_checkpoint(workdir, config)
                if chosen is not None:
                    step, params = chosen.step, params_of(chosen, training)
            scores = report(config, training, params, step, workdir)
    print_results(config.title, scores, workdir)
    if hosts.is_primary():
        send_scores(config, workdir, scores)
    return scores


def _begin(config: ConfigDict, checkpoint: Checkpoint | None) -> tuple[TrainState, Training]:
    """Return the state to go on from, and the training with a copy of its first parameters: of a
    checkpoint, or new."""
    training = build_training(config)
    state = training.state
    if checkpoint is None:
        if (line := untrained_queries(config.model)) is not None and hosts.is_primary():
            warn(line)
        params, frozen, words = sources.begin(config, training, warn)
        averages = {
            f"{name}.{key}": jnp.copy(x)
            for name, companion in config.companions.items()
            for key, x in (params.items() if "average_of" in companion else ())
        }
        state = state.replace(params=params, averages=averages)
        if words:
            say(f"frozen weights: {words}")
        first = dataclasses.replace(training, state=state, frozen=frozen, frozen_from=words)
        return state, untrained(first)
    training = untrained(training)
    restored = restore_state({"state": state, "frozen": training.frozen}, checkpoint)
    frozen_from = checkpoint.progress.get("frozen_from", "")
    return restored["state"], dataclasses.replace(
        training, frozen=restored["frozen"], frozen_from=frozen_from
    )


def _train_steps(
    config: ConfigDict,
    workdir: Path,
    training: Training,
    state: TrainState,
    checkpoint: Checkpoint | None,
    guard: SignalGuard,
) -> TrainState:
    """Run the remaining steps; return the state after the last one."""
    batches, fingerprint = _open_data(config, training, checkpoint)
    done, num_steps = 0 if checkpoint is None else checkpoint.step, config.train.num_steps
    if checkpoint is not None:
        say(f"resuming from step {done} of {num_steps}")
    if hosts.is_primary():
        write_config(config, workdir)
    books = _Books(config, workdir, training, fingerprint, checkpoint)

    say("compiling the training step, once; later starts find it on the disk")
    train_step = CompiledOnce(training.train_step, say, bool(config.train.xla_flags))
    in_memory = telling_out_of_memory(
        f"a training step of train.batch_size={config.train.batch_size}",
        advice_for_training(config),
        train_step,
    )
    root, stop_together = jax.random.key(config.seed), hosts.StopTogether()
    placed = _placed_ahead(batches, training, books.log.waits, config.train.match_paper)
    with books, contextlib.closing(batches), guard.finishing_steps(), in_memory:
        for batch, position in placed:
            key = jax.random.fold_in(root, done)
            state, metrics = train_step(state, training.cast_frozen, batch, key)
            done += 1
            books.take_in(done, metrics)
            received = stop_together.asked(guard.received)  # once: a signal may come at any time
            regular = done % config.checkpoint.every == 0 or done == num_steps
            if regular or received is not None:
                books.save(state, position, regular)
            else:
                books.writer.poll()
            if received is not None or done == num_steps:
                break
        books.writer.wait()
        # Since the last step asked, one may have come, and to one process alone.
        received = received or max(hosts.gather(guard.received or 0)) or None
    if received is not None:
        raise Stopped(
            received,
            f"stopped by {signal.Signals(received).name} after step {done} of {num_steps}, saved "
            f"in {books.writer.folder / str(done)}; the same command resumes",
        )
    return state


# ------------------------------------------------------------------------------------ the data


def _open_data(
    config: ConfigDict, training: Training, checkpoint: Checkpoint | None
) -> tuple[Batches, str | None]:
    """Open the training split, at the checkpoint's position in it.

    Returns:
        The batches, and a text that tells the training samples apart.

    Raises:
        UserError: a split is missing, or the samples are not those of the checkpoint.
    """
    num_slots = training.task.slot_model.num_slots
    # A missing split fails now, not after hours of training.
    source_of_split(config, slots_of(config, training.task), config.eval.split, None)
    source = build_dataset(
        config.data,
        "train",
        reads=training.task.inputs,
        num_slots=num_slots,
        with_pixels=getattr(training.task, "needs_pixels", False),
    )
    if config.data.get("features"):
        refuse_other_features(source, config, training.frozen)
    if config.data.get("slots"):
        read = getattr(training.task, "stored_splits", ())
        splits = ("train", *(x for x in read if x != "train" and is_stored(config.data, x)))
        refuse_other_slots(source, config, training.frozen, splits)
    fingerprint = source.fingerprint() if isinstance(source, RandomSource) else None
    hosts.refuse_differences({"training samples": fingerprint})
    batches = training_batches(
        source,
        config.train.batch_size // jax.process_count(),
        config.seed,
        num_threads=config.train.num_threads,
        num_workers=config.train.num_workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    _say_left_out(source, config)
    if checkpoint is not None:
        _refuse_other_data(checkpoint, fingerprint, config)
        batches.set_state(checkpoint.progress["data"])
    return batches, fingerprint


class _Choice(NamedTuple):
    """How the best checkpoints are chosen.

    Attributes:
        metric: None: by none.
        mode: "min" or "max".
        validates: whether the metric is of the validation split.
    """

    metric: str | None
    mode: str
    validates: bool


def _choice(config: ConfigDict, training: Training) -> _Choice:
    """Return how the best checkpoints are chosen: as the config says, as far as the data can."""
    metric, mode = config.checkpoint.best_metric, config.checkpoint.best_mode
    if metric not in training.task.evaluator.metrics:
        return _Choice(metric, mode, False)
    try:
        evaluator = evaluator_of(config, training.task, "validation")
    except NoSuchSplit:
        say(f"there is no validation split: the best checkpoints go by the loss, not by {metric}")
        return _Choice(*BY_TRAINING_LOSS, False)
    if evaluator is training.task.evaluator:
        return _Choice(metric, mode, True)
    say(
        "the validation split has no labels: its losses are logged, and the best checkpoints go by "
        f"{BY_LOSS[0]}, not by {metric}"
    )
    return _Choice(*BY_LOSS, True)


def _say_left_out(source: Source, config: ConfigDict) -> None:
    if not isinstance(source, RandomSource):
        return
    if left_out := len(source) - distinct(source.epoch()):
        why = f"they have fewer than data.num_frames={config.data.num_frames} frames"
        if (last := config.data.get("last_entry")) is not None:
            why += f", or objects enter all their clips after frame data.last_entry={last}"
        say(f"{left_out} of {len(source)} training samples are left out: {why}")


def _refuse_other_data(checkpoint: Checkpoint, found: str | None, config: ConfigDict) -> None:
    """Refuse other samples: the folder may have moved since the checkpoint was saved, but what it
    holds may not have changed."""
    before = checkpoint.progress.get("source")
    if before is not None and found != before:
        raise UserError(
            f"data.folder {config.data.get('folder')} holds other training samples than the run of "
            f"{checkpoint.path} was trained on; give the same ones to resume, or another --workdir"
        )


def _placed_ahead(
    batches: Batches,
    training: Training,
    waits: DataWaits,
    match_paper: bool = False,
    ahead: int = 2,
) -> Iterator[tuple[dict[str, jax.Array], Any]]:
    """Yield batches on the device, put there while the steps before them run, each with the
    position after it.

    With `match_paper` all samples of a batch have as many slots as the one with the most boxes.
    """
    queue: deque[tuple[dict[str, jax.Array], Any]] = deque()
    while True:
        while len(queue) < ahead:
            batch = waits.next_of(batches)
            if match_paper:
                batch = {**batch, "slot_mask": paper_slot_mask(batch)}
            queue.append((training.place(batch), copy.deepcopy(batches.get_state())))
        yield queue.popleft()


# ------------------------------------------------------------------------------- what is kept


class _Books:
    """What a run keeps of its steps: the log, means of the metrics, checkpoints."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        training: Training,
        fingerprint: str | None,
        checkpoint: Checkpoint | None,
    ):
        self._config, self._training, self._fingerprint = config, training, fingerprint
        self._workdir = workdir
        self._choice = _choice(config, training)
        self._means = _Means(**({} if checkpoint is None else checkpoint.progress["means"]))
        # The last step and its metrics, still on the device: read while the device works on the
        # next step.
        self._waiting: tuple[int, dict[str, jax.Array]] | None = None
        self.writer = CheckpointWriter(
            workdir,
            config,
            max_to_keep=config.checkpoint.max_to_keep,
            best_metric=self._choice.metric,
            best_mode=self._choice.mode,
        )
        times = {"num_steps": config.train.num_steps, "log_every": config.log.every}
        first = 0 if checkpoint is None else checkpoint.step
        if not hosts.is_primary():
            self.log = SilentLog(**times)
            return
        wandb = None if config.log.wandb is None else WandbRun(config, workdir)
        self.log = RunLog(workdir, first_step=first, wandb=wandb, **times)

    def __enter__(self) -> "_Books":
        return self

    def __exit__(self, *ignored: object) -> None:
        try:
            self.writer.close()
        finally:
            self.log.close()

    def take_in(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Take in the metrics of the step just begun, and log those of the one before."""
        self.log.waits.runs(metrics)
        if self._waiting is not None:
            self.log.record(self._waiting[0], self._read())
        self._waiting = (step, metrics)

    def save(self, state: TrainState, position: Any, regular: bool) -> None:
        """Log the last step and save the state after it.

        Args:
            position: in the data, after the step.
            regular: whether the checkpoint's turn has come; otherwise the run leaves.

        Raises:
            UserError: the state cannot be scored on the validation split.
        """
        step, row, scores = self._waiting[0], self._read(), {}
        done_at = time.perf_counter()
        if regular:
            scores = self._means.take()
            # Also when leaving: a resumed run has to choose the same best step.
            if self._choice.validates:
                found = self._validation(step, state, position, scores)
                in_log = {f"validation/{name}": value for name, value in found.items()}
                # Of a score there is but one; losses are those of training, too.
                scores |= in_log if self._choice.metric in in_log else found
                row |= in_log
        self.log.record(step, row, done_at)
        self._write(step, state, position, scores)

    def _read(self) -> dict[str, float]:
        """Wait for the last step's metrics, and count them."""
        (step, metrics), self._waiting = self._waiting, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        check_finite(step, values, self.writer.describe_last_good)
        self._means.add(values)
        return values

    def _validation(
        self, step: int, state: TrainState, position: Any, scores: dict[str, float]
    ) -> dict[str, float]:
        without_untrained = dataclasses.replace(self._training, state=None)
        try:
            with evaluating(self._config, GO_ON):
                own, params = on_own_devices(without_untrained, state.params)
                return validation_scores(self._config, own, params, self._workdir)
        except UserError as error:
            # Of several processes this one may be alone with its trouble, and all have to come to
            # a save.
            if not hosts.is_multi_process():
                self._write(step, state, position, scores)
            raise UserError(f"{error}; {self.writer.describe_last_good()}") from error

    def _write(self, step: int, state: TrainState, position: Any, scores: dict[str, float]) -> None:
        progress = {
            "data": position,
            "means": self._means.state(),
            "source": self._fingerprint,
            "frozen_from": self._training.frozen_from,
        }
        frozen = {"frozen": self._training.frozen}
        self.writer.save(step, {"state": state}, progress, scores, frozen)


class _Means:
    """Means of the training metrics since the last regular checkpoint; part of a checkpoint."""

    def __init__(self, count: int = 0, sums: dict[str, float] | None = None):
        self.count, self.sums = count, dict(sums or {})

    def add(self, values: dict[str, float]) -> None:
        self.count += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def take(self) -> dict[str, float]:
        """Return the means; counting starts anew."""
        means = {name: total / self.count for name, total in self.sums.items()}
        self.count, self.sums = 0, {}
        return means

    def state(self) -> dict[str, Any]:
        return {"count": self.count, "sums": dict(self.sums)}
