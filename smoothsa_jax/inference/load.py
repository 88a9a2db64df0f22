"""Finds trained models: in a workdir, in a folder that was saved, or among those that come with the package."""

import json
import os
import warnings
from pathlib import Path
from typing import NamedTuple

from smoothsa_jax.errors import UserError, did_you_mean
from smoothsa_jax.inference.model_files import ABOUT_FILE, WEIGHTS_FILE, read_model
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.training.checkpoints import FOLDER, restore_latest

SHIPPED = Path(__file__).parent.parent / "pretrained"
PARAMS, FROZEN = "state/params/", "frozen/"  # in a checkpoint


class Available(NamedTuple):
    """A model that `load` finds by its name."""

    name: str
    about: str


def list_models() -> list[Available]:
    """The models that come with the package."""
    found = []
    for folder in sorted(SHIPPED.iterdir() if SHIPPED.is_dir() else ()):
        if (folder / WEIGHTS_FILE).is_file():
            found.append(
                Available(folder.name, json.loads((folder / ABOUT_FILE).read_text())["about"])
            )
    return found


def load(source: str | os.PathLike) -> Segmenter:
    """A trained model.

    Args:
        source: a workdir of `main.py` (its newest sound checkpoint), a folder that `save` wrote, or a name of `list_models`.

    Raises:
        UserError: there is no such model, or its files are damaged.
    """
    names = [model.name for model in list_models()]
    folder = SHIPPED / str(source) if str(source) in names else Path(source)
    if not folder.exists():
        raise UserError(
            f"{source} is neither a folder nor the name of a model; expected a workdir, or one of {', '.join(names)}"
            f"{did_you_mean(str(source), names)}"
        )
    if (folder / WEIGHTS_FILE).is_file():
        return Segmenter(*read_model(folder))
    checkpoint = restore_latest(folder, warn=lambda text: warnings.warn(text, stacklevel=3))
    if checkpoint is None:
        raise UserError(
            f"{folder} holds no model: no usable checkpoint in {folder / FOLDER} and no {WEIGHTS_FILE}; give the workdir of a "
            "trained run"
        )
    if "recognition" in checkpoint.config:
        raise UserError(
            f"{folder} holds a recognition head; load the SmoothSA that it was trained on: {checkpoint.config.recognition.workdir}"
        )
    arrays = {
        name.removeprefix(prefix): array
        for prefix in (PARAMS, FROZEN)
        for name, array in checkpoint.arrays.items()
        if name.startswith(prefix)
    }
    return Segmenter(checkpoint.config, arrays, checkpoint.step)
