"""Score given weights on a split: during training, after it, or without training."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from smoothsa_jax.checkout import as_started
from smoothsa_jax.checkpoints.read import (
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
from smoothsa_jax.checkpoints.sources import start_elsewhere
from smoothsa_jax.checkpoints.workdir import refuse_other_config
from smoothsa_jax.devices import hosts
from smoothsa_jax.devices.compiling import telling_out_of_memory
from smoothsa_jax.devices.host_arrays import copied, on_own_devices
from smoothsa_jax.devices.mesh_shape import mesh_shape
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.losses import LossEvaluator
from smoothsa_jax.evaluation.pictures import (
    animation,
    contact_sheet,
    decoded_sheet,
    scene_sheet,
)
from smoothsa_jax.evaluation.sample_scores import Scored, scored_by_seeds, write_sample_scores
from smoothsa_jax.evaluation.scores import (
    LOSS,
    build_scores,
    headline,
    scores_table,
    write_scores,
)
from smoothsa_jax.evaluation.split import Evaluation, Evaluator, evaluate, whole_split
from smoothsa_jax.inputs.build import build_dataset, is_labelled, long_enough
from smoothsa_jax.inputs.found import is_stored
from smoothsa_jax.inputs.loader import Source, evaluation_batches
from smoothsa_jax.inputs.records import NoSuchSplit
from smoothsa_jax.losses.build import build_losses
from smoothsa_jax.models.build import cold_start
from smoothsa_jax.models.parameters import Parameters
from smoothsa_jax.tasks.build import build_task
from smoothsa_jax.tasks.checks import agree, check
from smoothsa_jax.tasks.stored import refuse_other_slots
from smoothsa_jax.tasks.task import Task
from smoothsa_jax.training import signals
from smoothsa_jax.training.logging import EVENTS_FOLDER, LOG_FILE, say, warn
from smoothsa_jax.training.step import Training, build_training

SCORES_FILE = "scores.json"
SAMPLE_SCORES_FILE = "scores.csv"
PICTURES_FOLDER = "pictures"
WHOLE_CLIPS = -1  # value of eval.num_frames: all frames of each clip; -n: at most the first n
# Metric and mode of the best checkpoint where the validation split has no labels, and without one.
BY_LOSS, BY_TRAINING_LOSS = (f"validation/{LOSS}", "min"), (LOSS, "min")
# Whose weights a pass scores, besides those of a checkpoint, which are named by its step.
TRAINED, FIRST = "trained", "first"
# Advice if scoring runs out of memory, after training and during training.
REPORT_AGAIN = "use --mode=evaluate with {}, or more devices; the weights are saved"
GO_ON = "run the same command with {}, or more devices"


@dataclasses.dataclass(frozen=True)
class Pass:
    """One pass over a split; processes that run together, or workers elsewhere, share it.

    Attributes:
        split: its name.
        num_samples: of its first samples; None: of all.
        seeds: see `evaluation.split.evaluate`, also for the next two.
        match_paper: also score under the paper's protocol.
        keep_samples: number of first samples to keep for pictures.
        evaluator: in place of the task's; None: the task's.
        baselines: score the baselines, in place of the model.
    """

    split: str
    num_samples: int | None
    seeds: tuple[int, ...] = ()
    match_paper: bool = False
    keep_samples: int = 0
    evaluator: Evaluator | None = None
    baselines: bool = False


@dataclasses.dataclass(frozen=True)
class Share:
    """What one process finds in its batches of a pass; `whole_split` merges those of all.

    Attributes:
        found: values by sample.
        num_samples: of the whole pass.
        pictures: of a split without labels, whose pictures are a pass of their own; None: none.
    """

    found: Any
    num_samples: int
    pictures: Evaluation | None = None


# (weights, pass) -> the shares of all workers, in order, computed elsewhere. The weights are
# TRAINED, FIRST, or the step of a checkpoint.
Workers = Callable[[str | int, Pass], Sequence[Share]]


# ----------------------------------------------------------------------------------- a workdir


def evaluate_run(
    workdir: Path,
    choose_config: Callable[[ConfigDict], ConfigDict] = lambda stored: stored,
    workers_of: Callable[[ConfigDict, Task, Checkpoint], Workers] | None = None,
) -> dict[str, Any]:
    """Score a checkpoint of a workdir, from the workdir alone.

    The newest intact checkpoint is scored, as after training. If `eval.checkpoint` is "best", it is
    the best checkpoint kept.

    Args:
        workdir: the run's folder.
        choose_config: given the checkpoint's config, returns the config to evaluate with, which may
            differ in `eval`, `mesh` and `data.folder`.
        workers_of: returns who scores elsewhere; None: this process, and those that run with it.

    Returns:
        The content of `scores.json`.

    Raises:
        UserError: there is nothing to restore, or the config differs in other keys.
    """
    checkpoint, config = restored(workdir, choose_config)
    if wants_best(config):
        checkpoint = best_checkpoint(workdir, config) or checkpoint
    say(f"evaluating {checkpoint.path}, step {checkpoint.step} of {config.train.num_steps}")
    with signals.SignalGuard(), evaluating(config, REPORT_AGAIN):
        training, params = to_score(config, checkpoint)
        if _reads_slots(config, training.task, config.eval.split):  # `data.folder` may be another
            source = source_of_split(
                config, slots_of(config, training.task), config.eval.split, config.eval.num_samples
            )
            refuse_other_slots(source, config, training.frozen, (config.eval.split,))
        workers = None if workers_of is None else workers_of(config, training.task, checkpoint)
        scores = report(config, training, params, checkpoint.step, workdir, workers)
    print_results(config.title, scores, workdir)
    return scores


def to_score(config: ConfigDict, checkpoint: Checkpoint) -> tuple[Training, Parameters]:
    """Return the training with the frozen arrays of a checkpoint, and its trained arrays.

    The state of the training has the first values of the trained arrays.
    """
    training, _ = on_own_devices(untrained(build_training(config)))
    frozen = restore_state({"frozen": training.frozen}, checkpoint, only="frozen/")["frozen"]
    training = dataclasses.replace(training, frozen=frozen)
    return training, params_of(checkpoint, training)


def restored(
    workdir: Path, choose_config: Callable[[ConfigDict], ConfigDict]
) -> tuple[Checkpoint, ConfigDict]:
    """Return the newest intact checkpoint and the config to use it with; see `evaluate_run`.

    Raises:
        UserError: there is nothing to restore, or the config differs where it may not.
    """
    checkpoint = restore_latest(workdir, warn=warn)
    refuse_different("newest checkpoint that can be read", checkpoint)
    if checkpoint is None:
        found = f"no checkpoint found in {workdir / FOLDER}"
        if steps_found(workdir):
            found = f"every checkpoint in {workdir / FOLDER} is broken"
        raise UserError(
            f"nothing to restore: {found}; train first, or give the --workdir of a trained run"
        )
    config = choose_config(checkpoint.config)
    agree(config)
    check(config, ("eval.batch_size",))
    refuse_other_config(checkpoint.config, config, workdir)
    return checkpoint, config


def params_of(checkpoint: Checkpoint, training: Training) -> Parameters:
    """Return a checkpoint's trained arrays, with the sharding of the training's."""
    template = {"state": {"params": training.state.params}}
    return restore_state(template, checkpoint, only="state/params/")["state"]["params"]


def wants_best(config: ConfigDict) -> bool:
    """Tell whether to score the best checkpoint instead of the newest."""
    return config.eval.checkpoint == "best"


def best_checkpoint(workdir: Path, config: ConfigDict) -> Checkpoint | None:
    """Return the best checkpoint kept, by the saved metric; None if it cannot be used.

    Checkpoints that were validated without labels, or not at all, have no scores and are chosen by
    their losses.
    """
    chosen = (config.checkpoint.best_metric, config.checkpoint.best_mode)
    steps = (best_step(workdir, *by) for by in (chosen, BY_LOSS, BY_TRAINING_LOSS))
    step = next((step for step in steps if step is not None), None)
    best = None
    if step is not None:
        try:
            best = read_checkpoint(workdir, step)
        except BrokenCheckpoint as reason:
            path = workdir / FOLDER / str(step)
            warn(f"the best checkpoint {path} is not usable ({reason}); using the newest")
    refuse_different("best checkpoint that can be read", best)
    return best


def untrained(training: Training) -> Training:
    """Return the training with only a copy of the initial parameters in its state.

    Scoring needs them later, but the first training step donates the state.
    """
    state = training.state.replace(opt_state=(), buffers={}, averages={})
    return dataclasses.replace(training, state=copied(state))


def evaluating(config: ConfigDict, advice: str) -> contextlib.AbstractContextManager[None]:
    """Turn an out-of-memory error while scoring into a one-line error.

    Args:
        config: the config of the run.
        advice: what to do then, with a placeholder for the option that saves memory.

    Raises:
        UserError: a device is out of memory.
    """
    batch = config.eval.batch_size
    mesh = mesh_shape(config.mesh.data, config.mesh.fsdp, len(jax.devices()))
    devices = math.prod(mesh) // jax.process_count()
    smaller = batch // 2 // devices * devices
    option = f"--config.eval.batch_size={smaller}" if smaller else "fewer eval.num_frames"
    return telling_out_of_memory(
        f"scoring eval.batch_size={batch} samples at a time", advice.format(option)
    )


# ------------------------------------------------------------------------------------- scoring


def validation_scores(
    config: ConfigDict, training: Training, params: Parameters, workdir: Path
) -> dict[str, float]:
    """Score part of the validation split with the first evaluation seed, to choose a checkpoint.

    Without labels, pictures are drawn too: they are the better half of what there is to see.

    Returns:
        The mean of each metric; of each loss, if the split has no labels.

    Raises:
        UserError: a picture cannot be written, or the data do not fit the model.
    """
    samples, seeds = config.eval.validation_samples, tuple(config.eval.seeds)[:1]
    evaluator = evaluator_of(config, training.task, "validation")
    labelled = evaluator is training.task.evaluator
    shown = 0 if labelled else min(samples, config.eval.num_pictures)
    found = evaluate_split(
        config, training, params, "validation", samples, seeds, keep_samples=shown
    )
    if hosts.is_primary():
        with _writing_to(workdir, "run the same command to resume"):
            _draw(found.samples, labelled, "validation", workdir)
    return {name: float(value[0]) for name, value in evaluator.means(found.scores).items()}


def evaluator_of(config: ConfigDict, task: Task, split: str) -> Evaluator:
    """Return how a split is scored: as the task says, or by its losses if it has no labels.

    Raises:
        UserError: there is no such split.
    """
    source = source_of_split(config, slots_of(config, task), split, None)
    if is_labelled(source) or not getattr(task.evaluator, "needs_labels", True):
        return task.evaluator
    return LossEvaluator(build_losses(config.losses).terms)


def report(
    config: ConfigDict,
    training: Training,
    params: Parameters,
    step: int,
    workdir: Path,
    workers: Workers | None = None,
) -> dict[str, Any]:
    """Score weights on `eval.split`; write `scores.json`, `scores.csv` and pictures.

    Args:
        config: the config of the run.
        training: the training of this config; its initial state is the untrained baseline, which
            is left out if `weights` fills trained arrays from a source.
        params: the trained parameters.
        step: number of training steps done.
        workdir: the run's folder.
        workers: who scores elsewhere; None: this process, and those that run with it.

    Returns:
        The content of `scores.json`.

    Raises:
        UserError: a file cannot be written, or the data do not fit the model.
    """
    settings, task = config.eval, training.task
    split, samples, seeds = settings.split, settings.num_samples, tuple(settings.seeds)
    say(f"scoring on the {split} split, seeds {', '.join(map(str, seeds))}")
    evaluator = evaluator_of(config, task, split)
    labelled = evaluator is task.evaluator
    if not labelled:
        say(f"the {split} split has no labels: its losses and pictures stand in for scores")
    fitted = None
    if getattr(evaluator, "fits_on_validation", False) and split != "validation":
        evaluator = fitted = _fitted(config, training, evaluator, params, seeds, workers)

    def score(weights: str, params: Parameters, *rest: Any) -> Evaluation:
        return evaluate_split(
            config, training, params, split, samples, *rest,
            evaluator=fitted, workers=_of(workers, weights),
        )  # fmt: skip

    found = score(TRAINED, params, seeds, settings.match_paper, settings.num_pictures)
    protocol = dict(protocol_of(config, training, evaluator, len(found.names)))
    if found.paper_scores is not None and getattr(evaluator, "best_of_paper", None):
        mine = step, found.paper_scores
        best, of_paper = _best_of_paper(config, training, evaluator, mine, workdir, workers)
        found = dataclasses.replace(found, paper_scores=of_paper)
        protocol["match_paper_step"] = best
    rows = scored_by_seeds(config.title, "default", seeds, found.scores)
    if found.paper_scores is not None:
        rows += scored_by_seeds(config.title, "match_paper", seeds, found.paper_scores)
    baselines = {row: {name: x[0] for name, x in own.items()} for row, own in found.rows.items()}
    if settings.baselines:
        say("scoring the baselines")
        whose, first = FIRST, training.state.params
        # Neither a resumed run nor an evaluation has the first values that came from elsewhere.
        if elsewhere := start_elsewhere(config.weights, first):
            say(without_untrained(task.untrained, elsewhere))
            whose, first = TRAINED, params
        else:
            found_first = score(FIRST, first, seeds[:1])
            baselines[task.untrained] = {name: x[0] for name, x in found_first.scores.items()}
        if labelled:
            baselines |= _baselines(config, training, first, samples, _of(workers, whose))
    rows += [Scored(name, "default", seeds[0], x) for name, x in baselines.items()]
    scores = build_scores(
        found.scores,
        baselines,
        evaluator.means,
        split=split,
        protocol=protocol,
        step=step,
        paper_per_sample=found.paper_scores,
    )
    if not hosts.is_primary():
        return scores
    with _writing_to(workdir, "use --mode=evaluate"):
        write_sample_scores(workdir / SAMPLE_SCORES_FILE, found.names, rows)
        write_scores(workdir / SCORES_FILE, scores)
        _draw(found.samples, labelled, split, workdir)
    return scores


def _of(workers: Workers | None, weights: str | int) -> Callable[[Pass], Sequence[Share]] | None:
    """Return the workers that score these weights."""
    return None if workers is None else lambda wanted: workers(weights, wanted)


def _fitted(
    config: ConfigDict,
    training: Training,
    evaluator: Evaluator,
    params: Parameters,
    seeds: tuple[int, ...],
    workers: Workers | None,
) -> Evaluator:
    """Return an evaluator with what it chooses on the whole validation split."""
    of_trained = _of(workers, TRAINED)
    try:
        found = evaluate_split(
            config, training, params, "validation", None, seeds, workers=of_trained
        )
    except NoSuchSplit:
        say("there is no validation split, so that nothing is chosen on it for scoring")
        return evaluator
    return evaluator.fitted(found.scores, found.rows)


def _best_of_paper(
    config: ConfigDict,
    training: Training,
    evaluator: Evaluator,
    scored: tuple[int, dict[str, np.ndarray]],
    workdir: Path,
    workers: Workers | None,
) -> tuple[int, dict[str, np.ndarray]]:
    """Return the checkpoint that is best on the scored split, and its values.

    Args:
        evaluator: names the metric by which it is best.
        scored: the step that was scored, and its values.
        workdir: has the other checkpoints.
        workers: who scores them elsewhere.
    """
    settings = config.eval
    every = {scored[0]: scored[1]}
    for step in steps_found(workdir):
        if step in every:
            continue
        try:
            params = params_of(read_checkpoint(workdir, step), training)
        except BrokenCheckpoint as reason:
            warn(f"checkpoint {step} is not usable ({reason}) and is left out of match_paper")
            continue
        say(f"scoring checkpoint {step} too, as match_paper has the best of all")
        arguments = (settings.split, settings.num_samples, tuple(settings.seeds), True)
        mine = _of(workers, step)
        found = evaluate_split(config, training, params, *arguments, workers=mine).paper_scores
        assert found is not None, "scored with match_paper"
        every[step] = found
    metric = evaluator.best_of_paper
    best = max(every, key=lambda step: (evaluator.means(every[step])[metric].mean(), step))
    return best, every[best]


def _draw(
    samples: Sequence[dict[str, np.ndarray]], labelled: bool, split: str, workdir: Path
) -> None:
    """Draw each sample's frames, true segments if it has labels, and masks; a scene's views."""
    for number, sample in enumerate(samples):
        if "decoded" in sample:
            decoded_sheet(sample, workdir / PICTURES_FOLDER / f"{split}_{number:02d}.png")
            continue
        if "rendered" in sample:
            sheet = workdir / PICTURES_FOLDER / f"{split}_{number:02d}.png"
            scene_sheet(sample, sheet, labelled=labelled)
            continue
        true = sample["segmentations"] if labelled else None
        clip = (sample["video"], true, sample["masks"])
        contact_sheet(*clip, workdir / PICTURES_FOLDER / f"{split}_{number:02d}.png")
        if len(sample["video"]) > 1:
            animation(*clip, workdir / PICTURES_FOLDER / f"{split}_{number:02d}.gif")


def evaluate_split(
    config: ConfigDict,
    training: Training,
    params: Parameters,
    split: str,
    num_samples: int | None,
    seeds: tuple[int, ...],
    match_paper: bool = False,
    keep_samples: int = 0,
    evaluator: Evaluator | None = None,
    workers: Callable[[Pass], Sequence[Share]] | None = None,
) -> Evaluation:
    """Score parameters on a split, or on its first samples; see `evaluation.split.evaluate`.

    A split without labels is scored by its losses; masks are predicted for the pictures only. An
    `evaluator` may take the place of the task's, of which it has the outputs. `workers` may do it
    elsewhere, in place of this process and those that run with it.
    """
    wanted = Pass(split, num_samples, tuple(seeds), match_paper, keep_samples, evaluator)
    shares = _shares(config, training, params, wanted, workers)
    found = _whole(config, [share.found for share in shares], shares[0].num_samples)
    if shares[0].pictures is None:
        return dataclasses.replace(found, samples=found.samples[:keep_samples])
    shown = _shown(wanted)
    pictures = _whole(config, [share.pictures for share in shares], shown)
    return dataclasses.replace(found, samples=pictures.samples[:shown])


def _shares(
    config: ConfigDict,
    training: Training,
    params: Parameters,
    wanted: Pass,
    workers: Callable[[Pass], Sequence[Share]] | None,
) -> Sequence[Share]:
    """Have a pass scored by workers, or by this process and those that run with it."""
    if workers is not None:
        return workers(wanted)
    index, count = jax.process_index(), jax.process_count()
    return hosts.gather(share_of(config, training, params, wanted, index, count))


def share_of(
    config: ConfigDict,
    training: Training,
    params: Parameters,
    wanted: Pass,
    index: int,
    count: int,
) -> Share:
    """Score a share of a pass: every `count`-th batch of the split, from batch `index` on.

    Keys of random numbers are those of batches in the whole split, so that sharing changes nothing.
    """
    num_slots = slots_of(config, training.task)
    split, num_samples = wanted.split, wanted.num_samples
    if wanted.baselines:
        source = source_of_split(config, num_slots, split, num_samples)
        extract, arrays = jax.jit(training.features), (params, training.frozen)
        features = lambda batch: extract(*arrays, training.place(batch)["video"])  # noqa: E731
        batches = lambda: batches_of(config, source, None, index, count)  # noqa: E731
        return Share(training.task.baselines(batches, features), len(source))
    params, frozen = training.cast(params), training.cast_frozen

    def predict(batch: dict[str, Any], key: jax.Array, match_paper: bool) -> dict[str, jax.Array]:
        return training.predict(params, frozen, training.place(batch), key, match_paper)

    def losses(batch: dict[str, Any], key: jax.Array, match_paper: bool) -> dict[str, jax.Array]:
        del match_paper
        return training.losses(params, frozen, training.place(batch), key)

    def scored(
        source: Source, outputs_of: Callable, evaluator: Evaluator, may_vary: bool, **options: Any
    ) -> Evaluation:
        batches = batches_of(config, source, may_vary, index, count)
        return evaluate(outputs_of, batches, evaluator, wanted.seeds, **options)

    of_split = evaluator_of(config, training.task, split)
    if of_split is training.task.evaluator:
        evaluator = of_split if wanted.evaluator is None else wanted.evaluator
        source = source_of_split(config, num_slots, split, num_samples)
        options = {"match_paper": wanted.match_paper, "keep_samples": wanted.keep_samples}
        return Share(scored(source, predict, evaluator, _vary(config), **options), len(source))
    source = training_clips(config, training.task.slot_model.num_slots, split, num_samples)
    found, shown = scored(source, losses, of_split, may_vary=False), _shown(wanted)
    if not shown:
        return Share(found, len(source))
    of_pictures = source_of_split(config, num_slots, split, shown)
    pictures = scored(
        of_pictures, predict, training.task.evaluator, _vary(config), keep_samples=shown
    )
    return Share(found, len(source), pictures)


def _shown(wanted: Pass) -> int:
    """Return how many samples of a pass are kept for pictures."""
    return min(wanted.keep_samples, wanted.num_samples or wanted.keep_samples)


def _whole(config: ConfigDict, parts: Sequence[Any], num_samples: int) -> Any:
    return whole_split(parts, config.eval.batch_size, num_samples)


def without_untrained(what: str, elsewhere: list[str]) -> str:
    """Explain why a result that needs the initial parameters is left out.

    Args:
        what: what is left out.
        elsewhere: what `checkpoints.sources.start_elsewhere` returned.
    """
    more = f" and {len(elsewhere) - 1} more" if len(elsewhere) > 1 else ""
    return (
        f"{what} is left out: the training of {elsewhere[0]}{more} starts from a source in "
        "`weights`, so there is no untrained model"
    )


def _baselines(
    config: ConfigDict,
    training: Training,
    params: Parameters,
    num_samples: int | None,
    workers: Callable[[Pass], Sequence[Share]] | None,
) -> dict[str, dict[str, np.ndarray]]:
    wanted = Pass(config.eval.split, num_samples, baselines=True)
    shares = _shares(config, training, params, wanted, workers)
    return _whole(config, [share.found for share in shares], shares[0].num_samples)


def protocol_of(
    config: ConfigDict, training: Training, evaluator: Evaluator, num_samples: int
) -> dict[str, Any]:
    """Return how a split is scored, for `scores.json`."""
    settings, slot_model, of_slots = config.eval, training.task.slot_model, {}
    if "initializer" in slot_model:
        of_slots = {
            "queries": cold_start(slot_model),
            "num_slots": slots_of(config, training.task),
        }
    if settings.iterations is not None:
        of_slots["iterations"] = settings.iterations
    last_entry = config.data.get("last_entry")
    return {
        "seeds": tuple(settings.seeds),
        "num_samples": num_samples,
        "num_frames": settings.num_frames,
        "windows": settings.windows,
        "window_rest": settings.window_rest,
        **({} if last_entry is None else {"last_entry": last_entry}),
        "batch_size": settings.batch_size,
        **of_slots,
        "match_paper": settings.match_paper,
        **evaluator.protocol,
    }


def slots_of(config: ConfigDict, task: Task) -> int:
    """Return the number of slots N at evaluation."""
    return config.eval.num_slots or task.slot_model.num_slots


def source_of_split(
    config: ConfigDict, num_slots: int, split: str, num_samples: int | None
) -> Source:
    """Return the samples that a split is scored on.

    Without labels, those that are shorter than a training clip are left out.

    Raises:
        UserError: there is no such split, or an option does not fit.
    """
    task = build_task(config)
    options = {"num_slots": num_slots, "may_be_shorter": _vary(config), "reads": task.inputs}
    if (frames := config.eval.num_frames) is not None:
        options["num_frames"] = None if frames == WHOLE_CLIPS else abs(frames)
    if config.eval.windows is not None:
        options |= {"windows": config.eval.windows, "window_rest": config.eval.window_rest}
    data = _without_training(config)
    if _reads_slots(config, task, split):
        data["slots"] = config.data.slots
    source = build_dataset(data, split, num_samples=num_samples, scores=True, **options)
    if hasattr(task, "check_source"):
        task.check_source(source)
    if is_labelled(source):
        return source
    # The same samples as their losses are of: counted after short ones are left out.
    source = build_dataset(data, split, num_samples=None, **options)
    return long_enough(source, _training_frames(config), num_samples)


def _reads_slots(config: ConfigDict, task: Task, split: str) -> bool:
    """Tell whether the stored slots of a split are what it is scored on."""
    return split in getattr(task, "stored_splits", ()) and is_stored(config.data, split)


def training_clips(
    config: ConfigDict, num_slots: int, split: str, num_samples: int | None
) -> Source:
    """Return a split's samples as clips of as many frames as in training, the first of each.

    Shorter ones are left out, as in training.

    Raises:
        UserError: there is no such split, or no clip is long enough.
    """
    options = {"num_slots": num_slots, "num_samples": None, "may_be_shorter": True}
    options["reads"] = build_task(config).inputs
    if config.data.get("last_entry") is not None:  # which restricts windows alone
        options |= {"windows": _training_frames(config), "window_rest": "drop"}
    source = build_dataset(_without_training(config), split, **options)
    return long_enough(source, _training_frames(config), num_samples)


def _without_training(config: ConfigDict) -> dict[str, Any]:
    """Return the data's settings without those that do not apply to evaluation."""
    for_training = ("num_samples", "keep", "features", "slots", "cut_frames")
    return {key: value for key, value in config.data.items() if key not in for_training}


def _training_frames(config: ConfigDict) -> int:
    return config.data.get("num_frames") or 1


def _vary(config: ConfigDict) -> bool:
    """Tell whether the clips that are scored may differ in length."""
    return (config.eval.num_frames or 1) < 0


def batches_of(
    config: ConfigDict,
    source: Source,
    may_vary: bool | None = None,
    index: int | None = None,
    count: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Return the batches of a split that this process scores.

    Args:
        config: the config of the run.
        source: the samples.
        may_vary: whether clips may differ in length; None: as `eval.num_frames` says.
        index: of the share; None: this process's.
        count: of all shares; None: that of processes.
    """
    return evaluation_batches(
        source,
        config.eval.batch_size,
        fill_lengths=_vary(config) if may_vary is None else may_vary,
        num_threads=config.train.num_threads,
        process_index=jax.process_index() if index is None else index,
        process_count=jax.process_count() if count is None else count,
    )


@contextlib.contextmanager
def _writing_to(workdir: Path, advice: str) -> Iterator[None]:
    """Turn an error of the file system, such as a full disk, into a one-line error.

    Args:
        workdir: the run's folder.
        advice: what to do once the cause is fixed.

    Raises:
        UserError: the scores cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"scores and pictures cannot be written to {workdir}: {error.strerror or error}; fix "
            f"that, then {advice}"
        ) from error


def print_results(title: str, scores: dict[str, Any], workdir: Path) -> None:
    """Print a summary of a run: the scores, where its files are, and what to do next."""
    if not hosts.is_primary():
        return
    pictures = workdir / PICTURES_FOLDER
    print(f"""
{scores_table(title, scores)}

scores       {workdir / SCORES_FILE}
by sample    {workdir / SAMPLE_SCORES_FILE}
pictures     {pictures if pictures.exists() else "none"}
log          {workdir / LOG_FILE}
checkpoints  {workdir / FOLDER}
curves       tensorboard --logdir {workdir / EVENTS_FOLDER}
evaluate     {as_started("python main.py")} --mode=evaluate --workdir={workdir}

{headline(scores)} on the {scores["split"]} split after {scores["step"]} steps""")
