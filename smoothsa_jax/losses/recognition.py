"""The losses of recognition (method section 6): means over the slots that have an object; 0 where none has."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def category_loss(
    logits: Float[Array, "... classes"], category: Int[Array, "..."], matched: Bool[Array, "..."]
) -> Float[Array, ""]:
    """Cross-entropy of the matched slots' categories."""
    log_probability = jax.nn.log_softmax(logits, axis=-1)
    of_true = jnp.take_along_axis(log_probability, category[..., None], axis=-1)[..., 0]
    return _mean(-of_true, matched)


def box_loss(
    boxes: Float[Array, "... 4"], true: Float[Array, "... 4"], matched: Bool[Array, "..."]
) -> Float[Array, ""]:
    """L1 of the matched slots' boxes, a mean over the four sides too."""
    return _mean(jnp.abs(boxes - true).mean(-1), matched)


def _mean(x: Float[Array, "..."], where: Bool[Array, "..."]) -> Float[Array, ""]:
    # A batch may have no match at all: its loss and gradient are 0, not 0 / 0.
    return jnp.where(where, x, 0.0).sum() / jnp.maximum(where.sum(), 1)
