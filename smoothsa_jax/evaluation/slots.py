"""Compare the slots that pruning leaves with the segments that there are."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from smoothsa_jax.inputs import NO_SEGMENT

SLOTS, SEGMENTS = "slots", "segments"


def num_slots(
    slot_mask: Bool[Array, "B N"] | Bool[Array, "B T N"], num_frames: Int[np.ndarray, " B"] | None
) -> Float[Array, " B"]:
    """Return the number of slots in use, averaged over frames.

    Args:
        slot_mask: of each sample, or of each of its frames.
        num_frames: number of frames of each clip that count; None: all.
    """
    found = jnp.asarray(slot_mask).sum(axis=-1).astype(jnp.float32)
    return found if found.ndim == 1 else mean_over_frames(found, num_frames)


def mean_over_frames(
    values: Float[Array, "B T"], num_frames: Int[np.ndarray, " B"] | None
) -> Float[Array, " B"]:
    """Return the mean over the frames of each clip that count; None: all do."""
    values = jnp.asarray(values, jnp.float32)
    if num_frames is None:
        return values.mean(axis=1)
    return values.mean(axis=1, where=jnp.arange(values.shape[1]) < jnp.asarray(num_frames)[:, None])


def count_slots(tables: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return numbers of each sample: its slots, its true segments, and how far these are apart.

    Args:
        tables: "slots" (samples,), and "counts" (samples, N+1, 256) as of `counting.CountedMasks`.
            The background counts as a segment, since it needs a slot.

    Returns:
        `slots`, `segments`, `slots_error` (their absolute difference) and `one_slot` (whether a
        single slot is left).
    """
    slots = tables["slots"].astype(np.float64)
    segments = (tables["counts"][:, :, :NO_SEGMENT].sum(axis=1) > 0).sum(axis=1).astype(np.float64)
    return {
        SLOTS: slots,
        SEGMENTS: segments,
        "slots_error": np.abs(slots - segments),
        "one_slot": (slots == 1).astype(np.float64),
    }


def correlation_of_counts(per_sample: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the correlation over samples of slots and segments; NaN if one of them is constant.

    Args:
        per_sample: what `count_slots` returned, (..., samples); without it, nothing is returned.
    """
    if SLOTS not in per_sample:
        return {}
    centred = [x - x.mean(axis=-1, keepdims=True) for x in map(per_sample.get, (SLOTS, SEGMENTS))]
    slots, segments = centred
    scale = np.sqrt((slots**2).sum(axis=-1) * (segments**2).sum(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "slots_correlation": np.where(scale > 0, (slots * segments).sum(-1) / scale, np.nan)
        }
