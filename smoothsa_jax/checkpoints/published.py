"""Published state dicts: which config one belongs to, and its arrays by our names.

The keys and shapes of a state dict identify its model, but not the data set that it was trained on.
If several recipes share a model, one has to be chosen by name.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from smoothsa_jax.config.load import CONFIGS_PARENT, load_config
from smoothsa_jax.config.values import canonical, image_size_of
from smoothsa_jax.config.words import split_words
from smoothsa_jax.errors import UserError
from smoothsa_jax.interop.authors import DETACH_FLAG, HEAD, from_authors, to_authors
from smoothsa_jax.interop.programs import GENERA1Z, OCLF, SPOT, Program
from smoothsa_jax.interop.table import describe, mismatches
from smoothsa_jax.models.build import build_head, slot_model_shapes
from smoothsa_jax.models.parameters import split

StateDict = Mapping[str, np.ndarray]
CONFIGS = CONFIGS_PARENT / "configs"
OWN = "own.py"  # for a user's pictures, which no published model was trained on
RECOGNITION, STUDENT = "recognition", "student"  # words of a config file, after the colon
SLOT_MODEL, TEACHER = "slot_model", "teacher"  # companions
# Keys of the initial queries, one for each slot or one for all: (..., N, D) or (..., 1, D).
QUERIES = ("initializ.mean", "slots_init.weight", "slot_mu", "slots_mu")


@dataclasses.dataclass(frozen=True)
class Family:
    """The models of one system in one program.

    Attributes:
        title: in messages.
        program: how it names arrays; None: SmoothSA's own table.
        has: whether a state dict with these keys is one.
        words: of its recipes, each behind the data sets that `data` lists.
    """

    title: str
    program: Program | None
    has: Callable[[Iterable[str]], bool]
    words: tuple[str, ...]


def _any(*parts: str) -> Callable[[Iterable[str]], bool]:
    return lambda keys: any(part in key for key in keys for part in parts)


# The first that fits counts.
FAMILIES = (
    Family(
        "DINOSAUR",
        OCLF,
        _any("models.perceptual_grouping."),
        ("dinosaur,original", "dinosaur,ar,original"),
    ),
    Family("SPOT", SPOT, _any("slot_attn."), ("spot,original", "spot,original,student")),
    Family("SPOT's re-implementation", GENERA1Z, _any("m.teacher."), ("spot,genera1z,student",)),
    Family(
        "MetaSlot",
        GENERA1Z,
        _any("aggregat.vq."),
        ("metaslot,genera1z", "metaslot,ar,genera1z", "metaslot,b16,genera1z"),
    ),
    Family("SmoothSA", None, _any("initializ.qinit", DETACH_FLAG), ()),
    Family("SPOT's re-implementation", GENERA1Z, _any("decode.bos"), ("spot,genera1z",)),
    Family(
        "DINOSAUR's re-implementation",
        GENERA1Z,
        _any("decode.backbone.0.weight"),
        ("dinosaur,genera1z", "dinosaur,r384,genera1z"),
    ),
    Family("DIAS", GENERA1Z, _any("decode.mask_token"), ("dias,genera1z",)),
)
SMOOTHSA = next(family for family in FAMILIES if family.program is None)
# Data sets with published models of other systems than SmoothSA, and their words.
DATA = ("clevrtex", "coco", "voc", "movi_c:image", "movi_e:image")


def recipes() -> dict[str, ConfigDict]:
    """Return every config in configs/ whose model has a published program, by name.

    Raises:
        UserError: there are no configs, for example in a copy of the package alone.
    """
    found = {}
    for path in sorted(CONFIGS.glob("*.py")):
        if path.name == OWN or "def get_config" not in path.read_text():
            continue
        config = load_config(str(path))
        if config.model.encoder.name != "vit":
            continue
        found[path.stem] = config
        if (head := _recognition_of(path, config)) is not None:
            found[f"{path.stem}:{RECOGNITION}"] = head
    if not found:
        raise UserError(
            f"no configs found in {CONFIGS}; run from a checkout of the project, or give the "
            "config file with --config"
        )
    for family, data in itertools.product(FAMILIES, DATA):
        for words in family.words:
            name = f"{data},{words}" if ":" in data else f"{data}:{words}"
            file, _, after = name.partition(":")
            if (CONFIGS / f"{file}.py").is_file():
                spec = f"{CONFIGS / file}.py:{after}"
                found[name] = with_teacher(load_config(spec), spec)
    return found


def with_teacher(config: ConfigDict, spec: str) -> ConfigDict:
    """Return a config with the model of its teacher, if it has one.

    A file of the original SPOT's student has no teacher; its training cannot go on.

    Args:
        config: the config.
        spec: what it was loaded from, such as "configs/coco.py:spot,genera1z,student".
    """
    if TEACHER not in config.companions or "model" in config.companions[TEACHER]:
        return config
    config = config.copy_and_resolve_references().unlock()
    if program_of(config) is SPOT:
        del config.companions[TEACHER]
        del config.losses.attention_match
        return canonical(config)
    path, _, words = spec.partition(":")
    earlier = ",".join(word for word in split_words(words) if word != STUDENT)
    teacher = load_config(f"{path}:{earlier}")
    config.companions[TEACHER].update(title=teacher.title, model=teacher.model)
    return canonical(config)


def lacks_teacher(config: ConfigDict) -> bool:
    """Tell whether a config is that of a student whose file has no teacher."""
    return "target_encoder" in config.model and TEACHER not in config.companions


def _recognition_of(path: Path, slots: ConfigDict) -> ConfigDict | None:
    try:
        config = load_config(f"{path}:{RECOGNITION}")
    except UserError:  # the data set has no categories
        return None
    return with_slot_model(config, slots)


def with_slot_model(config: ConfigDict, slots: ConfigDict) -> ConfigDict:
    """Return a recognition config that contains the slot model of another config."""
    config = config.copy_and_resolve_references().unlock()
    config.companions.slot_model.update(title=slots.title, model=slots.model)
    return canonical(config)


def program_of(config: ConfigDict) -> Program | None:
    """Return the program that a config's model belongs to; None: SmoothSA's.

    The numerics of slot attention tell the programs apart.
    """
    model = config.model
    if SLOT_MODEL in config.companions or "cold" in model.get("initializer", {}):
        return None
    if model.aggregator.get("epsilon_in", "sum") == "sum":
        return GENERA1Z
    return OCLF if model.projection.get("to_slots", False) else SPOT


def from_state_dict(
    state_dict: StateDict, config: ConfigDict, buffers: Iterable[str] = ()
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Convert a state dict to the arrays of a config's model and of its companions.

    Args:
        state_dict: with exactly `expected_keys(config)`.
        config: the whole config.
        buffers: names of the model's buffers to convert too.

    Returns:
        The arrays by our names, companions' with theirs in front; and what else the file tells, as
        JSON values, for `to_state_dict`.
    """
    program = program_of(config)
    if program is None:
        flag = next((bool(x) for key, x in state_dict.items() if key.endswith(DETACH_FLAG)), False)
        arrays = renamed(from_authors(state_dict), config, to_ours=True)
        return arrays, {"detach": flag}
    found: dict[str, np.ndarray] = {}
    for prefix, start, model in _models_of(config):
        own = {key: x for key, x in state_dict.items() if key.startswith(start)}
        own = {key.replace(start, "m.", 1) if start else key: x for key, x in own.items()}
        names = {*_shapes(_as_json(model), image_size_of(config)), *buffers}
        arrays = program.to_ours(own, names, model)
        found |= {f"{prefix}{name}": x for name, x in arrays.items()}
    return found, program.kept(state_dict)


def to_state_dict(
    arrays: Mapping[str, np.ndarray], config: ConfigDict, kept: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Convert the arrays of a config's model and of its companions to a state dict.

    Args:
        arrays: by our names; buffers too, where the program has them.
        config: the whole config.
        kept: what `from_state_dict` returned, or nothing.

    Raises:
        UserError: the program has no place for an array.
    """
    program = program_of(config)
    if program is None:
        return to_authors(renamed(arrays, config, to_ours=False), kept.get("detach", False))
    companions = tuple(f"{name}." for name in config.companions)
    found: dict[str, np.ndarray] = {}
    for prefix, start, model in _models_of(config):
        own = {
            name.removeprefix(prefix): x
            for name, x in arrays.items()
            if (name.startswith(prefix) if prefix else not name.startswith(companions))
        }
        state_dict = program.to_theirs(own, model, kept)
        found |= {
            f"{start}{key.removeprefix('m.')}" if start else key: x for key, x in state_dict.items()
        }
    return found


def _models_of(config: ConfigDict) -> list[tuple[str, str, ConfigDict]]:
    """Return (prefix of our names, prefix of their keys, model) of each model in a file."""
    program, teacher = program_of(config), config.companions.get(TEACHER)
    if program is not GENERA1Z:
        return [("", "", config.model)]
    if teacher is None:
        return [("", "m.", config.model)]
    return [("", "m.student.", config.model), (f"{TEACHER}.", "m.teacher.", teacher.model)]


def renamed(
    arrays: Mapping[str, np.ndarray], config: ConfigDict, to_ours: bool
) -> dict[str, np.ndarray]:
    """Rename between a run's arrays and those of `interop.authors`.

    In a run of recognition the head has no prefix and the slot model's arrays have one; there it
    is the other way around.
    """
    if SLOT_MODEL not in config.companions:
        return dict(arrays)
    slots = f"{SLOT_MODEL}."
    mine, other = (HEAD, slots) if to_ours else (slots, HEAD)
    return {
        name.removeprefix(mine) if name.startswith(mine) else f"{other}{name}": array
        for name, array in arrays.items()
    }


def expected_keys(config: ConfigDict) -> dict[str, str]:
    """Describe the state dict of a config's model, without keys that stand for no array.

    Returns:
        key -> dtype and shape.

    Raises:
        UserError: no program has this model.
    """
    program, size = program_of(config), image_size_of(config)
    if program is not None:
        shapes: dict[str, Any] = {}
        for prefix, _, model in _models_of(config):
            found = _shapes(_as_json(model), size)
            shapes |= {f"{prefix}{name}": x for name, x in found.items()}
        arrays = {name: np.broadcast_to(x.dtype.type(0), x.shape) for name, x in shapes.items()}
        return describe(to_state_dict(arrays, config, {}))
    companion = config.companions.get(SLOT_MODEL)
    model = config.model if companion is None else companion.model
    head = None if companion is None else json.dumps(config.model.to_dict())
    return dict(_expected_keys(_as_json(model), size, head))


def _as_json(model: ConfigDict) -> str:
    """Return a model's config, without what does not affect its arrays."""
    found = model.to_dict()
    if not _has_query_of_each_slot(model):
        found["num_slots"] = 1
    return json.dumps(found, sort_keys=True)


def _has_query_of_each_slot(model: ConfigDict) -> bool:
    initializer = model.initializer
    return initializer.get("separate", False) or initializer.name == "learned"


@functools.cache  # most recipes share a model, and each model takes a second
def _shapes(model: str, image_size: tuple[int, int]) -> dict[str, Any]:
    """Return the shapes of a slot model's arrays."""
    _, trained, frozen = split(slot_model_shapes(ConfigDict(json.loads(model)), image_size))
    return {**trained, **frozen}


@functools.cache
def _expected_keys(model: str, image_size: tuple[int, int], head: str | None) -> dict[str, str]:
    """Describe SmoothSA's state dict of a slot model and an optional head on it, given as JSON."""
    config, shapes = ConfigDict(json.loads(model)), dict(_shapes(model, image_size))
    if head is not None:
        settings = ConfigDict(json.loads(head))
        of_head = nnx.eval_shape(lambda: build_head(settings, config.slot_size, 0))
        shapes |= {f"{HEAD}{name}": x for name, x in split(of_head)[1].items()}
    # The table transforms arrays, not shapes.
    arrays = {name: np.broadcast_to(x.dtype.type(0), x.shape) for name, x in shapes.items()}
    return describe(to_authors(arrays, detach=False))


def family_of(keys: Iterable[str]) -> Family | None:
    """Return the family of a state dict with these keys, if there is one."""
    keys = list(keys)
    return next((family for family in FAMILIES if family.has(keys)), None)


def arrays_of(state_dict: StateDict, program: Program | None) -> StateDict:
    """Return a state dict by today's keys, without those that stand for no array of a model."""
    if program is None:
        return state_dict
    prefixes = ("m.student.", "m.teacher.", "m.")

    def is_array(key: str) -> bool:
        bare = next((key.removeprefix(p) for p in prefixes if key.startswith(p)), key)
        return not program.ignored(bare)

    return {program.today(key): x for key, x in state_dict.items() if is_array(key)}


def configs_of(state_dict: StateDict, configs: Mapping[str, ConfigDict]) -> list[str]:
    """Return the names of the configs whose models match a state dict exactly.

    Keys, dtypes and shapes all have to match.

    Raises:
        UserError: no config matches; the message compares the state dict with the closest one.
    """
    family = family_of(state_dict)
    if family is not None and all(program_of(x) is not family.program for x in configs.values()):
        raise UserError(
            f"it is a checkpoint of {family.title}, and {', '.join(configs)} describes a model of "
            "another program; give another --config, or none"
        )
    # To make a model of shapes takes half a second. One of another system cannot match, unless the
    # user has chosen the config.
    near = {name: x for name, x in configs.items() if _is_of(name, x, family)} or configs
    near = {name: x for name, x in near.items() if _may_be(x, state_dict)} or near
    found = describe(arrays_of(state_dict, None if family is None else family.program))
    layouts = {name: _described(config) for name, config in near.items()}
    exact = [name for name, expected in layouts.items() if expected == found]
    if exact:
        return exact
    common = {
        name: len(found.items() & expected.items()) - abs(len(found) - len(expected))
        for name, expected in layouts.items()
    }
    nearest = max(common, key=lambda name: common[name])
    expected = layouts[nearest]
    if not found.keys() & expected.keys():
        known = (family or SMOOTHSA,) if len(configs) == 1 else FAMILIES
        raise UserError(
            f"no checkpoint of {' or '.join(dict.fromkeys(x.title for x in known))}: it has "
            f"{len(found)} keys such as {next(iter(found), None)!r}, expected those of the "
            f"authors' program, such as {next(iter(expected))!r}"
        )
    raise UserError(
        f"the keys do not fit; against the config {nearest}, "
        f"{'; '.join(mismatches(found, expected))}; download the file again, or give its config "
        "with --config"
    )


def _is_of(name: str, config: ConfigDict, family: Family | None) -> bool:
    family = family or SMOOTHSA
    if program_of(config) is not family.program:
        return False
    words = set(name.partition(":")[2].split(",")) - {"image"}
    return family.program is None or any(words == set(x.split(",")) for x in family.words)


def _may_be(config: ConfigDict, state_dict: StateDict) -> bool:
    """Tell by two signs whether a state dict may be of a config's model, without making it."""
    companion = config.companions.get(SLOT_MODEL)
    model = config.model if companion is None else companion.model
    separate = _has_query_of_each_slot(model)
    for key, array in state_dict.items():
        if key.endswith("patch_embed.proj.weight") and array.ndim == 4:
            if (array.shape[0], array.shape[-1]) != (model.encoder.width, model.encoder.patch):
                return False
        elif key.endswith(QUERIES) and not key.startswith("m.teacher."):
            if array.ndim > 1 and array.shape[-2] != (model.num_slots if separate else 1):
                return False
    return True


def _described(config: ConfigDict) -> dict[str, str]:
    expected, program = expected_keys(config), program_of(config)
    return {key: expected[key] for key in arrays_of(expected, program)}
