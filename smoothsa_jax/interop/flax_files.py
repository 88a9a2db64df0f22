"""Read and write flax's msgpack files: nested dictionaries of arrays, by names with slashes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import serialization, traverse_util

from smoothsa_jax.errors import UserError

SUFFIXES = (".msgpack", ".flax")
_NARROW = ("float16", "bfloat16")
_NUMBERS = (*_NARROW, "float32", "float64", "int32", "int64", "uint8", "uint32")
# Where the parameters may lie inside a training state.
INSIDE = ("params", "target", "optimizer", "variables", "model")


def flattened(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the arrays of nested dictionaries, by names joined by slashes."""
    flat = traverse_util.flatten_dict(dict(tree), sep="/")
    return {name: np.asarray(x) for name, x in flat.items()}


def parameters_of(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the parameters inside a training state, or the tree itself if it has no such key."""
    for name in INSIDE:
        if isinstance(tree.get(name), Mapping):
            return parameters_of(tree[name])
    return tree


def read_msgpack(path: str | Path) -> dict[str, np.ndarray]:
    """Read the parameters of a file, or of the training state in it.

    Raises:
        UserError: the file does not exist, or is not such a file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file: give the path of a .msgpack file")
    try:
        tree = serialization.msgpack_restore(path.read_bytes())
        found = flattened(parameters_of(tree))
    except Exception as error:  # msgpack raises many kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise UserError(
            f"{path} cannot be read as flax's msgpack ({reason}): it may be cut short; fetch it "
            "again"
        ) from error
    if not found or not all(x.dtype.name in _NUMBERS for x in found.values()):
        raise UserError(
            f"{path} holds no dictionary of arrays; expected a model's parameters, written by flax"
        )
    return {
        name: x.astype(np.float32) if x.dtype.name in _NARROW else x for name, x in found.items()
    }


def write_msgpack(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays, by names with slashes, as nested dictionaries."""
    tree = traverse_util.unflatten_dict(dict(arrays), sep="/")
    Path(path).write_bytes(serialization.msgpack_serialize(tree))
