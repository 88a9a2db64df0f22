"""The training loop, and the evaluation of what it left."""

import contextlib
import copy
import dataclasses
import math
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from smoothsa_jax.config import differences, flatten, from_json, to_json
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.atomic import atomic_file
from smoothsa_jax.evaluation.metrics import METRICS
from smoothsa_jax.evaluation.predictions import paper_slot_mask
from smoothsa_jax.evaluation.recognition import RECOGNITION_METRICS
from smoothsa_jax.evaluation.scores import headline, scores_table
from smoothsa_jax.inputs.build import DATASETS, build_dataset
from smoothsa_jax.inputs.loader import Batches, RandomSource, Source, training_batches
from smoothsa_jax.models.build import PARTS
from smoothsa_jax.models.parameters import Parameters
from smoothsa_jax.training import hosts, recognition_scoring, runtime, scoring
from smoothsa_jax.training.backbone import refuse_other_features, with_backbone
from smoothsa_jax.training.checkpoint_writer import CheckpointWriter
from smoothsa_jax.training.checkpoints import (
    FOLDER,
    BrokenCheckpoint,
    Checkpoint,
    best_step,
    read_checkpoint,
    refuse_different,
    restore_latest,
    restore_state,
    steps_found,
)
from smoothsa_jax.training.compiling import (
    CompiledOnce,
    advice_for_training,
    telling_out_of_memory,
)
from smoothsa_jax.training.host_arrays import on_own_devices
from smoothsa_jax.training.logging import EVENTS_FOLDER, LOG_FILE, RunLog, SilentLog, check_finite
from smoothsa_jax.training.recognition import build_recognition, with_pretrained
from smoothsa_jax.training.state import TrainState, copied
from smoothsa_jax.training.step import Training, build_training
from smoothsa_jax.training.waits import DataWaits
from smoothsa_jax.validation import mesh_shape, validate

CONFIG_FILE = "config.json"
# Where scoring runs out of memory: after the training, and within it.
REPORT_AGAIN = "use --mode=evaluate with {}, or more devices; the weights are saved"
GO_ON = "run the same command with {}, or more devices"
SMALLER = "cut it over more devices with --config.mesh.fsdp, or use a smaller model with another --workdir"


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained and how it is scored; all else of a run is the same for every task.

    Attributes:
      build: config -> the first state and the compiled functions.
      begin: (config, training, warn) -> the same with what a run that has no checkpoint yet takes from elsewhere.
      validation_scores: (config, training, params) -> {name: mean}, with a value for each of `metrics`.
      report: as `scoring.report`.
      metrics: names by which the best checkpoint can be chosen.
    """

    build: Callable[[ConfigDict], Training]
    begin: Callable[[ConfigDict, Training, Callable[[str], None]], Training]
    validation_scores: Callable[[ConfigDict, Training, Parameters], dict[str, float]]
    report: Callable[..., dict[str, Any]]
    metrics: tuple[str, ...]


def task_of(config: ConfigDict) -> Task:
    """Recognition where the config has a part of that name, else SmoothSA itself."""
    if "recognition" in config:
        return Task(
            build_recognition,
            with_pretrained,
            recognition_scoring.validation_scores,
            recognition_scoring.report,
            RECOGNITION_METRICS,
        )
    return Task(build_training, with_backbone, scoring.validation_scores, scoring.report, METRICS)


def say(text: str) -> None:
    """A line for people; of several processes the first one talks."""
    if hosts.first():
        print(text, file=sys.stderr, flush=True)


def check(
    config: ConfigDict, batches: tuple[str, ...] = ("train.batch_size", "eval.batch_size")
) -> None:
    """Refuse a config that cannot run on this machine; see `smoothsa_jax.validation.validate`."""
    names = {f"model.{part}.name": choices for part, choices in PARTS.items()}
    trained = ("loss", *(f"loss/{name}" for name in config.get("loss", {})), "grad_norm")
    names |= {"data.name": DATASETS, "checkpoint.best_metric": (*task_of(config).metrics, *trained)}
    # Of several processes each scores whole batches, on its own devices.
    divided = [name for name in batches if name != "eval.batch_size" or not hosts.several()]
    validate(config, len(jax.devices()), names, divided)
    hosts.refuse_misfit(config, batches)


def _agree(config: ConfigDict) -> None:
    """Compare, before anything is done, what all processes have to have in common.

    Not the workdir: a host that looks for a folder before process 0 makes it may, over NFS, go on seeing none.
    """
    if not hosts.several():
        return
    common = {k: v for k, v in flatten(config).items() if k not in hosts.OF_EACH_HOST}
    hosts.refuse_differences({**common, **hosts.versions()})


def _untrained(training: Training) -> Training:
    """The same with a copy of the first parameters, for scoring, and nothing else of the first state: a step gives that away."""
    state = training.state.replace(opt_state=())
    return dataclasses.replace(training, state=copied(state))


# ------------------------------------------------------------------------------------------------------- training


def train(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Train to `train.num_steps`, from the newest sound checkpoint in the workdir where there is one, then evaluate.

    Returns:
      the content of `scores.json`.

    Raises:
      UserError: a bad config, a workdir of another config, a disk that is full, a loss that is not finite.
      Stopped: a signal asked to leave; the state is saved.
    """
    _agree(config)
    check(config)
    task = task_of(config)
    lock = runtime.workdir_for_writing(workdir) if hosts.first() else contextlib.nullcontext()
    with lock, runtime.SignalGuard() as guard:
        hosts.refuse_other_folders(workdir)
        _refuse_other_config(_config_of(workdir), config, workdir)
        # What another process than the first cannot read may be sound.
        checkpoint = hosts.first_then_others(
            lambda: restore_latest(workdir, warn=_warn, set_aside=hosts.first())
        )
        refuse_different("newest checkpoint that can be read", checkpoint)
        if checkpoint is not None:
            _refuse_other_config(checkpoint.config, config, workdir)
        with telling_out_of_memory("the model with its optimizer", SMALLER):
            state, training = _begin(config, task, checkpoint)
        if checkpoint is not None:
            checkpoint = dataclasses.replace(checkpoint, arrays={})  # they are on the devices now
        if checkpoint is not None and checkpoint.step >= config.train.num_steps:
            say(
                f"training is finished at step {checkpoint.step}: evaluating only; use another --workdir to train anew"
            )
        else:
            state = _train_steps(config, workdir, training, state, checkpoint, guard)
        with _evaluating(config, REPORT_AGAIN):
            training, params = on_own_devices(training, state.params)
            step = config.train.num_steps
            if _wants_best(config):
                chosen = _best(workdir, config)
                if chosen is not None:
                    step, params = chosen.step, _params_of(chosen, training)
            scores = task.report(config, training, params, step, workdir, say)
    _tell_results(scores, workdir)
    return scores


def _begin(
    config: ConfigDict, task: Task, checkpoint: Checkpoint | None
) -> tuple[TrainState, Training]:
    """The state to go on from, and the training with a copy of its first parameters: of a checkpoint, or new."""
    training = task.build(config)
    state, training = training.state, _untrained(training)
    if checkpoint is None:
        training = task.begin(config, training, _warn)
        if training.frozen_from:
            say(f"frozen weights: {training.frozen_from}")
        return state, training
    restored = restore_state({"state": state, "frozen": training.frozen}, checkpoint)
    frozen_from = checkpoint.progress.get("frozen_from", "")
    return restored["state"], dataclasses.replace(
        training, frozen=restored["frozen"], frozen_from=frozen_from
    )


def _evaluating(config: ConfigDict, advice: str) -> contextlib.AbstractContextManager[None]:
    """`advice`: what to do where memory runs out, with a place for the option that lessens it."""
    batch = config.eval.batch_size
    mesh = mesh_shape(config.mesh.data, config.mesh.get("fsdp", 1), len(jax.devices()))
    devices = math.prod(mesh) // jax.process_count()
    smaller = batch // 2 // devices * devices
    option = f"--config.eval.batch_size={smaller}" if smaller else "fewer eval.num_frames"
    return telling_out_of_memory(
        f"scoring eval.batch_size={batch} samples at a time", advice.format(option)
    )


def _train_steps(
    config: ConfigDict,
    workdir: Path,
    training: Training,
    state: TrainState,
    checkpoint: Checkpoint | None,
    guard: runtime.SignalGuard,
) -> TrainState:
    """Do the steps that are missing; the state after the last one."""
    num_steps, done, means = config.train.num_steps, 0, _Means()
    task = task_of(config)
    validates = config.checkpoint.get("best_metric") in task.metrics
    # Asked for now: a split that is missing should not be told after hours of training.
    for split in {config.eval.split, *(("validation",) if validates else ())}:
        scoring.source_of_split(config, split, None)
    source = _training_source(config)
    if config.data.get("features"):
        refuse_other_features(source, config, training)
    fingerprint = source.fingerprint() if isinstance(source, RandomSource) else None
    hosts.refuse_differences({"training samples": fingerprint})
    batches = training_batches(
        source,
        config.train.batch_size // jax.process_count(),
        config.seed,
        num_threads=config.train.get("num_threads", 1),
        num_workers=config.train.get("num_workers", 0),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    _tell_left_out(source, config)
    if checkpoint is not None:
        done = checkpoint.step
        _refuse_other_data(checkpoint, fingerprint, config)
        batches.set_state(checkpoint.progress["data"])
        means = _Means(**checkpoint.progress["means"])
        say(f"going on from step {done} of {num_steps}")
    if hosts.first():
        write_config(config, workdir)
    writer = CheckpointWriter(
        workdir,
        config,
        max_to_keep=config.checkpoint.max_to_keep,
        best_metric=config.checkpoint.get("best_metric"),
        best_mode=config.checkpoint.get("best_mode", "min"),
    )
    times = {"num_steps": num_steps, "log_every": config.train.log_every}
    log = RunLog(workdir, first_step=done, **times) if hosts.first() else SilentLog(**times)
    signals = hosts.StopTogether()
    root = jax.random.key(config.seed)
    # Of the step before, still on the device: read while the device works on the next one.
    waiting: tuple[int, dict[str, jax.Array]] | None = None

    def read(step: int, metrics: dict[str, jax.Array]) -> dict[str, float]:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        check_finite(step, values, writer.describe_last_good)
        means.add(values)
        return values

    def save(step: int, state: TrainState, position: Any, scores: dict[str, float]) -> None:
        progress = {"data": position, "means": means.state(), "source": fingerprint}
        progress["frozen_from"] = training.frozen_from
        writer.save(step, {"state": state}, progress, scores, {"frozen": training.frozen})

    def validation(params: Parameters) -> dict[str, float]:
        without_untrained = dataclasses.replace(training, state=None)
        with _evaluating(config, GO_ON):
            own, params = on_own_devices(without_untrained, params)
            return task.validation_scores(config, own, params)

    say("compiling the training step, once; later starts find it on the disk")
    has_flags = bool(config.train.get("xla_flags"))
    train_step = CompiledOnce(training.train_step, say, has_flags)
    in_memory = telling_out_of_memory(
        f"a training step of train.batch_size={config.train.batch_size}",
        advice_for_training(config),
        train_step,
    )
    closing = contextlib.closing
    with closing(log), closing(writer), closing(batches), guard.finishing_steps(), in_memory:
        for batch, position in _placed_ahead(
            batches, training, log.waits, config.train.get("match_paper", False)
        ):
            key = jax.random.fold_in(root, done)
            state, metrics = train_step(state, training.frozen, batch, key)
            log.waits.runs(metrics)
            done += 1
            if waiting is not None:
                log.record(waiting[0], read(*waiting))
            waiting = (done, metrics)
            received = signals.asked(guard.received)  # once: a signal may come at any time
            leaving = received is not None
            regular = done % config.checkpoint.every == 0 or done == num_steps
            if regular or leaving:
                row, scores, waiting = read(*waiting), {}, None
                if regular:
                    scores = means.take()
                    # Also when leaving: a resumed run has to choose the same best step.
                    if validates:
                        try:
                            scores |= validation(state.params)
                        except UserError as error:
                            # Of several processes this one may be alone with its trouble, and all have to come to a save.
                            if not hosts.several():
                                save(done, state, position, scores)
                            raise UserError(f"{error}; {writer.describe_last_good()}") from error
                        row |= {f"validation/{name}": scores[name] for name in task.metrics}
                log.record(done, row)
                save(done, state, position, scores)
            else:
                writer.poll()
            if leaving or done == num_steps:
                break
        writer.wait()
        # Since the last step asked, one may have come, and to one process alone.
        received = received or max(hosts.of_all(guard.received or 0)) or None
    if received is not None:
        name = signal.Signals(received).name
        where = writer.folder / str(done)
        raise runtime.Stopped(
            received,
            f"stopped by {name} after step {done} of {num_steps}, saved in {where}; the same command goes on from there",
        )
    return state


class _Means:
    """Means of the training metrics since the last regular checkpoint; part of a checkpoint."""

    def __init__(self, count: int = 0, sums: dict[str, float] | None = None):
        self.count, self.sums = count, dict(sums or {})

    def add(self, values: dict[str, float]) -> None:
        self.count += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def take(self) -> dict[str, float]:
        """The means; counting starts anew."""
        means = {name: total / self.count for name, total in self.sums.items()}
        self.count, self.sums = 0, {}
        return means

    def state(self) -> dict[str, Any]:
        return {"count": self.count, "sums": dict(self.sums)}


def _training_source(config: ConfigDict) -> Source:
    return build_dataset(config.data, "train", num_slots=config.model.slot_attention.num_slots)


def _tell_left_out(source: Source, config: ConfigDict) -> None:
    if isinstance(source, RandomSource) and (
        left_out := len(source) - len(set(map(int, source.epoch())))
    ):
        say(
            f"{left_out} of {len(source)} training samples are left out: they have fewer than data.num_frames="
            f"{config.data.num_frames} frames"
        )


def _refuse_other_data(checkpoint: Checkpoint, found: str | None, config: ConfigDict) -> None:
    """The folder may have moved since the checkpoint was saved; what it holds may not have changed."""
    before = checkpoint.progress.get("source")
    if before is not None and found != before:
        raise UserError(
            f"data.folder {config.data.get('folder')} holds other training samples than the run of {checkpoint.path} was "
            "trained on; give the same ones to go on, or another --workdir"
        )


def _placed_ahead(
    batches: Batches,
    training: Training,
    waits: DataWaits,
    match_paper: bool = False,
    ahead: int = 2,
) -> Iterator[tuple[dict[str, jax.Array], Any]]:
    """Batches on the device, put there while the steps before them run, each with the position after it.

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


def _config_of(workdir: Path) -> ConfigDict | None:
    """What a run in this workdir was started with, also where it has no checkpoint yet."""
    try:
        return from_json((workdir / CONFIG_FILE).read_text())
    except (OSError, ValueError):
        return None


def _refuse_other_config(found: ConfigDict | None, config: ConfigDict, workdir: Path) -> None:
    if found is not None and (different := differences(found, config)):
        raise UserError(
            f"workdir {workdir} holds a run of another config, which differs in {', '.join(different)}; "
            "use the same config to go on, or another --workdir"
        )


def write_config(config: ConfigDict, workdir: Path) -> None:
    with atomic_file(workdir / CONFIG_FILE) as temporary:
        temporary.write_text(to_json(config))


# ----------------------------------------------------------------------------------------------------- evaluation


def evaluate(
    workdir: Path, choose_config: Callable[[ConfigDict], ConfigDict] = lambda stored: stored
) -> dict[str, Any]:
    """Score a checkpoint of a workdir; needs nothing but the workdir.

    The newest sound checkpoint is scored, as after training; with `eval.checkpoint` "best", the best one kept.

    Args:
      choose_config: given the checkpoint's config, the one to evaluate with; it may differ in `eval`, `mesh` and
        `data.folder`.

    Returns:
      the content of `scores.json`.

    Raises:
      UserError: nothing to restore, or a config that differs where it matters.
    """
    checkpoint, config = restored(workdir, choose_config)
    if _wants_best(config):
        checkpoint = _best(workdir, config) or checkpoint
    say(f"evaluating {checkpoint.path}, step {checkpoint.step} of {config.train.num_steps}")
    task = task_of(config)
    with runtime.SignalGuard(), _evaluating(config, REPORT_AGAIN):
        training, _ = on_own_devices(_untrained(task.build(config)))
        frozen = restore_state({"frozen": training.frozen}, checkpoint, only="frozen/")["frozen"]
        training = dataclasses.replace(training, frozen=frozen)
        params = _params_of(checkpoint, training)
        scores = task.report(config, training, params, checkpoint.step, workdir, say)
    _tell_results(scores, workdir)
    return scores


def restored(
    workdir: Path, choose_config: Callable[[ConfigDict], ConfigDict]
) -> tuple[Checkpoint, ConfigDict]:
    """The newest sound checkpoint, and the config to look at it with; see `evaluate`."""
    checkpoint = restore_latest(workdir, warn=_warn)
    refuse_different("newest checkpoint that can be read", checkpoint)
    if checkpoint is None:
        found = f"no checkpoint found in {workdir / FOLDER}"
        if steps_found(workdir):
            found = f"every checkpoint in {workdir / FOLDER} is broken"
        raise UserError(
            f"nothing to restore: {found}; train first, or give the --workdir of a trained run"
        )
    config = choose_config(checkpoint.config)
    _agree(config)
    check(config, ("eval.batch_size",))
    _refuse_other_config(checkpoint.config, config, workdir)
    return checkpoint, config


def _params_of(checkpoint: Checkpoint, training: Training) -> Parameters:
    template = {"state": {"params": training.state.params}}
    return restore_state(template, checkpoint, only="state/params/")["state"]["params"]


def _wants_best(config: ConfigDict) -> bool:
    return config.eval.get("checkpoint") == "best"


def _best(workdir: Path, config: ConfigDict) -> Checkpoint | None:
    """The best checkpoint that is kept, by the metric saved with each; None where none can be used."""
    step = best_step(workdir, config.checkpoint.best_metric, config.checkpoint.best_mode)
    best = None
    if step is not None:
        try:
            best = read_checkpoint(workdir, step)
        except BrokenCheckpoint as reason:
            path = workdir / FOLDER / str(step)
            _warn(f"the best checkpoint {path} is not usable ({reason}); using the newest")
    refuse_different("best checkpoint that can be read", best)
    return best


def _tell_results(scores: dict[str, Any], workdir: Path) -> None:
    """The end of a run, on standard output: where things are, the score, what to do next."""
    if not hosts.first():
        return
    pictures = workdir / scoring.PICTURES_FOLDER
    print(f"""
{scores_table(scores)}

scores       {workdir / scoring.SCORES_FILE}
by sample    {workdir / scoring.SAMPLE_SCORES_FILE}
pictures     {pictures if pictures.exists() else "none"}
log          {workdir / LOG_FILE}
checkpoints  {workdir / FOLDER}
curves       tensorboard --logdir {workdir / EVENTS_FOLDER}
evaluate     python main.py --mode=evaluate --workdir={workdir}

{headline(scores)} on the {scores["split"]} split after {scores["step"]} steps""")


def _warn(text: str) -> None:
    """In every process: what one cannot read another may."""
    print(f"warning: {text}", file=sys.stderr, flush=True)
