"""Find the config that a state dict of the authors' program belongs to.

The keys and shapes of a state dict identify its model, but not the data set that it was trained on.
If several recipes share a model, one has to be chosen by name.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from smoothsa_jax.config.load import CONFIGS_PARENT, load_config
from smoothsa_jax.config.values import canonical, image_size_of
from smoothsa_jax.errors import UserError
from smoothsa_jax.interop.authors import HEAD, to_authors
from smoothsa_jax.interop.table import describe, mismatches
from smoothsa_jax.models.build import build_head, slot_model_shapes
from smoothsa_jax.models.parameters import split

StateDict = Mapping[str, np.ndarray]
CONFIGS = CONFIGS_PARENT / "configs"
OWN = "own.py"  # for a user's pictures, which no published model was trained on
RECOGNITION = "recognition"  # a variant of a config file, after the colon


def recipes() -> dict[str, ConfigDict]:
    """Return every config in configs/ whose model the authors' program has, by name.

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
    return found


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


def expected_keys(config: ConfigDict) -> dict[str, str]:
    """Describe the authors' state dict of a config's model.

    Returns:
        key -> dtype and shape.

    Raises:
        UserError: their program does not have this model.
    """
    companion = config.companions.get("slot_model")
    model = (config.model if companion is None else companion.model).to_dict()
    model["num_slots"] = 1  # does not affect the arrays
    head = None if companion is None else json.dumps(config.model.to_dict())
    return dict(_expected_keys(json.dumps(model), image_size_of(config), head))


@functools.cache  # most recipes share a model, and each model takes a second
def _expected_keys(model: str, image_size: tuple[int, int], head: str | None) -> dict[str, str]:
    """Do the same for a slot model and an optional head on it, given as JSON."""
    config = ConfigDict(json.loads(model))
    shapes = split(slot_model_shapes(config, image_size))[1]
    if head is not None:
        settings = ConfigDict(json.loads(head))
        of_head = nnx.eval_shape(lambda: build_head(settings, config.slot_size, 0))
        shapes |= {f"{HEAD}{name}": x for name, x in split(of_head)[1].items()}
    # The table transforms arrays, not shapes.
    arrays = {name: np.broadcast_to(x.dtype.type(0), x.shape) for name, x in shapes.items()}
    return describe(to_authors(arrays, detach=False))


def configs_of(state_dict: StateDict, configs: Mapping[str, ConfigDict]) -> list[str]:
    """Return the names of the configs whose models match a state dict exactly.

    Keys, dtypes and shapes all have to match.

    Raises:
        UserError: no config matches; the message compares the state dict with the closest one.
    """
    found = describe(state_dict)
    layouts = {name: expected_keys(config) for name, config in configs.items()}
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
        raise UserError(
            f"no checkpoint of SmoothSA: it has {len(found)} keys such as "
            f"{next(iter(found), None)!r}, expected those of the authors' program, such as "
            f"{next(iter(expected))!r}"
        )
    raise UserError(
        f"the keys do not fit; against the config {nearest}, "
        f"{'; '.join(mismatches(found, expected))}; download the file again, or give its config "
        "with --config"
    )
