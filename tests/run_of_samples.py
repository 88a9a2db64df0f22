"""The workdir of a run with an untrained model, for tests that score it."""

import io
from pathlib import Path

import jax
from tiny import tiny_config

from smoothsa_jax.checkpoints.write import CheckpointWriter
from smoothsa_jax.config.values import canonical
from smoothsa_jax.training.logging import RunLog
from smoothsa_jax.training.step import build_training

STEP = 4


def untrained_run(workdir: Path, num_frames: int) -> Path:
    """Write a run to score on 7 samples in batches of 2, with seeds, baselines and pictures."""
    config = tiny_config(num_frames)
    config.data.update(max_objects=3)
    config.eval.update(num_samples=7, num_frames=num_frames, num_pictures=3, seeds=(0, 1))
    config.eval.update(batch_size=2, baselines=True, match_paper=True)
    config = canonical(config)
    training = build_training(config)
    workdir.mkdir(parents=True)
    RunLog(workdir, first_step=0, num_steps=STEP, log_every=1, stream=io.StringIO()).close()
    writer = CheckpointWriter(workdir, config)
    params = jax.tree.map(lambda x: x * 0.8, training.state.params)
    state = training.state.replace(step=jax.numpy.asarray(STEP, "int32"), params=params)
    arrays = {"state": state, "frozen": training.frozen}
    writer.save(STEP, arrays, {"frozen_from": ""}, {"loss": 1.0})
    writer.wait()
    writer.close()
    return workdir


def written(workdir: Path) -> dict[str, bytes]:
    """What scoring has written: scores, those of samples, and pictures."""
    files = [workdir / "scores.json", workdir / "scores.csv", *sorted(workdir.glob("pictures/*"))]
    return {file.name: file.read_bytes() for file in files}
