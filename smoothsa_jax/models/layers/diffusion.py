"""Noise of diffusion models: its schedule, and sampling without noise (DDIM).

The schedule is that of latent diffusion and SlotDiffusion: the square root of beta is linear.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

NUM_STEPS = 1000
BETAS = (0.0015, 0.0195)  # of the first and the last step


def betas() -> Float[np.ndarray, "S"]:
    """Return the variance of the noise that each step adds, float64."""
    first, last = np.sqrt(BETAS)
    return np.linspace(first, last, NUM_STEPS) ** 2


def signal_shares() -> Float[np.ndarray, "S"]:
    """Return alpha bar, the share of the data in the variance after each step, float32."""
    return np.cumprod(1.0 - betas()).astype(np.float32)


def add_noise(
    data: Float[Array, "*B M D"], noise: Float[Array, "*B M D"], step: Int[Array, "*B"]
) -> Float[Array, "*B M D"]:
    """Return the data after `step` + 1 steps, where `noise` is a sample of N(0, 1)."""
    share = jnp.asarray(signal_shares())[step][..., None, None]
    return jnp.sqrt(share) * data + jnp.sqrt(1.0 - share) * noise


def ddim_steps(number: int) -> Int[np.ndarray, "K"]:
    """Return `number` steps from the last one down to 0, as evenly spaced as whole numbers are."""
    return np.round(np.linspace(NUM_STEPS - 1, 0, number)).astype(np.int32)


def sample_ddim(
    predict: Callable[[Float[Array, "B M D"], Int[Array, "B"]], Float[Array, "B M D"]],
    start: Float[Array, "B M D"],
    number: int,
) -> Float[Array, "B M D"]:
    """Remove noise in a number of steps without drawing any (Song et al. 2021, arXiv 2010.02502).

    Args:
        predict: the noise in pictures after a step.
        start: a sample of N(0, 1).
        number: how many steps, each one call of `predict`.
    """
    steps = ddim_steps(number)
    shares = signal_shares()[steps]
    after = np.append(shares[1:], np.float32(1.0))  # the last step ends at the data

    def denoise(x, inputs):
        step, share, next_share = inputs
        noise = predict(x, jnp.full(len(x), step)).astype(jnp.float32)
        data = (x - jnp.sqrt(1.0 - share) * noise) / jnp.sqrt(share)
        return jnp.sqrt(next_share) * data + jnp.sqrt(1.0 - next_share) * noise, None

    return jax.lax.scan(denoise, start.astype(jnp.float32), (steps, shares, after))[0]
