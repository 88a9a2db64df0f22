"""How far queries are from slots: before and after the warmer, and after each iteration of slot attention.

The paper's argument for the warmer: warm queries start near the slots, so that the first frame needs no more iterations than a
later one.
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
    """Mean of |query - slot| / |slot| over the valid slots; 0: the query is the slot, 1: as far as the slot is long."""
    lengths = np.linalg.norm(slots, axis=-1)
    away = np.linalg.norm(queries - slots, axis=-1)
    return float((away / np.maximum(lengths, 1e-12))[slot_mask].mean())


def by_iteration(
    states: Float[np.ndarray, "B I+1 N D"], slot_mask: Bool[np.ndarray, "B N"]
) -> list[float]:
    """Of the queries and of the slots after each iteration, to those after the last one."""
    return [
        relative_distance(states[:, i], states[:, -1], slot_mask) for i in range(states.shape[1])
    ]


def around_the_warmer(
    states: Mapping[str, Float[np.ndarray, "B I+1 N D"]], slot_mask: Bool[np.ndarray, "B N"]
) -> dict[str, float]:
    """Of the samples ("before the warmer") and the warm queries ("after the warmer") from the model's slots.

    Without a warmer the samples are all the queries there are.
    """
    slots = states[WARM if WARM in states else COLD][:, -1]
    found = {"before the warmer": relative_distance(states[COLD][:, 0], slots, slot_mask)}
    if WARM in states:
        found["after the warmer"] = relative_distance(states[WARM][:, 0], slots, slot_mask)
    return found
