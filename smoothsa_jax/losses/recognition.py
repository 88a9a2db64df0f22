"""Losses of recognition: means over the slots that match an object; 0 where none does."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from smoothsa_jax.models.interfaces import Scheduled


class Category:
    """Cross-entropy of the matched slots' categories."""

    reads = ("logits", "category", "matched")

    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array], scheduled: Scheduled
    ) -> Float[Array, ""]:
        del batch, scheduled
        return category_loss(outputs["logits"], outputs["category"], outputs["matched"])


class Box:
    """L1 of the matched slots' boxes."""

    reads = ("predicted_box", "box", "matched")

    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array], scheduled: Scheduled
    ) -> Float[Array, ""]:
        del batch, scheduled
        return box_loss(outputs["predicted_box"], outputs["box"], outputs["matched"])


def category_loss(
    logits: Float[Array, "... classes"], category: Int[Array, "..."], matched: Bool[Array, "..."]
) -> Float[Array, ""]:
    """Return the cross-entropy, a mean over the matched slots."""
    log_probability = jax.nn.log_softmax(logits, axis=-1)
    of_true = jnp.take_along_axis(log_probability, category[..., None], axis=-1)[..., 0]
    return _mean(-of_true, matched)


def box_loss(
    boxes: Float[Array, "... 4"], true: Float[Array, "... 4"], matched: Bool[Array, "..."]
) -> Float[Array, ""]:
    """Return the L1 distance, a mean over the four sides and the matched slots."""
    return _mean(jnp.abs(boxes - true).mean(-1), matched)


def _mean(x: Float[Array, "..."], where: Bool[Array, "..."]) -> Float[Array, ""]:
    # A batch may have no match at all: its loss and gradient are 0, not 0 / 0.
    return jnp.where(where, x, 0.0).sum() / jnp.maximum(where.sum(), 1)
