"""Losses of the decoder's prediction."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from smoothsa_jax.models.interfaces import Scheduled


class Reconstruction:
    """Mean squared error between prediction and target, over all elements."""

    reads = ("prediction", "target")

    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array], scheduled: Scheduled
    ) -> Float[Array, ""]:
        del batch, scheduled
        return reconstruction_loss(outputs["prediction"], outputs["target"])


def reconstruction_loss(
    prediction: Float[Array, "... C"], target: Float[Array, "... C"]
) -> Float[Array, ""]:
    """Return the mean squared error; no gradient flows into the target."""
    return jnp.mean((prediction - jax.lax.stop_gradient(target)) ** 2)
