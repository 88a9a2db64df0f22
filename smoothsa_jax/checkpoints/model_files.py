"""Read and write a model as three files: weights (safetensors), config, and a description."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from smoothsa_jax.checkpoints import before
from smoothsa_jax.config.values import from_json, to_json
from smoothsa_jax.errors import UserError
from smoothsa_jax.files import atomic_file

WEIGHTS_FILE, CONFIG_FILE, ABOUT_FILE = "model.safetensors", "config.json", "about.json"
SCORES_FILE = "scores.json"  # beside them, where the model has been scored


def save_model(
    folder: Path, config: ConfigDict, params: Mapping[str, np.ndarray], step: int, about: str = ""
) -> None:
    """Write the files of a model. The weights come last and mark the model as complete.

    Args:
        folder: a new or empty folder.
        config: the whole config.
        params: all arrays, by their names in the model.
        step: number of training steps done.
        about: a short description.

    Raises:
        UserError: the folder is not empty or not writable.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists; nothing was changed: give the name of a new folder")
    try:
        with atomic_file(folder / CONFIG_FILE) as path:
            path.write_text(to_json(config))
        with atomic_file(folder / ABOUT_FILE) as path:
            path.write_text(json.dumps({"about": about, "step": step}) + "\n")
        with atomic_file(folder / WEIGHTS_FILE) as path:
            save_file({name: np.asarray(x, order="C") for name, x in params.items()}, path)
    except (OSError, SafetensorError) as error:  # SafetensorError if the disk is full
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{folder} cannot be written: {reason}; use another folder") from error


def read_model(
    folder: Path, allow_before: bool = False
) -> tuple[ConfigDict, dict[str, np.ndarray], int]:
    """Read config, arrays and step from a folder that `save_model` wrote.

    Args:
        folder: the folder of the model.
        allow_before: whether to accept the layout of earlier versions.

    Raises:
        UserError: a file is missing or damaged, or has the layout of earlier versions.
    """
    try:
        arrays = load_file(folder / WEIGHTS_FILE)
        config = from_json((folder / CONFIG_FILE).read_text())
        step = json.loads((folder / ABOUT_FILE).read_text())["step"]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the model in {folder} is damaged ({reason}); expected whole files {WEIGHTS_FILE}, "
            f"{CONFIG_FILE} and {ABOUT_FILE}: download or save it again"
        ) from error
    if not allow_before:
        before.refuse(folder, config)
    return config, arrays, step


def scores_in(folder: Path) -> dict[str, Any] | None:
    """Return the scores beside a model, as `--mode=evaluate` writes them; None: there are none."""
    try:
        scores = json.loads((folder / SCORES_FILE).read_text())
        return scores if isinstance(scores["metrics"], dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
