"""One-to-one matching of segments by intersection over union, inside a compiled step."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from optax.assignment import hungarian_algorithm


def segment_iou(
    predicted: Bool[Array, "... P N"], true: Bool[Array, "... P K"]
) -> Float[Array, "... N K"]:
    """Return the IoU of every pair of segments, from one-hot pixels; 0 if both are empty.

    A pixel in no true segment counts in the predicted area. Exact below 2**24 pixels.
    """
    predicted, true = predicted.astype(jnp.float32), true.astype(jnp.float32)
    both = jnp.einsum(
        "...pn,...pk->...nk", predicted, true
    )  # zeros and ones: exact at any precision
    areas = predicted.sum(-2)[..., :, None] + true.sum(-2)[..., None, :]
    return both / jnp.maximum(areas - both, 1.0)


def assign(iou: Float[Array, "... N K"]) -> Int[Array, "... N"]:
    """Return each slot's object in the one-to-one matching of largest total IoU; -1: none."""
    *lead, num_slots, num_objects = iou.shape

    def one(table):
        slots, objects = hungarian_algorithm(-table)
        return jnp.full(num_slots, -1, jnp.int32).at[slots].set(objects.astype(jnp.int32))

    assigned = jax.vmap(one)(iou.reshape(-1, num_slots, num_objects))
    return assigned.reshape(*lead, num_slots)
