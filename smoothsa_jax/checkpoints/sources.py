"""Open trained models and weights: runs, saved models, repositories of the Hub, state dicts.

A config names sources in two places. `weights.NAME = {"into": ..., "source": ...}` fills arrays of
the trained model when a run begins. `companions.NAME = {"source": ...}` adds a frozen model. Its
architecture is copied into the run's config and its arrays into the run's checkpoints, so the
workdir is self-contained.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from smoothsa_jax.checkpoints.model_files import ABOUT_FILE, WEIGHTS_FILE, read_model
from smoothsa_jax.checkpoints.published import CONFIGS, configs_of, recipes
from smoothsa_jax.checkpoints.read import FOLDER, restore_latest
from smoothsa_jax.config.load import load_config
from smoothsa_jax.config.values import canonical, differences, image_size_of
from smoothsa_jax.devices import hosts
from smoothsa_jax.errors import UserError, did_you_mean
from smoothsa_jax.interop import state_dicts
from smoothsa_jax.interop.authors import from_authors
from smoothsa_jax.interop.encoder_weights import load_encoder
from smoothsa_jax.models.build import build_slot_model
from smoothsa_jax.models.parameters import ENCODER, Parameters, below, matching, split

RANDOM = "random"  # a source: untrained values from a seed
UNTRAINED = ""  # a companion's source: untrained, for trying out a config

Warn = Callable[[str], None]


class Trained(NamedTuple):
    """A trained model.

    Attributes:
        config: the whole config that it was trained with.
        arrays: all arrays, by their names in the model.
        step: number of training steps done.
        what: where the arrays come from, in words.
    """

    config: ConfigDict
    arrays: dict[str, np.ndarray]
    step: int
    what: str


def is_trained(source: str) -> bool:
    """Tell whether a source is a workdir or a saved model of ours."""
    folder = Path(source).expanduser()
    saved = (folder / WEIGHTS_FILE).is_file() and (folder / ABOUT_FILE).is_file()
    return bool(source) and (saved or (folder / FOLDER).is_dir())


def open_trained(source: str, warn: Warn, recipe: str | None = None) -> Trained | None:
    """Read a trained model.

    Args:
        source: a workdir, of which the newest intact checkpoint is read; the folder of a saved
            model; or a state dict of the authors' program.
        warn: called with one line for each skipped checkpoint.
        recipe: the recipe of a state dict, needed if several recipes have the same model.

    Returns:
        None if a workdir has no usable checkpoint.

    Raises:
        UserError: a saved model is damaged, or a state dict fits no recipe or several.
    """
    path = Path(source).expanduser()
    if state_dicts.is_state_dict(path) and not path.is_dir():
        return _of_state_dict(path, recipe)
    if (path / WEIGHTS_FILE).is_file():
        config, arrays, step = read_model(path)
        return Trained(config, arrays, step, str(path))
    checkpoint = restore_latest(path, warn=warn)
    if checkpoint is None:
        return None
    return Trained(checkpoint.config, checkpoint.weights, checkpoint.step, str(checkpoint.path))


def _of_state_dict(path: Path, recipe: str | None) -> Trained:
    state_dict, configs = state_dicts.read(path), recipes()
    if recipe is not None and recipe not in configs:
        raise UserError(
            f"config={recipe!r} is no recipe; choose one of {', '.join(configs)}"
            f"{did_you_mean(recipe, configs)}"
        )
    try:
        names = configs_of(state_dict, configs if recipe is None else {recipe: configs[recipe]})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if len(names) > 1:
        raise UserError(
            f"{path} fits the recipes {', '.join(names)}, whose models differ in no key; "
            "choose the one it was trained with: load(..., config=NAME), or python -m "
            "smoothsa_jax.convert IN OUT --config=NAME"
        )
    found = configs[names[0]]
    return Trained(found, from_authors(state_dict), found.train.num_steps, str(path))


def with_companions(config: ConfigDict, stored: ConfigDict | None, warn: Warn) -> ConfigDict:
    """Add the architecture of every companion to the config.

    Args:
        config: the config of the run.
        stored: the config of the run already in the workdir, if any; its companions are kept.
        warn: called with one line for each skipped checkpoint.

    Raises:
        UserError: a companion's source holds no trained model.
    """
    open_ones = [
        name
        for name, companion in config.companions.items()
        if "model" not in companion and "average_of" not in companion
    ]
    if not open_ones:
        return config
    config = config.copy_and_resolve_references().unlock()
    for name in open_ones:
        found = stored.companions.get(name) if stored is not None else None
        if found is not None:
            config.companions[name].update({key: found[key] for key in ("title", "model")})
            continue
        source = config.companions[name].source
        trained = _opened(name, source, warn)
        config.companions[name].update(title=trained.config.title, model=trained.config.model)
    return canonical(config)


def _opened(name: str, source: str, warn: Warn) -> Trained:
    trained = open_trained(source, warn) if source else None
    if trained is None:
        command = command_for(Path(source).name)
        first = f"; train it first: {command}" if command else "; train one"
        raise UserError(
            f"companions.{name}.source: no usable checkpoint found in {Path(source) / FOLDER}, "
            f"expected the workdir of a trained model{first}, or give its folder with "
            f"--config.companions.{name}.source"
        )
    return trained


def command_for(name: str) -> str | None:
    """Return the command that trains the run of a name, where that is a config of the gallery:
    the data set, then its words."""
    for path in sorted(CONFIGS.glob("*.py"), key=lambda path: -len(path.stem)):
        if name != path.stem and not name.startswith(f"{path.stem}_"):
            continue
        words = name.removeprefix(path.stem).strip("_").replace("_", ",")
        spec = f"configs/{path.name}{':' * bool(words)}{words}"
        try:
            found = load_config(f"{path}{':' * bool(words)}{words}").name
        except UserError:
            continue
        if found == name:
            return f"python main.py --config={spec}"
    return None


def begin(config: ConfigDict, training: Any, warn: Warn) -> tuple[Parameters, Parameters, str]:
    """Return the arrays that a run without a checkpoint starts from.

    Args:
        config: the config of the run, with the architecture of its companions.
        training: a `training.step.Training` of the config.
        warn: called with one line for each skipped checkpoint.

    Returns:
        The trained parameters, the frozen arrays, and where they come from in words.

    Raises:
        UserError: a source is not available or does not fit the model.
    """
    params, frozen, words = dict(training.state.params), dict(training.frozen), []
    for name, entry in sorted(config.weights.items()):
        into, source = entry.get("into", ""), entry["source"]
        if source == RANDOM:
            words.append(f"random values, as weights.{name}.source=random asks")
            continue
        arrays, what = _arrays_of(f"weights.{name}", entry, config, training, warn)
        refused = tuple(below(into, pattern) for pattern in entry.get("without", ()))
        for key in arrays.keys() - matching(arrays, refused):
            target = params if key in params else frozen
            if key not in target:
                raise UserError(
                    f"weights.{name}: {what} has {key}, which this model does not have; leave it "
                    f"out with --config.weights.{name}.without"
                )
            target[key] = _placed(f"weights.{name}", key, arrays[key], target[key])
        words.append(what)
    for name, companion in config.companions.items():
        if "average_of" in companion:
            continue
        if companion.source == UNTRAINED:
            words.append(f"companion {name}: untrained, as it has no source")
            model = build_slot_model(companion.model, image_size_of(config), config.seed)
            arrays = {key: x for part in split(model)[1:] for key, x in part.items()}
            for key, array in arrays.items():
                whole = f"{name}.{key}"
                frozen[whole] = _placed(f"companions.{name}", whole, array, frozen.get(whole))
            continue
        trained = _opened(name, companion.source, warn)
        if different := differences(trained.config.model, companion.model):
            raise UserError(
                f"companions.{name}.source {companion.source} holds another model, which differs "
                f"in {', '.join(different)}; use another --workdir"
            )
        for key, array in trained.arrays.items():
            whole = f"{name}.{key}"
            frozen[whole] = _placed(f"companions.{name}", whole, array, frozen.get(whole))
        words.append(f"{trained.config.title} of {trained.what}")
    return params, frozen, "; ".join(words)


def _arrays_of(
    path: str, entry: Mapping[str, Any], config: ConfigDict, training: Any, warn: Warn
) -> tuple[dict[str, np.ndarray], str]:
    """Return an entry's arrays by their names in the trained model, and where they come from."""
    into, source = entry.get("into", ""), entry["source"]
    if is_trained(source):
        trained = open_trained(source, warn)
        if trained is None:
            raise UserError(f"{path}.source: {source} has no usable checkpoint; train it first")
        prefix = f"{into}." if into else ""
        arrays = {k: x for k, x in trained.arrays.items() if k.startswith(prefix)}
        return arrays, trained.what
    if into != ENCODER:
        raise UserError(
            f"{path}.source is {source!r}, which is no workdir and no saved model; expected one "
            f"of these for into={into!r}"
        )
    expected = {
        name.removeprefix(f"{ENCODER}."): x
        for name, x in {**training.state.params, **training.frozen}.items()
        if name.startswith(f"{ENCODER}.")
    }
    grid = training.definitions["model"].skeleton().encoder.grid
    arrays, what = load_encoder(source, config.model.encoder, expected, grid)
    if hosts.is_multi_process():  # each process reads its own files
        hosts.refuse_differences({f"what {path}.source={source} holds": digest(arrays)})
    return {below(ENCODER, name): x for name, x in arrays.items()}, what


def _placed(path: str, name: str, array: np.ndarray, like: Any) -> jax.Array:
    if like is None or tuple(like.shape) != tuple(np.shape(array)):
        expected = "no such array" if like is None else str(list(like.shape))
        raise UserError(
            f"{path}: {name} has shape {list(np.shape(array))}, this model has {expected}; give a "
            "source of the same architecture"
        )
    return jax.device_put(np.asarray(array, like.dtype), like.sharding)


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return a SHA-256 digest of arrays: their names, dtypes, shapes and values."""
    found = hashlib.sha256()
    for name, value in sorted(arrays.items()):
        found.update(f"{name} {value.dtype} {value.shape}\n".encode())
        found.update(np.ascontiguousarray(value).tobytes())
    return found.hexdigest()
