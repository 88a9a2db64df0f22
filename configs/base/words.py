"""How a config is composed of a data set and words.

A config is built in this order, and later settings win:

    1. `defaults` (keys.py)
    2. the facts of the data set, which the system fits itself to: slots, frames, boxes, encoder
    3. the system (a file of `configs/systems/`), its variant, size, queries and version, and the
       word `smooth`
    4. the data set's own settings, and its `small` block if it has one
    5. the task, such as `recognition`
    6. the word `smoke` (sizes.py)
    7. what a frozen tokenizer of an earlier run decides (tokens.py)
    8. the command line

A file of `configs/systems/` states:

    KIND                            "system", or "task" for a model trained on top of another run
    TITLE                           of a system, as tables and plots show it
    apply(config, data)             puts the system's parts, losses and optimizer on a config
    apply(config, data, source)     the same for a task; `source` is the workdir of the run it
                                    reads
    fits(data)                      optional: whether the system can use the data set
    WORDS                           optional: word -> (kind, function like `apply`), where the
                                    kind is "system variant", "size", "queries", "version" or
                                    "task"

A function of a word gets the other words that it has arguments for: `variant`, that of the system,
`size` and `version`; None: not given.

A new file there is a new word; there is no list to extend.
"""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from configs.base.data_sets import DataSet, only_views
from configs.base.keys import defaults
from configs.base.parts import draws_any_number
from configs.base.sizes import make_small, smoke
from configs.base.tokens import TOKENIZER, fit_first_stage
from smoothsa_jax.config.words import KINDS, choose
from smoothsa_jax.errors import UserError

DEFAULT_SYSTEM = "smoothsa"


def words_of(data: DataSet) -> dict[str, str]:
    """word -> kind, of all words that fit a data set."""
    words = dict.fromkeys(data.variants, "data variant")
    found = {"smooth": "smooth", "smoke": "smoke"}
    for name, module in systems().items():
        always = name == DEFAULT_SYSTEM or not only_views(data)
        fits = getattr(module, "fits", lambda data, always=always: always)
        if not fits(data):
            continue
        found[name] = module.KIND
        found |= {word: kind for word, (kind, _) in getattr(module, "WORDS", {}).items()}
    if both := sorted(words.keys() & found.keys()):
        raise UserError(
            f"{both[0]!r} is a word of the data set {data.name} and a {found[both[0]]}; rename one"
        )
    return words | found


def compose(data: DataSet, words: str = "") -> ConfigDict:
    """The config of a data set and words such as `"recognition,smoke"`.

    Raises:
        UserError: a word that does not fit, or two words of one kind.
    """
    chosen = choose(words, words_of(data))
    if variant := chosen.get("data variant"):
        data = data.variants[variant](data)
    return _of_words(data, chosen)


def _of_words(data: DataSet, chosen: Mapping[str, str]) -> ConfigDict:
    """The config of a data set, with its variant, and of kind -> word in the order of `KINDS`."""
    task = chosen.get("task")
    config = _of_system(data, chosen)
    config.name = _name(data, chosen, without=("task", "smoke"))
    earlier = config.copy_and_resolve_references()
    if task:
        _apply(chosen, "task", config, data, f"runs/{config.name}")
    if "smoke" in chosen:
        smoke(config, data)
        smoke(earlier, data)
        for companion in (x for n, x in config.companions.items() if n != TOKENIZER):
            if companion.get("source") is not None:  # untrained, of the earlier run's smoke form
                companion.update(source="", title=earlier.title, model=earlier.model)
    if TOKENIZER in config.companions:
        _add_first_stage(config, data, chosen)
    config.name = _name(data, chosen)
    return config


def _of_system(data: DataSet, chosen: Mapping[str, str]) -> ConfigDict:
    config = defaults(data.name, num_steps=data.num_steps, batch_size=data.batch_size)
    config.data = ConfigDict(data.data)
    config.model = ConfigDict({"num_slots": data.num_slots, "encoder": data.encoder})
    entry = {"into": "encoder", "source": data.encoder_source, "frozen": ("*",)}
    if data.encoder_source == "random":
        entry["seed"] = 0  # of its own, so that runs of several seeds share their features
    config.weights.encoder = ConfigDict(entry)
    system = systems()[chosen.get("system", DEFAULT_SYSTEM)]
    config.title = system.TITLE
    system.apply(config, data)
    for kind in ("system variant", "size", "queries", "version"):
        if kind in chosen:
            _apply(chosen, kind, config, data)
    if "smooth" in chosen:
        if config.model.initializer.name == "warmed":
            raise UserError(f"{system.TITLE} already has what 'smooth' adds; leave that word out")
        if config.model.initializer.name == "tokens":
            raise UserError(f"{config.title} has no slots for 'smooth'; leave that word out")
        systems()[DEFAULT_SYSTEM].smooth(config)
        config.title += ", smooth"
    of_system = config.eval.prune
    config.update(data.settings)
    if config.eval.num_slots is not None and "pruning" in config.model:
        # What prunes in training starts with too many slots there as well.
        config.model.num_slots, config.eval.num_slots = config.eval.num_slots, None
    elif config.eval.num_slots is not None and not draws_any_number(config.model):
        # More slots than in training, and pruning, are for queries from one Gaussian.
        config.eval.update(num_slots=None, prune=of_system)
    if data.small is not None:
        make_small(config, data.small)
    return config


def _add_first_stage(config: ConfigDict, data: DataSet, chosen: Mapping[str, str]) -> None:
    """Compose the first stage of the same words; with the word `smoke`, nothing has trained it."""
    apart = ("queries", "smooth")  # the tokens are the same
    first = {kind: word for kind, word in chosen.items() if kind not in apart} | {"task": TOKENIZER}
    ordered = {kind: first[kind] for kind in KINDS if kind in first}
    workdir = None if "smoke" in chosen else f"runs/{_name(data, first, without=('smoke',))}"
    fit_first_stage(config, _of_words(data, ordered), workdir)


def _name(data: DataSet, chosen: Mapping[str, str], without: tuple[str, ...] = ()) -> str:
    """The data set and the words; not the default system, which is the same config without it."""
    words = [
        chosen[kind]
        for kind in KINDS
        if kind in chosen and kind not in without and chosen[kind] != DEFAULT_SYSTEM
    ]
    return "_".join([data.name, *words])


def _apply(chosen: Mapping[str, str], kind: str, *arguments: Any) -> None:
    """Do what the word of that kind does, which may depend on other words."""
    function = _function(chosen, kind)
    kinds = {"variant": "system variant", "size": "size", "version": "version"}
    others = {name: chosen.get(kind) for name, kind in kinds.items()}
    takes = inspect.signature(function).parameters
    function(*arguments, **{name: word for name, word in others.items() if name in takes})


def _function(chosen: Mapping[str, str], kind: str) -> Callable[..., None]:
    """What a word of that kind does: of a file of its own, or of the chosen system's file."""
    word = chosen[kind]
    module = systems().get(word)
    if module is not None and module.KIND == kind:
        return module.apply
    system = chosen.get("system", DEFAULT_SYSTEM)
    words = getattr(systems()[system], "WORDS", {})
    if word not in words or words[word][0] != kind:
        owners = [n for n, m in systems().items() if word in getattr(m, "WORDS", {})]
        raise UserError(
            f"{word!r} is a word of {', '.join(owners)}, not of {system}; write {owners[0]},{word}"
        )
    return words[word][1]


@functools.cache
def systems() -> dict[str, ModuleType]:
    """name -> module, of every file of `configs/systems/`."""
    folder = importlib.import_module("configs.systems").__path__
    names = sorted(info.name for info in pkgutil.iter_modules(folder))
    return {name: importlib.import_module(f"configs.systems.{name}") for name in names}
