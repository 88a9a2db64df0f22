"""Intervals of differences between systems that were scored on the same clips."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

ROUNDS, LEVEL = 2000, 0.95


def difference(
    first: Float[np.ndarray, "A clips"],
    second: Float[np.ndarray, "B clips"],
    rounds: int = ROUNDS,
    level: float = LEVEL,
) -> tuple[float, float, float]:
    """Return the mean difference of two systems, and a bootstrap interval.

    Each round draws clips with replacement, the same ones for both systems, and then the training
    seeds of each system. The interval is between the percentiles of the rounds' differences (Efron
    and Tibshirani 1993, chapter 13). Clips are paired as in Koehn 2004 (Statistical significance
    tests for machine translation evaluation, EMNLP); that seeds are drawn as well is the advice of
    Agarwal et al. 2021 (arXiv 2108.13264). Seeds are not paired: a number means nothing across
    systems. With few seeds the interval is too narrow; with one seed it is about clips alone.

    Args:
        first: the scores of each training seed and clip. A clip that has no score (NaN) with any
            seed is left out.
        second: of the other system, on the same clips.
        rounds: number of rounds.
        level: share of the rounds inside the interval.

    Returns:
        The mean of `first` less that of `second`, and the ends of the interval.
    """
    defined = np.isfinite(first).all(axis=0) & np.isfinite(second).all(axis=0)
    first, second = first[:, defined], second[:, defined]
    rng = np.random.default_rng(0)
    clips = weights(rng, rounds, first.shape[1])
    means = [
        np.einsum("rs,sc,rc->r", weights(rng, rounds, len(scores)), scores, clips)
        for scores in (first, second)
    ]
    low, high = np.percentile(means[0] - means[1], ends(level))
    return float(first.mean() - second.mean()), float(low), float(high)


def ends(level: float = LEVEL) -> tuple[float, float]:
    """Return the percentiles of the rounds between which so large a share of them lies."""
    tail = 100 * (1 - level) / 2
    return tail, 100 - tail


def weights(rng: np.random.Generator, rounds: int, count: int) -> Float[np.ndarray, "rounds count"]:
    """Draw `count` of `count` things in each round, with replacement: the share of each."""
    return rng.multinomial(count, np.full(count, 1 / count), rounds) / count


def scores_of(values: Sequence[Sequence[float | None]]) -> Float[np.ndarray, "seeds clips"]:
    """Return scores as an array, NaN where there is none."""
    return np.array(values, dtype=np.float64)
