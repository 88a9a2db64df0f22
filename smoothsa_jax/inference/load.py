"""Finds trained models: in a workdir or a folder that was saved, among those that come with the package, or an authors' file."""

import json
import os
import warnings
from pathlib import Path
from typing import NamedTuple

from smoothsa_jax.checkpoints.model_files import ABOUT_FILE, WEIGHTS_FILE
from smoothsa_jax.checkpoints.published import configs_of, recipes
from smoothsa_jax.checkpoints.read import FOLDER
from smoothsa_jax.checkpoints.sources import open_trained
from smoothsa_jax.errors import UserError, did_you_mean
from smoothsa_jax.inference import released
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.interop import state_dicts
from smoothsa_jax.interop.authors import from_authors

SHIPPED = Path(__file__).parent.parent / "pretrained"


class Available(NamedTuple):
    """A model that `load` finds by its name."""

    name: str
    about: str


def list_models() -> list[Available]:
    """The models that come with the package, and those that the authors have released: these have to be fetched."""
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
    """A trained model.

    Args:
        source: a workdir of `main.py` (its newest sound checkpoint), a folder that `save` wrote, a name of `list_models`, or an
            authors' checkpoint (.pth, which needs PyTorch, or .safetensors).
        config: of an authors' checkpoint, where several recipes have the same model: the name of one, such as "coco".

    Raises:
        UserError: there is no such model, or its files are damaged.
    """
    source = os.fspath(source)
    if state_dicts.is_state_dict(source) and not Path(source).is_dir():
        return _of_authors(Path(source), config)
    if config is not None:
        raise UserError(
            f"config={config!r} was given with {source}, which has its own; leave it out"
        )
    names = [model.name for model in list_models()]
    if source in names and Path(source).exists():
        raise UserError(
            f"{source} is the name of a model and of a folder here; write ./{source} for the folder, or work elsewhere"
        )
    if source in names and source.startswith(released.PREFIX):
        recipe = source.removeprefix(released.PREFIX)
        return _of_authors(released.find(recipe), recipe)
    folder = SHIPPED / source if source in names else Path(source)
    if not folder.exists():
        raise UserError(
            f"{source} is neither a folder nor the name of a model; expected a workdir, or one of {', '.join(names)}"
            f"{did_you_mean(source, names)}"
        )
    return _of_folder(folder)


def _of_folder(folder: Path) -> Segmenter:
    trained = open_trained(str(folder), lambda text: warnings.warn(text, stacklevel=5))
    if trained is None:
        raise UserError(
            f"{folder} holds no model: no usable checkpoint in {folder / FOLDER} and no "
            f"{WEIGHTS_FILE}; give the workdir of a trained run"
        )
    config = trained.config
    sources = [x.source for x in config.companions.values() if "source" in x]
    if config.task != "discovery" and sources:
        raise UserError(
            f"{folder} holds a model of the task {config.task!r}, which finds no segments; load the "
            f"slot model that it was trained on: {sources[0]}"
        )
    try:
        return Segmenter(config, trained.arrays, trained.step)
    except UserError:
        raise
    except Exception as error:  # of many kinds, where a key of the config is not what it was
        raise UserError(
            f"the model in {folder} is damaged (its config describes no model: "
            f"{type(error).__name__}: {' '.join(str(error).split())}); fetch or save it again"
        ) from error


def _of_authors(path: Path, recipe: str | None) -> Segmenter:
    state_dict, configs = state_dicts.read(path), recipes()
    if recipe is not None and recipe not in configs:
        raise UserError(
            f"config={recipe!r} is no recipe; choose one of {', '.join(configs)}{did_you_mean(recipe, configs)}"
        )
    try:
        names = configs_of(state_dict, configs if recipe is None else {recipe: configs[recipe]})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if len(names) > 1:
        raise UserError(
            f"{path} fits the recipes {', '.join(names)}, whose models differ in no key; choose the one it was trained with: "
            "load(..., config=NAME), or python -m smoothsa_jax.convert IN OUT --config=NAME"
        )
    found = configs[names[0]]
    return Segmenter(found, from_authors(state_dict), found.train.num_steps)
