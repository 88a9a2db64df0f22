"""A two-way mapping between two layouts of the same arrays.

A row is (their name, our name, leaves). `{}` in a name stands for a number, which is the same on
both sides. `leaves` gives the names of the arrays below that name on either side, and the transform
of each.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Transform:
    """Converts an array from their layout to ours, and back."""

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

# torch's convolution weight (out, in, h, w) <-> kernel (h, w, in, out).
FILTERS = Transform(
    lambda array: array.transpose(2, 3, 1, 0), lambda array: array.transpose(3, 2, 0, 1)
)
# The same of size 1x1 <-> kernel (in, out) of a Linear layer.
ONE_BY_ONE = Transform(lambda array: array[:, :, 0, 0].T, lambda array: array.T[:, :, None, None])

Leaves = Mapping[str, tuple[str, Transform]]
Row = tuple[str, str, Leaves]

LINEAR: Leaves = {"weight": ("kernel", KERNEL), "bias": ("bias", SAME)}
CONVOLUTION: Leaves = {"weight": ("kernel", PATCHES), "bias": ("bias", SAME)}
NORM: Leaves = {"weight": ("scale", SAME), "bias": ("bias", SAME)}
RAW: Leaves = {"": ("", SAME)}  # the row's name is the array's name


class KeyTable:
    """A mapping given by rows; the first matching row applies."""

    def __init__(self, rows: Iterable[Row]):
        self._to_ours, self._to_theirs = [], []
        for theirs, ours, leaves in rows:
            for their_leaf, (our_leaf, transform) in leaves.items():
                key, name = _below(theirs, their_leaf), _below(ours, our_leaf)
                self._to_ours.append((_pattern(key), name, transform))
                self._to_theirs.append((_pattern(name), key, transform))

    def ours(self, key: str) -> tuple[str, Transform] | None:
        """Our name for their key, and the transform; None if no row matches."""
        return _first(self._to_ours, key)

    def theirs(self, name: str) -> tuple[str, Transform] | None:
        """Their key for our name, and the transform; None if no row matches."""
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
    """The type and shape of each array, such as "float32[384, 1536]"."""
    return {name: f"{np.dtype(x.dtype).name}{list(x.shape)}" for name, x in arrays.items()}


def mismatches(found: Mapping[str, str], expected: Mapping[str, str], limit: int = 5) -> list[str]:
    """Describe the arrays that are missing, left over or of the wrong shape, one text each.

    Args:
        found: names and descriptions of the arrays found, from `describe`.
        expected: names and descriptions of the arrays expected, from `describe`.
        limit: the number of names that each text lists before it only counts them.

    Returns:
        At most three texts; none if all arrays fit.
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
