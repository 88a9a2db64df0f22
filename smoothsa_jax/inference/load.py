"""Find trained models: in a workdir, a saved folder, the package, or an authors' checkpoint."""

import json
import os
import warnings
from pathlib import Path
from typing import Literal, NamedTuple, overload

from smoothsa_jax.checkpoints.model_files import ABOUT_FILE, WEIGHTS_FILE
from smoothsa_jax.checkpoints.published import SLOT_MODEL
from smoothsa_jax.checkpoints.read import FOLDER
from smoothsa_jax.checkpoints.sources import Trained, open_trained
from smoothsa_jax.devices.runtime import find_devices
from smoothsa_jax.errors import UserError, did_you_mean
from smoothsa_jax.inference import released
from smoothsa_jax.inference.catalogue import CATALOGUE, Published
from smoothsa_jax.inference.forecaster import Forecaster
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.interop import state_dicts

SHIPPED = Path(__file__).parent.parent / "pretrained"


class Available(NamedTuple):
    """A model that `load` finds by name.

    Attributes:
        name: the name to pass to `load`.
        about: a short description.
    """

    name: str
    about: str


@overload
def list_models(published: Literal[False] = False) -> list[Available]: ...
@overload
def list_models(published: Literal[True]) -> list[Published]: ...
def list_models(published: bool = False) -> list[Available] | list[Published]:
    """List models.

    Args:
        published: False: what `load` takes by name, that is the models bundled with the package
            and those that SmoothSA's authors have released, which have to be downloaded first.
            True: the published checkpoints whose files `load` reads, also of other systems.
    """
    if published:
        return list(CATALOGUE)
    found = []
    for folder in sorted(SHIPPED.iterdir() if SHIPPED.is_dir() else ()):
        if (folder / WEIGHTS_FILE).is_file():
            about = json.loads((folder / ABOUT_FILE).read_text())["about"]
            found.append(Available(folder.name, about))
    for recipe, name in released.NAMES.items():
        path = released.path_of(recipe)
        about = f"the authors' {name}, " + ("in" if path.is_file() else f"from {released.PAGE}, as")
        found.append(Available(f"{released.PREFIX}{recipe}", f"{about} {path}"))
    return found


def load(source: str | os.PathLike, config: str | None = None) -> Segmenter:
    """Load a trained model.

    Args:
        source: a workdir of `main.py` (its newest intact checkpoint), a folder that `save` wrote, a
            name from `list_models`, or a published checkpoint (.safetensors, .pth, .pt, .pt.tar or
            .ckpt).
        config: the recipe of a published checkpoint, such as "coco" or "voc:spot,original", as in
            `list_models(published=True)`; needed if several recipes have the same model.

    Raises:
        UserError: there is no such model, its files are damaged, or JAX finds no device.
    """
    return _load(source, config)


def _load(
    source: str | os.PathLike, config: str | None, with_forecasters: bool = False
) -> Segmenter | Forecaster:
    find_devices(_warn)
    source = os.fspath(source)
    if state_dicts.is_state_dict(source) and not Path(source).is_dir():
        return _segmenter(open_trained(source, _warn, config))
    if config is not None:
        raise UserError(
            f"config={config!r} was given with {source}, which has its own; leave it out"
        )
    names = [model.name for model in list_models()]
    if source in names and Path(source).exists():
        raise UserError(
            f"{source} is the name of a model and of a folder here; write ./{source} for the "
            "folder, or work elsewhere"
        )
    if source in names and source.startswith(released.PREFIX):
        recipe = source.removeprefix(released.PREFIX)
        return _segmenter(open_trained(str(released.find(recipe)), _warn, recipe))
    folder = SHIPPED / source if source in names else Path(source)
    if not folder.exists():
        raise UserError(
            f"{source} is neither a folder nor the name of a model; expected a workdir, or one of "
            f"{', '.join(names)}{did_you_mean(source, names)}"
        )
    trained = _of_folder(folder)
    if with_forecasters and trained.config.task == "dynamics":
        return Forecaster(trained)
    return _segmenter(trained)


def load_forecaster(source: str | os.PathLike) -> Forecaster:
    """Load a trained rollouter with its slot model.

    Args:
        source: a workdir of the task `dynamics`.

    Raises:
        UserError: it is something else, or its files are damaged.
    """
    find_devices(_warn)
    trained = open_trained(os.fspath(source), _warn)
    if trained is None:
        raise UserError(
            f"{source} holds no model: no usable checkpoint in {Path(source) / FOLDER}; give the "
            "workdir of a trained run"
        )
    return Forecaster(trained)


def load_any(source: str | os.PathLike) -> Segmenter | Forecaster:
    """Load a trained model: a rollouter with its slot model, or as `load` does.

    Raises:
        UserError: as for `load`; or a rollouter's slot model has no masks of slots alone.
    """
    return _load(source, None, with_forecasters=True)


def _of_folder(folder: Path) -> Trained:
    trained = open_trained(str(folder), _warn)
    if trained is None:
        raise UserError(
            f"{folder} holds no model: no usable checkpoint in {folder / FOLDER} and no "
            f"{WEIGHTS_FILE}; give the workdir of a trained run"
        )
    return trained


def _segmenter(trained: Trained) -> Segmenter:
    config = trained.config
    # None stands for no companion, "" for an untrained one; the slot model comes first.
    named = sorted(config.companions.items(), key=lambda item: item[0] != SLOT_MODEL)
    sources = [x.source for _, x in named if x.get("source") is not None]
    if config.task != "discovery" and sources:
        raise UserError(
            f"{trained.what} holds a model of the task {config.task!r}, which finds no segments; "
            f"load the slot model that it was trained on: {sources[0]}"
            f"{'; or predict frames with --future' * (config.task == 'dynamics')}"
        )
    try:
        return Segmenter(config, trained.arrays, trained.step, tokenizer=trained.tokenizer)
    except UserError:
        raise
    except Exception as error:  # a damaged config can raise almost anything
        raise UserError(
            f"the model in {trained.what} is damaged (its config describes no model: "
            f"{type(error).__name__}: {' '.join(str(error).split())}); fetch or save it again"
        ) from error


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=7)
