"""Losses of the decoder's prediction."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from smoothsa_jax.models.interfaces import Scheduled


class Reconstruction:
    """Mean squared error of the prediction to the target, over every element."""

    reads = ("prediction", "target")

    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array], scheduled: Scheduled
    ) -> Float[Array, ""]:
        del batch, scheduled
        return reconstruction_loss(outputs["prediction"], outputs["target"])


def reconstruction_loss(
    prediction: Float[Array, "... C"], target: Float[Array, "... C"]
) -> Float[Array, ""]:
    """Return the mean squared error; the target is a constant."""
    return jnp.mean((prediction - jax.lax.stop_gradient(target)) ** 2)
