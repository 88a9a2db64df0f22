"""A table between two layouts of the same arrays, read in either direction.

A row is (their name, our name, leaves). `{}` in the names stands for a number, the same on both sides; `leaves` says how the
arrays below that name are called on either side and how each is transformed.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Transform:
    """An array of theirs as ours, and back."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


def _patches_to_ours(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])


def _patches_to_theirs(array: np.ndarray) -> np.ndarray:
    patch = round((array.shape[0] / 3) ** 0.5)
    return array.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)


SAME = Transform(lambda array: array, lambda array: array)
# torch's Linear weight (out, in) <-> kernel (in, out).
KERNEL = Transform(np.transpose, np.transpose)
# Convolution weight (C, 3, p, p) <-> kernel (p * p * 3, C) over patches of channels-last pixels.
PATCHES = Transform(_patches_to_ours, _patches_to_theirs)

Leaves = Mapping[str, tuple[str, Transform]]
Row = tuple[str, str, Leaves]

LINEAR: Leaves = {"weight": ("kernel", KERNEL), "bias": ("bias", SAME)}
CONVOLUTION: Leaves = {"weight": ("kernel", PATCHES), "bias": ("bias", SAME)}
NORM: Leaves = {"weight": ("scale", SAME), "bias": ("bias", SAME)}
RAW: Leaves = {"": ("", SAME)}  # the name is the array's own


class KeyTable:
    """Rows as above; where two rows fit, the first counts."""

    def __init__(self, rows: Iterable[Row]):
        self._to_ours, self._to_theirs = [], []
        for theirs, ours, leaves in rows:
            for their_leaf, (our_leaf, transform) in leaves.items():
                key, name = _below(theirs, their_leaf), _below(ours, our_leaf)
                self._to_ours.append((_pattern(key), name, transform))
                self._to_theirs.append((_pattern(name), key, transform))

    def ours(self, key: str) -> tuple[str, Transform] | None:
        """Our name for a key of theirs; None where no row has it."""
        return _first(self._to_ours, key)

    def theirs(self, name: str) -> tuple[str, Transform] | None:
        """Their key for a name of ours; None where no row has it."""
        return _first(self._to_theirs, name)


def _below(name: str, leaf: str) -> str:
    return f"{name}.{leaf}" if leaf else name


def _pattern(name: str) -> re.Pattern:
    return re.compile(re.escape(name).replace(r"\{\}", r"(\d+)"))


def _first(rows: list, text: str) -> tuple[str, Transform] | None:
    for pattern, name, transform in rows:
        if match := pattern.fullmatch(text):
            return name.format(*match.groups()), transform
    return None


def describe(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Type and shape of each, such as "float32[384, 1536]"."""
    return {name: f"{np.dtype(x.dtype).name}{list(x.shape)}" for name, x in arrays.items()}


def mismatches(found: Mapping[str, str], expected: Mapping[str, str], limit: int = 5) -> list[str]:
    """What is missing, left over or of another shape, a text for each of the three; empty where all fits.

    Args:
        found, expected: as `describe` gives them.
        limit: how many names each text lists before it only counts.
    """
    both = found.keys() & expected.keys()
    kinds = {
        "missing": [x for x in expected if x not in both],
        "left over": [x for x in found if x not in both],
        "of the wrong shape": [
            f"{x} (found {found[x]}, expected {expected[x]})"
            for x in found
            if x in both and found[x] != expected[x]
        ],
    }
    return [f"{kind}: {_listed(names, limit)}" for kind, names in kinds.items() if names]


def _listed(names: list[str], limit: int) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
