"""A run's checkpoint scored, without training."""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
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
from smoothsa_jax.checkpoints.workdir import refuse_other_config
from smoothsa_jax.config.schema import mesh_shape
from smoothsa_jax.devices import hosts
from smoothsa_jax.devices.compiling import telling_out_of_memory
from smoothsa_jax.devices.host_arrays import on_own_devices
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.scores import headline, scores_table
from smoothsa_jax.models.parameters import Parameters
from smoothsa_jax.training import scoring, signals
from smoothsa_jax.training.checks import agree, check
from smoothsa_jax.training.logging import EVENTS_FOLDER, LOG_FILE, say, warn
from smoothsa_jax.training.state import copied
from smoothsa_jax.training.step import Training
from smoothsa_jax.training.task import task_of

# Where scoring runs out of memory: after the training, and within it.
REPORT_AGAIN = "use --mode=evaluate with {}, or more devices; the weights are saved"
GO_ON = "run the same command with {}, or more devices"


def evaluating(config: ConfigDict, advice: str) -> contextlib.AbstractContextManager[None]:
    """`advice`: what to do where memory runs out, with a place for the option that lessens it."""
    batch = config.eval.batch_size
    mesh = mesh_shape(config.mesh.data, config.mesh.get("fsdp", 1), len(jax.devices()))
    devices = math.prod(mesh) // jax.process_count()
    smaller = batch // 2 // devices * devices
    option = f"--config.eval.batch_size={smaller}" if smaller else "fewer eval.num_frames"
    return telling_out_of_memory(
        f"scoring eval.batch_size={batch} samples at a time", advice.format(option)
    )


def untrained(training: Training) -> Training:
    """The same with a copy of the first parameters, for scoring, and nothing else of the first state: a step gives that away."""
    state = training.state.replace(opt_state=())
    return dataclasses.replace(training, state=copied(state))


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
    if wants_best(config):
        checkpoint = best_checkpoint(workdir, config) or checkpoint
    say(f"evaluating {checkpoint.path}, step {checkpoint.step} of {config.train.num_steps}")
    task = task_of(config)
    with signals.SignalGuard(), evaluating(config, REPORT_AGAIN):
        training, _ = on_own_devices(untrained(task.build(config)))
        frozen = restore_state({"frozen": training.frozen}, checkpoint, only="frozen/")["frozen"]
        training = dataclasses.replace(training, frozen=frozen)
        params = params_of(checkpoint, training)
        scores = task.report(config, training, params, checkpoint.step, workdir, say)
    tell_results(scores, workdir)
    return scores


def restored(
    workdir: Path, choose_config: Callable[[ConfigDict], ConfigDict]
) -> tuple[Checkpoint, ConfigDict]:
    """The newest sound checkpoint, and the config to look at it with; see `evaluate`."""
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
    template = {"state": {"params": training.state.params}}
    return restore_state(template, checkpoint, only="state/params/")["state"]["params"]


def wants_best(config: ConfigDict) -> bool:
    return config.eval.get("checkpoint") == "best"


def best_checkpoint(workdir: Path, config: ConfigDict) -> Checkpoint | None:
    """The best checkpoint that is kept, by the metric saved with each; None where none can be used."""
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


def tell_results(scores: dict[str, Any], workdir: Path) -> None:
    """The end of a run, on standard output: where things are, the score, what to do next."""
    if not hosts.is_primary():
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
