"""Configs as values: flatten one, compare two, keep one as JSON.

Sequences in a config are tuples, so that it equals itself after a trip through JSON.
"""

import fnmatch
import json
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from smoothsa_jax.config.renewed import renewed

# What may change between two runs in one workdir: how the run is watched, kept, measured or spread
# over devices, or where its data lie. None of it enters the weights. `*` stands for any name.
FREE_TO_DIFFER = (
    "name",
    "title",
    "checkpoint",
    "eval",
    "log",
    "mesh",
    "data.folder",
    "data.cache",
    "data.keep",
    "train.accumulate",
    "train.num_threads",
    "train.num_workers",
    "train.xla_flags",
    "train.remat",
    "train.scan_unroll",
    # A run keeps the weights of its companions, so the runs they came from may move.
    "companions.*.source",
    "companions.*.title",
)
# A folder that may move between two runs, but not come or go: its contents are compared when it is
# read.
MOVABLE = ("data.features", "data.slots")
# What the program adds to a config when a run begins, so that a config file lacks it.
_FILLED = re.compile(r"companions\.[^.]+\.model\.")


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


def is_absent(companion: Mapping[str, Any]) -> bool:
    """Whether an entry of `companions` stands for none: its source is None."""
    return "source" in companion and companion["source"] is None


def to_json(config: ConfigDict) -> str:
    """The config as JSON text with sorted keys; `from_json` gives it back, tuples included."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ConfigDict:
    """The config that `to_json` wrote, with today's keys (see `renewed.py`)."""
    return canonical(ConfigDict(_tuples(renewed(json.loads(text)))))


def differences(stored: ConfigDict, asked: ConfigDict) -> list[str]:
    """The differences that affect the weights, one text per key; empty if the run may resume."""
    found, wanted = flatten(stored), flatten(asked)
    lines = []
    for key in sorted(found.keys() | wanted.keys()):
        if _is_free(key) or _is_filled_on_one_side(key, found, wanted):
            continue
        old, new = found.get(key, _ABSENT), wanted.get(key, _ABSENT)
        if key in MOVABLE and old and new:
            continue
        if type(old) is not type(new) or old != new:
            lines.append(f"{key} (found {old!r}, asked {new!r})")
    return lines


def _is_free(key: str) -> bool:
    return any(
        fnmatch.fnmatchcase(key, pattern)
        for free in FREE_TO_DIFFER
        for pattern in (free, f"{free}.*")
    )


def _is_filled_on_one_side(key: str, *sides: Mapping[str, Any]) -> bool:
    """Whether a key is of a companion's model, which only one of two configs has."""
    match = _FILLED.match(key)
    return match is not None and not all(
        any(other.startswith(match.group()) for other in side) for side in sides
    )


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
