"""Score given weights on a split: during training, after it, or without training."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

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
from smoothsa_jax.evaluation.pictures import animation, contact_sheet
from smoothsa_jax.evaluation.sample_scores import Scored, scored_by_seeds, write_sample_scores
from smoothsa_jax.evaluation.scores import (
    build_scores,
    headline,
    scores_table,
    write_scores,
)
from smoothsa_jax.evaluation.split import Evaluation, evaluate, whole_split
from smoothsa_jax.inputs.build import build_dataset
from smoothsa_jax.inputs.loader import Source, evaluation_batches
from smoothsa_jax.models.build import cold_start
from smoothsa_jax.models.parameters import Parameters
from smoothsa_jax.tasks.checks import agree, check
from smoothsa_jax.training import signals
from smoothsa_jax.training.logging import EVENTS_FOLDER, LOG_FILE, say, warn
from smoothsa_jax.training.step import Training, build_training

SCORES_FILE = "scores.json"
SAMPLE_SCORES_FILE = "scores.csv"
PICTURES_FOLDER = "pictures"
WHOLE_CLIPS = -1  # value of eval.num_frames: all frames of each clip
# Advice if scoring runs out of memory, after training and during training.
REPORT_AGAIN = "use --mode=evaluate with {}, or more devices; the weights are saved"
GO_ON = "run the same command with {}, or more devices"


# ----------------------------------------------------------------------------------- a workdir


def evaluate_run(
    workdir: Path, choose_config: Callable[[ConfigDict], ConfigDict] = lambda stored: stored
) -> dict[str, Any]:
    """Score a checkpoint of a workdir, from the workdir alone.

    The newest intact checkpoint is scored, as after training. If `eval.checkpoint` is "best", it is
    the best checkpoint kept.

    Args:
        workdir: the run's folder.
        choose_config: given the checkpoint's config, returns the config to evaluate with, which may
            differ in `eval`, `mesh` and `data.folder`.

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
        training, _ = on_own_devices(untrained(build_training(config)))
        frozen = restore_state({"frozen": training.frozen}, checkpoint, only="frozen/")["frozen"]
        training = dataclasses.replace(training, frozen=frozen)
        params = params_of(checkpoint, training)
        scores = report(config, training, params, checkpoint.step, workdir)
    print_results(config.title, scores, workdir)
    return scores


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
    """Return the best checkpoint kept, by the saved metric; None if it cannot be used."""
    step = best_step(workdir, config.checkpoint.best_metric, config.checkpoint.best_mode)
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
    state = training.state.replace(opt_state=(), averages={})
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
    config: ConfigDict, training: Training, params: Parameters
) -> dict[str, float]:
    """Score part of the validation split with the first evaluation seed, to choose a checkpoint.

    Returns:
        The mean of each metric.
    """
    samples, seeds = config.eval.validation_samples, tuple(config.eval.seeds)[:1]
    found = evaluate_split(config, training, params, "validation", samples, seeds)
    means = training.task.evaluator.means(found.scores)
    return {name: float(value[0]) for name, value in means.items()}


def report(
    config: ConfigDict, training: Training, params: Parameters, step: int, workdir: Path
) -> dict[str, Any]:
    """Score weights on `eval.split`; write `scores.json`, `scores.csv` and pictures.

    Args:
        config: the config of the run.
        training: the training of this config; its initial state is the untrained baseline, which
            is left out if `weights` fills trained arrays from a source.
        params: the trained parameters.
        step: number of training steps done.
        workdir: the run's folder.

    Returns:
        The content of `scores.json`.

    Raises:
        UserError: a file cannot be written, or the data do not fit the model.
    """
    settings, task = config.eval, training.task
    split, samples, seeds = settings.split, settings.num_samples, tuple(settings.seeds)
    say(f"scoring on the {split} split, seeds {', '.join(map(str, seeds))}")
    score = lambda params, *rest: evaluate_split(config, training, params, split, samples, *rest)  # noqa: E731
    found = score(params, seeds, settings.match_paper, settings.num_pictures)
    rows = scored_by_seeds(config.title, "default", seeds, found.scores)
    if found.paper_scores is not None:
        rows += scored_by_seeds(config.title, "match_paper", seeds, found.paper_scores)
    baselines = {}
    if settings.baselines:
        say("scoring the baselines")
        first = training.state.params
        # Neither a resumed run nor an evaluation has the first values that came from elsewhere.
        if elsewhere := start_elsewhere(config.weights, first):
            say(without_untrained(task.untrained, elsewhere))
            first = params
        else:
            found_first = score(first, seeds[:1])
            baselines[task.untrained] = {name: x[0] for name, x in found_first.scores.items()}
        baselines |= _baselines(config, training, first, samples)
        rows += [Scored(name, "default", seeds[0], x) for name, x in baselines.items()]
    scores = build_scores(
        found.scores,
        baselines,
        task.evaluator.means,
        split=split,
        protocol=protocol_of(config, training, len(found.names)),
        step=step,
        paper_per_sample=found.paper_scores,
    )
    if not hosts.is_primary():
        return scores
    with _writing_to(workdir):
        write_sample_scores(workdir / SAMPLE_SCORES_FILE, found.names, rows)
        write_scores(workdir / SCORES_FILE, scores)
        for number, sample in enumerate(found.samples):
            clip = (sample["video"], sample["segmentations"], sample["masks"])
            contact_sheet(*clip, workdir / PICTURES_FOLDER / f"{split}_{number:02d}.png")
            if len(sample["video"]) > 1:
                animation(*clip, workdir / PICTURES_FOLDER / f"{split}_{number:02d}.gif")
    return scores


def evaluate_split(
    config: ConfigDict,
    training: Training,
    params: Parameters,
    split: str,
    num_samples: int | None,
    seeds: tuple[int, ...],
    match_paper: bool = False,
    keep_samples: int = 0,
) -> Evaluation:
    """Score parameters on a split, or on its first samples; see `evaluation.split.evaluate`."""
    params, frozen = training.cast(params), training.cast_frozen

    def predict(batch: dict[str, Any], key: jax.Array, match_paper: bool) -> dict[str, jax.Array]:
        return training.predict(params, frozen, training.place(batch), key, match_paper)

    source = source_of_split(config, training.task.slot_model.num_slots, split, num_samples)
    own = evaluate(
        predict,
        batches_of(config, source),
        training.task.evaluator,
        seeds,
        match_paper=match_paper,
        keep_samples=keep_samples,
    )
    found = whole_split(hosts.gather(own), config.eval.batch_size, len(source))
    return dataclasses.replace(found, samples=found.samples[:keep_samples])


def without_untrained(what: str, elsewhere: list[str]) -> str:
    """Say why something of the first parameters is left out.

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
    config: ConfigDict, training: Training, params: Parameters, num_samples: int | None
) -> dict[str, dict[str, np.ndarray]]:
    num_slots = training.task.slot_model.num_slots
    source = source_of_split(config, num_slots, config.eval.split, num_samples)
    extract, arrays = jax.jit(training.features), (params, training.frozen)
    features = lambda batch: extract(*arrays, training.place(batch)["video"])  # noqa: E731
    own = training.task.baselines(lambda: batches_of(config, source), features)
    return whole_split(hosts.gather(own), config.eval.batch_size, len(source))


def protocol_of(config: ConfigDict, training: Training, num_samples: int) -> dict[str, Any]:
    """Return how a split is scored, for `scores.json`."""
    settings = config.eval
    return {
        "seeds": tuple(settings.seeds),
        "num_samples": num_samples,
        "num_frames": settings.num_frames,
        "batch_size": settings.batch_size,
        "queries": cold_start(training.task.slot_model),
        "match_paper": settings.match_paper,
        **training.task.evaluator.protocol,
    }


def source_of_split(
    config: ConfigDict, num_slots: int, split: str, num_samples: int | None
) -> Source:
    """Return the samples that a split is scored on.

    Raises:
        UserError: there is no such split, or an option does not fit.
    """
    # Settings for training only do not apply to evaluation.
    for_training = ("num_samples", "keep", "features")
    data = {key: value for key, value in config.data.items() if key not in for_training}
    options = {"num_slots": num_slots, "num_samples": num_samples}
    if (frames := config.eval.num_frames) is not None:
        options["num_frames"] = None if frames == WHOLE_CLIPS else frames
    return build_dataset(data, split, **options)


def batches_of(config: ConfigDict, source: Source) -> Iterator[dict[str, np.ndarray]]:
    """Return the batches of a split that this process scores."""
    return evaluation_batches(
        source,
        config.eval.batch_size,
        fill_lengths=config.eval.num_frames == WHOLE_CLIPS,
        num_threads=config.train.num_threads,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


@contextlib.contextmanager
def _writing_to(workdir: Path) -> Iterator[None]:
    """Turn an error of the file system, such as a full disk, into a one-line error.

    Raises:
        UserError: the scores cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"scores cannot be written to {workdir}: {error.strerror}; fix that and use "
            "--mode=evaluate"
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
evaluate     python main.py --mode=evaluate --workdir={workdir}

{headline(scores)} on the {scores["split"]} split after {scores["step"]} steps""")
