"""Codes of a vocabulary: distances, choices and draws of them."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from smoothsa_jax.models.interfaces import Sizes


def squared_distances(
    latents: Float[Array, "... D"], codes: Float[Array, "V D"]
) -> Float[Array, "... V"]:
    """Return squared Euclidean distances, float32; no gradient flows.

    They are at least 0, where rounding would make them less.
    """
    z, e = (jax.lax.stop_gradient(x).astype(jnp.float32) for x in (latents, codes))
    # A choice must not depend on how a device rounds products.
    product = jnp.matmul(z, e.T, precision=jax.lax.Precision.HIGHEST)
    lengths = jnp.square(z).sum(axis=-1, keepdims=True) + jnp.square(e).sum(axis=-1)
    return jnp.maximum(lengths - 2.0 * product, 0.0)


def scores_of_distances(squared: Float[Array, "... V"], width: int) -> Float[Array, "... V"]:
    """Return the standardized negative distances: higher is nearer (VQ-VFM-OCL).

    The distance of a point from the mean of a Gaussian of variance 1 in D dimensions has the mean
    sqrt(2) Gamma((D+1)/2) / Gamma(D/2) and the mean square D.

    Args:
        squared: squared distances.
        width: D.
    """
    mean, deviation = distance_moments(width)
    return (-jnp.sqrt(squared) - mean) / deviation


def distance_moments(width: int) -> tuple[float, float]:
    """Return mean and standard deviation of the length of a standard Gaussian vector."""
    mean = math.sqrt(2.0) * math.exp(math.lgamma((width + 1) / 2) - math.lgamma(width / 2))
    return mean, math.sqrt(width - mean**2)


def gumbel_keys(key: Array, sizes: Sizes) -> Array:
    """Return a key for each frame (B,T), from which `gumbel_noise` draws.

    The noise of a whole batch would be as large as its logits.
    """
    return jax.random.split(key, (sizes.batch, sizes.frames))


def gumbel_noise(draws: Array, num_places: int, vocabulary: int) -> Float[Array, "B M V"]:
    """Return Gumbel noise -log(-log u) of keys (B,), or the given noise (B,M,V) as it is."""
    if not jnp.issubdtype(draws.dtype, jax.dtypes.prng_key):
        return draws.reshape(len(draws), num_places, vocabulary)
    draw = lambda key: jax.random.gumbel(key, (num_places, vocabulary), jnp.float32)  # noqa: E731
    return jax.vmap(draw)(draws)


def on_row(x: Float[Array, "B h w D"]) -> Float[Array, "B M D"]:
    """Put the positions of a grid in a row."""
    return x.reshape(len(x), -1, x.shape[-1])


@jax.custom_vjp
def chosen(codes: Float[Array, "V D"], tokens: Int[Array, "B M"]) -> Float[Array, "B M D"]:
    """Return the codes of tokens; the gradient reaches those, and is summed in float32.

    A plain gradient would be summed in another order in each run on a GPU.
    """
    return codes[tokens]


def _chosen_forward(codes, tokens):
    # Of the codes, the backward pass needs shape and dtype alone.
    return codes[tokens], (tokens, jnp.zeros((len(codes), 0), codes.dtype))


def _chosen_backward(residuals, cotangent):
    tokens, of_codes = residuals

    def add(total, sample):
        tokens, cotangent = sample
        places = jax.nn.one_hot(tokens, len(of_codes), dtype=cotangent.dtype, axis=0)
        return total + jnp.matmul(places, cotangent, preferred_element_type=jnp.float32), None

    total = jnp.zeros((len(of_codes), cotangent.shape[-1]), jnp.float32)
    total, _ = jax.lax.scan(add, total, (tokens, cotangent))
    return total.astype(of_codes.dtype), None


chosen.defvjp(_chosen_forward, _chosen_backward)
