"""Rewrite a run from the layout before version 0.2; `before.py` has the new names."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from smoothsa_jax.checkpoints.before import convert_config, convert_names, is_before
from smoothsa_jax.checkpoints.read import (
    BROKEN_FOLDER,
    FOLDER,
    BrokenCheckpoint,
    Checkpoint,
    fingerprint,
    read_checkpoint,
    steps_found,
)
from smoothsa_jax.checkpoints.workdir import CONFIG_FILE, write_config
from smoothsa_jax.checkpoints.write import CheckpointWriter
from smoothsa_jax.config.values import from_json
from smoothsa_jax.errors import UserError


def convert_run(old: Path, new: Path, warn: Callable[[str], None]) -> tuple[list[int], ConfigDict]:
    """Write every sound checkpoint of a run, and all other files, in the current layout.

    The old folder is only read. Weights, optimizer state, progress and metrics do not change by
    a bit.

    Args:
        old: the workdir.
        new: an empty folder. When this raises, its content is of no use.
        warn: called with one line for each checkpoint that is left out.

    Returns:
        The steps that were converted, in order, and the converted config of the last.

    Raises:
        UserError: the run already has the current layout, has no sound checkpoint, or cannot be
            converted.
    """
    config = _config_of(old)
    if config is not None:
        config = convert_config(config)
    done, newest = [], config
    steps = sorted(steps_found(old))
    for step in steps:
        try:
            checkpoint = read_checkpoint(old, step, allow_before=True)
        except BrokenCheckpoint as reason:
            warn(f"checkpoint {old / FOLDER / str(step)} is not usable ({reason}); left out")
            continue
        newest = _convert_checkpoint(checkpoint, new, len(steps))
        done.append(step)
    if not done:
        raise UserError(
            f"{old} holds no usable checkpoint in {old / FOLDER}, so there is nothing to convert: "
            "start that run again with another --workdir"
        )
    if config is not None:
        write_config(config, new)
    copy_other_files(old, new, (CONFIG_FILE, FOLDER, BROKEN_FOLDER))
    return done, newest


def copy_other_files(old: Path, new: Path, names: tuple[str, ...]) -> None:
    """Copy the log, scores, pictures and whatever else is in a folder.

    Files called one of `names` stay out, and hidden files such as the lock.
    """
    for path in sorted(old.iterdir()):
        if path.name in names or path.name.startswith("."):
            continue
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.copytree(path, new / path.name, symlinks=True)
            else:
                shutil.copy2(path, new / path.name, follow_symlinks=False)
        except (OSError, shutil.Error) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
            raise UserError(
                f"{path} cannot be copied: {reason}; correct that, or move it out of {old}"
            ) from error


def already_converted(folder: Path) -> UserError:
    """The error for a folder that already has the current layout."""
    return UserError(f"{folder} already has the current layout; use it as it is")


def _config_of(old: Path) -> ConfigDict | None:
    """The old run's config; None where there is no file."""
    path = old / CONFIG_FILE
    if not path.exists():
        return None
    try:
        config = from_json(path.read_text())
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}); remove it (the checkpoints hold the config too) and "
            "convert again"
        ) from error
    if not is_before(config):
        raise already_converted(old)
    return config


def _convert_checkpoint(checkpoint: Checkpoint, new: Path, most: int) -> ConfigDict:
    """Write one checkpoint and read it back. Returns its config."""
    if not is_before(checkpoint.config):
        raise already_converted(checkpoint.path.parent.parent)
    config = convert_config(checkpoint.config)
    arrays = convert_names(checkpoint.arrays, checkpoint.config)
    metrics = _metrics_of(checkpoint.path)
    # Metrics are saved only where one of them chooses the best checkpoint.
    best = None if metrics is None else config.checkpoint.best_metric or "loss"
    mode = config.checkpoint.best_mode
    writer = CheckpointWriter(
        new, config, max_to_keep=most + 1, best_metric=best, best_mode=mode
    )  # keeps all
    with contextlib.closing(writer):
        writer.save(checkpoint.step, arrays, checkpoint.progress, metrics or {})
        writer.wait()
    try:
        found = read_checkpoint(new, checkpoint.step)
    except BrokenCheckpoint as reason:
        raise UserError(
            f"the converted {checkpoint.path} cannot be read back ({reason}); check the disk and "
            "convert again"
        ) from reason
    expected = Checkpoint(checkpoint.step, arrays, checkpoint.progress, config, found.path)
    if _values(found) != _values(expected) or _metrics_of(found.path) != metrics:
        raise UserError(
            f"the converted {checkpoint.path} differs when read back; check the disk and convert "
            "again"
        )
    return config


def _values(checkpoint: Checkpoint) -> tuple[Any, ...]:
    arrays = {name: fingerprint(array) for name, array in checkpoint.arrays.items()}
    return arrays, checkpoint.progress, checkpoint.config


def _metrics_of(path: Path) -> dict[str, float] | None:
    """The metric that selects the best checkpoint; None if the run has none."""
    file = path / "metrics" / "metrics"
    return json.loads(file.read_text()) if file.exists() else None
