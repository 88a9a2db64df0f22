"""Losses of recognition: means over the slots that match an object; 0 if none does."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from smoothsa_jax.models.interfaces import Scheduled


class Category:
    """Cross-entropy of the categories of matched slots; see `interfaces.Loss`."""

    reads = ("logits", "category", "matched")

    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array], scheduled: Scheduled
    ) -> Float[Array, ""]:
        del batch, scheduled
        return category_loss(outputs["logits"], outputs["category"], outputs["matched"])


class Box:
    """L1 distance of the boxes of matched slots; see `interfaces.Loss`."""

    reads = ("predicted_box", "box", "matched")

    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array], scheduled: Scheduled
    ) -> Float[Array, ""]:
        del batch, scheduled
        return box_loss(outputs["predicted_box"], outputs["box"], outputs["matched"])


def category_loss(
    logits: Float[Array, "... classes"], category: Int[Array, "..."], matched: Bool[Array, "..."]
) -> Float[Array, ""]:
    """Return the mean cross-entropy over the matched slots."""
    log_probability = jax.nn.log_softmax(logits, axis=-1)
    of_true = jnp.take_along_axis(log_probability, category[..., None], axis=-1)[..., 0]
    return _mean(-of_true, matched)


def box_loss(
    boxes: Float[Array, "... 4"], true: Float[Array, "... 4"], matched: Bool[Array, "..."]
) -> Float[Array, ""]:
    """Return the mean L1 distance over the four sides and the matched slots."""
    return _mean(jnp.abs(boxes - true).mean(-1), matched)


def _mean(x: Float[Array, "..."], where: Bool[Array, "..."]) -> Float[Array, ""]:
    # Without any match, the loss and its gradient are 0, not 0 / 0.
    return jnp.where(where, x, 0.0).sum() / jnp.maximum(where.sum(), 1)
