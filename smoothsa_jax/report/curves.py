"""Curves over the steps of training, from its log."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

WINDOWS = 50  # a curve is smoothed over 1 / WINDOWS of its length


class Curve(NamedTuple):
    """Values at certain steps."""

    steps: Float[np.ndarray, "rows"]
    values: Float[np.ndarray, "rows"]


def curves(log: Sequence[dict[str, float]], prefix: str = "") -> dict[str, Curve]:
    """Map each name, without the prefix, to the curve of its finite values; `step` is left out."""
    names = sorted({name for row in log for name in row if name.startswith(prefix)} - {"step"})
    found = {}
    for name in names:
        rows = [(row["step"], row[name]) for row in log if row.get(name) is not None]
        if rows:
            found[name.removeprefix(prefix)] = Curve(*np.array(rows, np.float64).T)
    return found


def smoothed(curve: Curve) -> Curve:
    """Average over a window that ends at each step."""
    width = max(1, len(curve.steps) // WINDOWS)
    sums = np.cumsum(np.concatenate([[0.0], curve.values]))
    end = np.arange(1, len(curve.steps) + 1)
    start = np.maximum(end - width, 0)
    return Curve(curve.steps, (sums[end] - sums[start]) / (end - start))
