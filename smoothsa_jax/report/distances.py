"""Distances between queries and slots: around the warmer, and after each slot attention iteration.

They test the paper's motivation for the warmer: warm queries start near the slots, so the first
frame needs no more iterations than a later one.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float

from smoothsa_jax.report.clips import COLD, WARM


def relative_distance(
    queries: Float[np.ndarray, "B N D"],
    slots: Float[np.ndarray, "B N D"],
    slot_mask: Bool[np.ndarray, "B N"],
) -> float:
    """The mean of |query - slot| / |slot| over the valid slots; 0: each query equals its slot."""
    lengths = np.linalg.norm(slots, axis=-1)
    away = np.linalg.norm(queries - slots, axis=-1)
    return float((away / np.maximum(lengths, 1e-12))[slot_mask].mean())


def by_iteration(
    states: Float[np.ndarray, "B I+1 N D"], slot_mask: Bool[np.ndarray, "B N"]
) -> list[float]:
    """The distances of the queries and of each iteration's slots from the final slots."""
    return [
        relative_distance(states[:, i], states[:, -1], slot_mask) for i in range(states.shape[1])
    ]


def around_the_warmer(
    states: Mapping[str, Float[np.ndarray, "B I+1 N D"]], slot_mask: Bool[np.ndarray, "B N"]
) -> dict[str, float]:
    """The distances of the samples and of the warm queries from the model's slots.

    The keys are "before the warmer" for samples and, with a warmer, "after the warmer". Without a
    warmer, the samples are the queries.
    """
    slots = states[WARM if WARM in states else COLD][:, -1]
    found = {"before the warmer": relative_distance(states[COLD][:, 0], slots, slot_mask)}
    if WARM in states:
        found["after the warmer"] = relative_distance(states[WARM][:, 0], slots, slot_mask)
    return found
