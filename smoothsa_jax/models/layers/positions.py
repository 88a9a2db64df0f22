"""Functions of the position on a grid."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.layers.basic import add_bias, linear
from smoothsa_jax.parts import check_one_of, check_whole

STARTS = ("truncated_normal", "normal")
PLACES = ("none", "linear", "borders", "centers", "fourier")


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


def check_position(path: str, position: str, waves: int | None) -> None:
    """Refuse functions of the position that do not exist, and waves where there are none."""
    check_one_of(f"{path}.position", position, PLACES)
    if position == "fourier":
        check_whole(f"{path}.position_waves", waves)
    elif waves is not None:
        raise UserError(
            f"{path}.position_waves is {waves}, but {path}.position is {position!r}; remove it, or "
            f"set --config.{path}.position=fourier"
        )


def functions_of_place(
    grid: tuple[int, int], position: str, waves: int | None = None
) -> Float[np.ndarray, "h w P"]:
    """Functions of the place on a grid, from which a Linear layer makes its embedding.

    Args:
        grid: (h, w).
        position: "linear": row and column, each from -1 to 1 (SAVi). "borders": the distances from
            the top, left, bottom and right border, each from 0 to 1 (original slot attention,
            BO-QSA). "centers": of the cells' centers, the distances from the left, top, right and
            bottom border (STEVE). "fourier": sines and cosines of half periods 1, 2, 4, ... of
            "linear" (SAVi).
        waves: how many such periods.
    """
    lowest = 0.0 if position == "borders" else -1.0
    sides = [np.linspace(lowest, 1.0, n) for n in grid]
    if position == "centers":
        sides = [(np.arange(n) + 0.5) / n for n in grid]
    place = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1)
    if position == "centers":
        place = place[..., ::-1]
        place = np.concatenate([place, 1.0 - place], axis=-1)
    elif position == "borders":
        place = np.concatenate([place, 1.0 - place], axis=-1)
    elif position == "fourier":
        angles = math.pi * place[..., None, :] * 2.0 ** np.arange(waves)[:, None]
        angles = angles.reshape(*grid, -1)
        place = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    return place.astype(np.float32)


class PlaceEmbedding(nnx.Module):
    """A Linear layer of functions of the place on a grid, added to what stands there.

    Args:
        grid: (h, w).
        width: C.
        position: which functions; see `functions_of_place`.
        waves: how many periods "fourier" has.
        start: initial values; see `linear`.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        width: int,
        position: str,
        waves: int | None = None,
        *,
        start: str,
        rngs: nnx.Rngs,
    ):
        self.grid, self.position, self.waves = grid, position, waves
        channels = {"linear": 2, "borders": 4, "centers": 4}.get(position, 4 * (waves or 0))
        start = "xavier" if start == "he" else start  # no ReLU follows
        self.dense = linear(channels, width, start=start, rngs=rngs)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        place = functions_of_place(self.grid, self.position, self.waves)
        return add_bias(x, self.dense(jnp.asarray(place, self.dense.kernel.dtype)))
