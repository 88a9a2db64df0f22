"""Functions of the position on a grid."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

STARTS = ("truncated_normal", "normal")


def learned_positions(
    key: Array, num_places: int, width: int, start: str, std: float
) -> Float[Array, "1 M E"]:
    """Draw initial values of learned positions, independent at each place.

    Args:
        key: the random key.
        num_places: M.
        width: E.
        start: a "normal" distribution; or a "truncated_normal" one, cut at two deviations.
        std: standard deviation, before the cut.
    """
    shape = (1, num_places, width)
    if start == "normal":
        return std * jax.random.normal(key, shape, jnp.float32)
    return std * jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32)


def position_waves(grid: tuple[int, int], width: int) -> Float[Array, "h w P"]:
    """Smooth functions of the position: cosines of 1, 2, ... half periods along y, then along x.

    There are `width` functions, half of them along either axis, each of mean 0 and variance 1 over
    the grid.
    """
    waves = jnp.pi * jnp.arange(1, width // 2 + 1, dtype=jnp.float32)
    rows, columns = ((jnp.arange(side, dtype=jnp.float32) + 0.5) / side for side in grid)
    y = jnp.cos(rows[:, None, None] * waves)
    x = jnp.cos(columns[None, :, None] * waves)
    shape = (*grid, width // 2)
    return 2**0.5 * jnp.concatenate([jnp.broadcast_to(y, shape), jnp.broadcast_to(x, shape)], -1)
