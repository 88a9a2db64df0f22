"""Configs as values: flatten one, compare two, keep one as JSON.

Sequences in a config are tuples, so that it equals itself after a trip through JSON.
"""

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

# What may change between two runs in one workdir: it says how the run is watched, kept, measured or spread over
# devices, or where its data lie, and does not enter the weights.
FREE_TO_DIFFER = (
    "name",
    "checkpoint",
    "eval",
    "mesh",
    "data.folder",
    "data.keep",
    "train.accumulate",
    "train.log_every",
    "train.num_threads",
    "train.num_workers",
    "train.xla_flags",
    "train.remat",
    "train.scan_unroll",
)


# A folder that may move between two runs, but not come or go: what it holds is compared when it is read.
MOVABLE = ("data.features",)


# Keys that configs of older runs lack, and what they stand for there.
ADDED = {"data.features": "", "matmul_precision": "default"}


def canonical(config: ConfigDict) -> ConfigDict:
    """The same config, locked, with every list a tuple and every reference resolved."""
    return ConfigDict(_tuples(config.to_dict())).lock()


def flatten(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"train.num_steps": 100, ...}` of a nested config."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def image_size_of(config: ConfigDict) -> tuple[int, int]:
    """(height, width) of the frames, of which a config may give the one number that both are."""
    size = config.data.image_size
    return (size, size) if isinstance(size, int) else tuple(size)


def to_json(config: ConfigDict) -> str:
    """The config as JSON text with sorted keys; `from_json` gives it back, tuples included."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ConfigDict:
    """The config that `to_json` wrote."""
    return canonical(ConfigDict(_tuples(json.loads(text))))


def differences(stored: ConfigDict, asked: ConfigDict) -> list[str]:
    """What differs where it matters to the weights, one text a key; empty when a run may go on."""
    found, wanted = flatten(stored), flatten(asked)
    lines = []
    for key in sorted(found.keys() | wanted.keys()):
        if any(key == free or key.startswith(free + ".") for free in FREE_TO_DIFFER):
            continue
        absent = ADDED.get(key, _ABSENT)
        old, new = found.get(key, absent), wanted.get(key, absent)
        if key in MOVABLE and old and new:
            continue
        if type(old) is not type(new) or old != new:
            lines.append(f"{key} (found {old!r}, asked {new!r})")
    return lines


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


_ABSENT = _Absent()


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tuples(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_tuples(inner) for inner in value)
    return value
