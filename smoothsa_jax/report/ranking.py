"""The best and the worst samples of a split."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from smoothsa_jax.evaluation.sample_scores import Scored
from smoothsa_jax.evaluation.scores import is_loss


class Ranking(NamedTuple):
    """Indices of samples and their scores.

    Attributes:
        best: from the best down.
        worst: from the worst up, without any of the best.
    """

    best: list[tuple[int, float]]
    worst: list[tuple[int, float]]


def rank(scores: Float[np.ndarray, "samples"], count: int, lowest_first: bool = False) -> Ranking:
    """Rank at most `count` samples of each kind; undefined scores (NaN) are left out."""
    defined = np.flatnonzero(~np.isnan(scores))
    # A stable sort: among equals, the first sample comes first.
    order = defined[
        np.argsort(scores[defined] if lowest_first else -scores[defined], kind="stable")
    ]
    rows = [(int(i), float(scores[i])) for i in order]
    worst = rows[::-1][: min(count, len(rows) // 2)]
    return Ranking(rows[: min(count, len(rows) - len(worst))], worst)


def best_first(by_sample: list[Scored], metric: str) -> dict[str, np.ndarray]:
    """Sort each method's defined scores, best first, for the default protocol and first seed."""
    found: dict[str, np.ndarray] = {}
    for entry in by_sample:
        if entry.protocol == "default" and entry.method not in found:
            scores = np.asarray(entry.per_sample[metric])
            found[entry.method] = np.sort(scores[~np.isnan(scores)])
            if not is_loss(metric):
                found[entry.method] = found[entry.method][::-1]
    return found
