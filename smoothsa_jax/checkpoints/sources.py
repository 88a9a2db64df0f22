"""Open trained models and weights: runs, saved models, repositories of the Hub, state dicts.

A config names sources in two places. `weights.NAME = {"into": ..., "source": ...}` fills arrays of
the trained model when a run begins. `companions.NAME = {"source": ...}` adds a frozen model. Its
architecture is copied into the run's config and its arrays into the run's checkpoints, so the
workdir is self-contained.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from ml_collections import ConfigDict

from smoothsa_jax.checkpoints.catalogue import config_of, facts_of
from smoothsa_jax.checkpoints.model_files import (
    ABOUT_FILE,
    CONFIG_FILE,
    SCORES_FILE,
    WEIGHTS_FILE,
    read_model,
)
from smoothsa_jax.checkpoints.published import (
    CONFIGS,
    SLOT_MODEL,
    configs_of,
    fitted,
    from_state_dict,
    recipes,
)
from smoothsa_jax.checkpoints.read import FOLDER, place_array, restore_latest
from smoothsa_jax.config.load import known_words, load_config
from smoothsa_jax.config.values import (
    canonical,
    differences,
    image_size_of,
    is_absent,
    to_json,
)
from smoothsa_jax.devices import hosts
from smoothsa_jax.devices.host_arrays import on_host
from smoothsa_jax.errors import UserError, did_you_mean
from smoothsa_jax.files import expanded
from smoothsa_jax.interop import hub, state_dicts
from smoothsa_jax.interop.encoder_weights import load_encoder
from smoothsa_jax.interop.perceptual import load_lpips
from smoothsa_jax.interop.tokenizers import load_taesd
from smoothsa_jax.models.build import ROLLOUTER, build_model
from smoothsa_jax.models.layers.taesd import TinyDecoder, TinyEncoder
from smoothsa_jax.models.parameters import (
    ENCODER,
    TARGET_ENCODER,
    Parameters,
    below,
    matching,
    split,
)
from smoothsa_jax.models.perceptual import PERCEPTUAL
from smoothsa_jax.models.tokenizer_model import TOKENIZER

RANDOM = "random"  # a source: untrained values from a seed
UNTRAINED = ""  # a companion's source: untrained, for trying out a config

Warn = Callable[[str], None]
T = TypeVar("T")


class Trained(NamedTuple):
    """A trained model.

    Attributes:
        config: the whole config that it was trained with.
        arrays: all arrays of the trained model, by their names in it. Those of its own companions
            are left out.
        step: number of training steps done.
        what: where the arrays come from, in words.
        tokenizer: the arrays of its frozen tokenizer, by their names there; none without one.
        slot_model: the same of its frozen slot model.
    """

    config: ConfigDict
    arrays: dict[str, np.ndarray]
    step: int
    what: str
    tokenizer: Mapping[str, np.ndarray] = MappingProxyType({})
    slot_model: Mapping[str, np.ndarray] = MappingProxyType({})


def is_trained(source: str) -> bool:
    """Tell whether a source is a workdir or a saved model of ours, here or on the Hub."""
    if hub.is_repository(source):
        return True
    folder = expanded(source)
    saved = (folder / WEIGHTS_FILE).is_file() and (folder / ABOUT_FILE).is_file()
    return bool(source) and (saved or (folder / FOLDER).is_dir())


def open_trained(source: str, warn: Warn, recipe: str | None = None) -> Trained | None:
    """Read a trained model.

    Args:
        source: a workdir, of which the newest intact checkpoint is read; the folder of a saved
            model; "hf://owner/name", a saved model on the Hub; or a state dict of the authors'
            program.
        warn: called with one line for each skipped checkpoint.
        recipe: the recipe of a state dict or the name of its model in `published.toml`, needed if
            several recipes have the same model.

    Returns:
        None if a workdir has no usable checkpoint.

    Raises:
        UserError: a saved model is damaged, or a state dict fits no recipe or several.
    """
    path = fetched(source) if hub.is_repository(source) else expanded(source)
    if state_dicts.is_state_dict(path) and not path.is_dir():
        return _of_state_dict(path, recipe)
    if (path / WEIGHTS_FILE).is_file():
        config, arrays, step = read_model(path)
        return _trained(config, arrays, step, str(path))
    checkpoint = restore_latest(path, warn=warn)
    if checkpoint is None:
        return None
    return _trained(checkpoint.config, checkpoint.weights, checkpoint.step, str(checkpoint.path))


def fetched(source: str) -> Path:
    """Download a saved model of the Hub once.

    Args:
        source: such as "hf://owner/name".

    Returns:
        Its folder in the cache.

    Raises:
        UserError: the Hub is unreachable, or has no such model.
    """
    otherwise = (
        "on a machine that can reach it, `hf download` the repository into a folder, copy that "
        "here, and give its path. A published checkpoint is loaded by its name, with "
        f"file={source!r}"
    )
    folder = hub.download(source, ABOUT_FILE, otherwise).parent
    # All of one commit, also if another is pushed meanwhile.
    pinned = f"{hub.SCHEME}{hub.split_name(source)[0]}@{folder.name}"
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        hub.download(pinned, file, otherwise)
    with contextlib.suppress(UserError):  # a model may have none
        hub.download(pinned, SCORES_FILE, otherwise)
    return folder


def _trained(config: ConfigDict, arrays: dict[str, np.ndarray], step: int, what: str) -> Trained:
    frozen = [_of_companion(name, arrays, config) for name in (TOKENIZER, SLOT_MODEL)]
    return Trained(config, _own(arrays, config), step, what, *frozen)


def _own(arrays: dict[str, np.ndarray], config: ConfigDict) -> dict[str, np.ndarray]:
    """Leave out the arrays of the companions that a model was trained with."""
    companions = tuple(f"{name}." for name in config.get("companions", {}))
    return {name: x for name, x in arrays.items() if not name.startswith(companions)}


def _of_companion(
    name: str, arrays: Mapping[str, np.ndarray], config: ConfigDict
) -> dict[str, np.ndarray]:
    """Return the arrays of a companion, such as that which makes tokens."""
    if name not in config.get("companions", {}):
        return {}
    start = f"{name}."
    return {n.removeprefix(start): x for n, x in arrays.items() if n.startswith(start)}


def _of_state_dict(path: Path, recipe: str | None) -> Trained:
    state_dict, facts = state_dicts.read(path), recipe and facts_of(recipe)
    configs = {recipe: config_of(facts)} if facts else fitted(recipes(), state_dict)
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
            f"{path} fits the recipes {', '.join(names)}, whose models have the same keys; "
            "choose the one it was trained with: load(..., config=NAME), or python -m "
            "smoothsa_jax.convert IN OUT --config=NAME"
        )
    found = configs[names[0]]
    arrays, _ = from_state_dict(state_dict, found)
    return _trained(found, arrays, found.train.num_steps, str(path))


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
        if "model" not in companion and not is_absent(companion) and "source" in companion
    ]
    if not open_ones:
        return config
    if hosts.is_multi_process():  # they have to open the same sources, together
        told = None if stored is None else to_json(stored.companions)
        hosts.refuse_differences({"the companions in the workdir's config": told})
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
    if name == PERCEPTUAL:
        what = f"companions.{name}.source={source}"
        return _together(what, lambda: _of_lpips(source, what), _describe)
    trained = None
    if source:
        trained = _open_together(f"companions.{name}.source={source}", source, warn)
    if trained is None:
        command = command_for(Path(source).name)
        first = f"; train it first: {command}" if command else "; train one"
        raise UserError(
            f"companions.{name}.source: no usable checkpoint found in {Path(source) / FOLDER}, "
            f"expected the workdir of a trained model{first}, or give its folder with "
            f"--config.companions.{name}.source"
        )
    return trained


def _of_lpips(source: str, path: str) -> Trained:
    arrays, what = load_lpips(source, path)
    config = ConfigDict({"title": "LPIPS", "model": {PERCEPTUAL: {"name": "lpips"}}})
    return Trained(config, arrays, 0, what)


def _open_together(what: str, source: str, warn: Warn) -> Trained | None:
    """Read a trained model in every process; refuse if they have read different ones."""
    return _together(what, lambda: open_trained(source, warn), _describe)


def _describe(trained: Trained | None) -> str | None:
    if trained is None:
        return None
    config = hashlib.sha256(to_json(trained.config.model).encode()).hexdigest()
    return f"step {trained.step} ({digest(trained.arrays)[:16]}, model {config[:8]})"


def _together(what: str, work: Callable[[], T], describe: Callable[[T], Any]) -> T:
    """Do work that each process does on its own, such as reading, and compare the results.

    Args:
        what: the result in words.
        work: may fail in one process alone.
        describe: what has to be the same in all processes.

    Raises:
        UserError: the processes differ. Every process raises it, also if only one has failed.
    """
    if not hosts.is_multi_process():
        return work()
    result, error = None, None
    try:
        result = work()
        found = describe(result)
    except Exception as failure:  # the others wait for this process, even if it fails
        error, found = failure, f"error: {' '.join(str(failure).split())}"
    hosts.refuse_differences({f"what {what} holds": found})
    if error is not None:
        raise error
    return result


def command_for(name: str) -> str | None:
    """Return the command that trains the run of a name, if that is a config of the gallery."""
    spec = spec_of(name)
    return None if spec is None else f"python main.py --config={spec}"


def spec_of(name: str) -> str | None:
    """Return the config of a run's name, such as "configs/coco.py:spot" of "coco_spot".

    A name is the data set, then its words. None if no config of the gallery has that name.
    """
    for path in sorted(CONFIGS.glob("*.py"), key=lambda path: -len(path.stem)):
        if name != path.stem and not name.startswith(f"{path.stem}_"):
            continue
        try:
            words = _words_in(name.removeprefix(path.stem).removeprefix("_"), known_words(path))
            if words is None:
                continue
            after = f":{','.join(words)}" if words else ""
            found = load_config(f"{path}{after}").name
        except UserError:
            continue
        if found == name:
            return f"configs/{path.name}{after}"
    return None


def _words_in(text: str, known: tuple[str, ...]) -> tuple[str, ...] | None:
    """Split words that are joined by "_" and may contain it; None: `text` is not made of words."""
    if not text:
        return ()
    for word in sorted(filter(None, known), key=lambda word: (-len(word), word)):
        if text == word:
            return (word,)
        if text.startswith(f"{word}_"):
            rest = _words_in(text.removeprefix(f"{word}_"), known)
            if rest is not None:
                return (word, *rest)
    return None


def in_order(weights: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the entries of a config's `weights` in the order in which they apply.

    The shorter `into` comes first, then the name: a part replaces what the whole model has set.
    """
    return sorted(weights.items(), key=lambda item: (len(item[1].get("into", "")), item[0]))


def start_elsewhere(weights: Mapping[str, Mapping[str, Any]], trained: Iterable[str]) -> list[str]:
    """Return the arrays whose initial values come from a source, not from a seed.

    Args:
        weights: `weights` of a config.
        trained: names of the trained arrays.
    """
    found: set[str] = set()
    for _, entry in in_order(weights):
        names = {name for name in trained if name.startswith(below(entry.get("into", ""), ""))}
        names -= _left_out(entry, names)
        if entry["source"] != RANDOM:
            found |= names
        elif entry.get("into"):
            found -= names
    return sorted(found)


def _left_out(entry: Mapping[str, Any], names: Iterable[str]) -> frozenset[str]:
    into = entry.get("into", "")
    return matching(names, [below(into, pattern) for pattern in entry.get("without", ())])


def begin(config: ConfigDict, training: Any, warn: Warn) -> tuple[Parameters, Parameters, str]:
    """Return the arrays that a run without a checkpoint starts from.

    Args:
        config: the config of the run, with the architecture of its companions.
        training: a `training.step.Training` of the config.
        warn: called with one line for each skipped checkpoint, and for each entry whose source
            lacks arrays.

    Returns:
        The trained parameters, the frozen arrays, and where they come from in words.

    Raises:
        UserError: a source is not available or does not fit the model.
    """
    first = {**training.frozen, **training.state.params}
    model = {key for key in first if key.split(".")[0] not in config.companions}
    filled, words = dict(first), []
    for name, entry in in_order(config.weights):
        into, source = entry.get("into", ""), entry["source"]
        mine = {key for key in model if key.startswith(below(into, ""))}
        if source == RANDOM:
            words.append(f"random values, as weights.{name}.source=random asks")
            if into:  # it replaces the values of an earlier entry
                filled |= {key: first[key] for key in mine - _left_out(entry, mine)}
            continue
        arrays, what = _arrays_of(f"weights.{name}", entry, config, training, warn)
        filled |= _filled_by(f"weights.{name}", entry, arrays, what, filled, mine, warn)
        words.append(what)
    # A rollouter is compared with the slot model.
    for name, companion in sorted(config.companions.items(), key=lambda x: x[0] == ROLLOUTER):
        if "average_of" in companion or is_absent(companion):
            continue
        if companion.source == UNTRAINED:
            words.append(f"companion {name}: untrained, as it has no source")
            # As in a run of its own, a random encoder has the seed of this one's.
            random = [e for e in config.weights.values() if e["source"] == RANDOM]
            seeds = {e["into"]: e.get("seed", 0) for e in random}
            size = image_size_of(config)
            slots = config.companions.get(SLOT_MODEL, {}).get("model")
            untrained = build_model(companion.model, size, config.seed, seeds, slot_model=slots)
            arrays = {key: x for part in split(untrained)[1:] for key, x in part.items()}
        else:
            trained = _opened(name, companion.source, warn)
            if different := differences(trained.config.model, companion.model):
                raise UserError(
                    f"companions.{name}.source {companion.source} holds another model, which "
                    f"differs in {', '.join(different)}; use another --workdir"
                )
            arrays = trained.arrays
            if name == ROLLOUTER:
                _refuse_other_slots(companion.source, trained, config, filled)
            words.append(f"{trained.config.title} of {trained.what}")
        for key in sorted(arrays):
            whole = f"{name}.{key}"
            filled[whole] = _placed(f"companions.{name}", whole, arrays[key], filled.get(whole))
    _refuse_shapes(filled, config)
    _refuse_other_encoder(filled, config)
    params = {name: filled[name] for name in training.state.params}
    return params, {name: filled[name] for name in training.frozen}, "; ".join(words)


def _refuse_other_slots(
    source: str, trained: Trained, config: ConfigDict, filled: Parameters
) -> None:
    """Refuse a rollouter that was trained on slots of another model than the run's own."""
    start = f"{SLOT_MODEL}."
    mine = {k.removeprefix(start): x for k, x in filled.items() if k.startswith(start)}
    theirs = trained.config.companions.get(SLOT_MODEL, {}).get("model")
    same = theirs is not None and not differences(theirs, config.companions[SLOT_MODEL].model)
    if not same or digest(trained.slot_model) != digest(on_host(mine)):
        raise UserError(
            f"companions.{ROLLOUTER}.source {source} continues slots of another model than "
            f"companions.{SLOT_MODEL}.source {config.companions[SLOT_MODEL].source}; give a run "
            "of the task 'dynamics' on the same slot model"
        )


def _refuse_other_encoder(filled: Parameters, config: ConfigDict) -> None:
    """Refuse a tokenizer of features whose encoder has other weights than the model's own."""
    if "encoder" not in config.companions.get(TOKENIZER, {}).get("model", {}):
        return
    mine = TARGET_ENCODER if TARGET_ENCODER in config.model else ENCODER
    theirs = f"{TOKENIZER}.{ENCODER}."
    found = {name.removeprefix(theirs): x for name, x in filled.items() if name.startswith(theirs)}
    own = {
        name.removeprefix(f"{mine}."): x
        for name, x in filled.items()
        if name.startswith(f"{mine}.")
    }
    if digest(on_host(found)) != digest(on_host(own)):
        raise UserError(
            f"companions.{TOKENIZER}.source {config.companions[TOKENIZER].source} was trained on "
            f"features of other weights than model.{mine} has; train it with the same "
            f"--config.weights.{mine}.source, or give another tokenizer"
        )


def _filled_by(
    path: str,
    entry: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    what: str,
    filled: Parameters,
    mine: set[str],
    warn: Warn,
) -> Parameters:
    """Return the arrays of the model that an entry fills, on their devices.

    Args:
        path: the entry, for messages.
        entry: its settings.
        arrays: arrays of its source, by their names in the model.
        what: the source in words.
        filled: the arrays of the model and its companions so far.
        mine: the arrays of the model below `into`.
        warn: called with one line if the source lacks some of these.
    """
    into = entry.get("into", "")
    for pattern in entry.get("without", ()):
        if not matching({*arrays, *mine}, (below(into, pattern),)):
            raise UserError(
                f"{path}.without has {pattern!r}, which matches no array below into={into!r}, "
                f"neither of {what} nor of this model{_hint(pattern, into, {*arrays, *mine})}; "
                "remove it"
            )
    wanted = mine - _left_out(entry, mine)
    lacking = sorted(wanted - arrays.keys())
    if wanted and len(lacking) == len(wanted):
        raise UserError(f"{path}: {what} has no array below into={into!r}; give another source")
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        warn(f"{path}: {what} lacks {lacking[0]}{more}, which keep their initial values")
    placed = {}
    # In the same order in all processes.
    for key in sorted(arrays.keys() - _left_out(entry, arrays)):
        if key not in mine:
            raise UserError(
                f"{path}: {what} has {key}, which this model does not have; leave it out with "
                f"--config.{path}.without"
            )
        placed[key] = _placed(path, key, arrays[key], filled[key])
    return placed


def _hint(pattern: str, into: str, names: Iterable[str]) -> str:
    return did_you_mean(pattern, sorted(name.removeprefix(below(into, "")) for name in names))


def _refuse_shapes(filled: Parameters, config: ConfigDict) -> None:
    """Refuse arrays that no source has filled."""
    missing = sorted(k for k, x in filled.items() if isinstance(x, jax.ShapeDtypeStruct))
    if not missing:
        return
    key = missing[0]
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    if (companion := key.split(".")[0]) in config.companions:
        raise UserError(
            f"companions.{companion}.source {config.companions[companion].source} lacks "
            f"{key}{more}; give a source that has all arrays"
        )
    entries = [name for name, x in in_order(config.weights) if key.startswith(below(x["into"], ""))]
    raise UserError(
        f"weights.{entries[-1]}: nothing fills {key}{more}, which is frozen; give a source that "
        f"has it, or train it: change --config.weights.{entries[-1]}.frozen"
    )


def _arrays_of(
    path: str, entry: Mapping[str, Any], config: ConfigDict, training: Any, warn: Warn
) -> tuple[dict[str, np.ndarray], str]:
    """Return an entry's arrays by their names in the trained model, and where they come from."""
    into, source = entry.get("into", ""), entry["source"]
    kind = "a trained model" if is_trained(source) else "no trained model"
    if hosts.is_multi_process():
        hosts.refuse_differences({f"{path}.source={source}": kind})
    if kind == "a trained model":
        trained = _open_together(f"{path}.source={source}", source, warn)
        if trained is None:
            raise UserError(f"{path}.source: {source} has no usable checkpoint; train it first")
        prefix = below(into, "")
        arrays = {k: x for k, x in trained.arrays.items() if k.startswith(prefix)}
        return arrays, trained.what
    skeleton = training.definitions["model"].skeleton()
    part = _part_of(skeleton, into)
    layers_of = {TinyEncoder: "encoder", TinyDecoder: "decoder"}.get(type(part))
    if into not in (ENCODER, TARGET_ENCODER) and layers_of is None:
        raise UserError(
            f"{path}.source is {source!r}, which is no workdir and no saved model; expected one "
            f"of these for into={into!r}"
        )
    expected = {
        name.removeprefix(f"{into}."): x
        for name, x in {**training.state.params, **training.frozen}.items()
        if name.startswith(f"{into}.")
    }

    def load() -> tuple[dict[str, np.ndarray], str]:
        if layers_of is not None:
            return load_taesd(source, layers_of, expected, path)
        return load_encoder(source, config.model[into], expected, part.position_grid)

    arrays, what = _together(  # each process reads its own files
        f"{path}.source={source}", load, lambda found: digest(found[0])
    )
    return {below(into, name): x for name, x in arrays.items()}, what


def _part_of(model: Any, into: str) -> Any:
    """Return the module of a name such as "tokenizer.encoder"; None: it is no module."""
    for name in into.split("."):
        model = getattr(model, name, None)
    return model


def _placed(path: str, name: str, array: np.ndarray, like: Any) -> jax.Array:
    if like is None or tuple(like.shape) != tuple(np.shape(array)):
        expected = "no such array" if like is None else str(list(like.shape))
        raise UserError(
            f"{path}: {name} has shape {list(np.shape(array))}, this model has {expected}; give a "
            "source of the same architecture"
        )
    return place_array(np.asarray(array, like.dtype), like)


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return a SHA-256 digest of arrays: their names, dtypes, shapes and values."""
    found = hashlib.sha256()
    for name, value in sorted(arrays.items()):
        found.update(f"{name} {value.dtype} {value.shape}\n".encode())
        found.update(np.ascontiguousarray(value).tobytes())
    return found.hexdigest()
