"""Losses of what the decoder predicts (Method section 1.4)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def reconstruction_loss(
    reconstruction: Float[Array, "... C"], features: Float[Array, "... C"]
) -> Float[Array, ""]:
    """Mean squared error over every element; the features are a constant target."""
    return jnp.mean((reconstruction - jax.lax.stop_gradient(features)) ** 2)
