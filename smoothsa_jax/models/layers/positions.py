"""Functions of the position on a grid."""

import jax.numpy as jnp
from jaxtyping import Array, Float


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
