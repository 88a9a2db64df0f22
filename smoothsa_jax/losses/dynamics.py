"""Losses of predicted frames (SlotFormer, Wu et al. 2023, arXiv 2210.05861, section 3.3)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from smoothsa_jax.models.interfaces import Scheduled

FRAME_MASK = "frame_mask"  # (B,K): which predicted frames a clip has


class Slots:
    """Mean squared error of predicted slots.

    Settings that change with the step:
        decay: a; the k-th predicted frame weighs a**k, scaled so that the weights sum to K. 1: all
            frames weigh the same.
    """

    reads = ("predicted_slots", "future_slots", FRAME_MASK, "slot_mask")
    scheduled = ("decay",)

    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array], scheduled: Scheduled
    ) -> Float[Array, ""]:
        del batch
        predicted, future = outputs["predicted_slots"], outputs["future_slots"]
        errors = jnp.square(predicted - jax.lax.stop_gradient(future))  # (B,K,N,D)
        valid = jnp.broadcast_to(outputs[FRAME_MASK][..., None], errors.shape[:3])
        if (mask := outputs.get("slot_mask")) is not None:
            valid = valid & mask[:, None]
        decay = scheduled.get("decay", 1.0)
        weights = decay ** jnp.arange(errors.shape[1], dtype=jnp.float32)
        weights = weights * (len(weights) / weights.sum())
        return masked_mean(weights[:, None, None] * errors, valid)


class Decoded:
    """Mean squared error of features or pixels that a frozen decoder makes of predicted slots."""

    reads = ("prediction", "target", FRAME_MASK)

    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array], scheduled: Scheduled
    ) -> Float[Array, ""]:
        del batch, scheduled
        errors = jnp.square(outputs["prediction"] - jax.lax.stop_gradient(outputs["target"]))
        return masked_mean(errors, outputs[FRAME_MASK])


def masked_mean(values: Float[Array, "..."], valid: Bool[Array, "*some"]) -> Array:
    """Return the mean over the valid places and all further axes; 0 if there are none."""
    mask = valid.reshape(*valid.shape, *(1,) * (values.ndim - valid.ndim)).astype(values.dtype)
    number = jnp.maximum(mask.sum(), 1.0) * (values.size // valid.size)
    return (mask * values).sum() / number
