"""Rays of cameras, and their encoding by sines and cosines."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from smoothsa_jax.parts import check_whole


def camera_rays(
    cameras: Float[Array, "*batch 4 3"],
    rows: Float[Array, "*batch"],
    columns: Float[Array, "*batch"],
) -> tuple[Float[Array, "*batch 3"], Float[Array, "*batch 3"]]:
    """Return position and unit direction of rays, in world coordinates.

    Args:
        cameras: position; the vectors from there to the picture's centre, from the centre to the
            right edge, and to the bottom edge.
        rows: from the top edge, -1, to the bottom edge, 1.
        columns: from the left edge, -1, to the right edge, 1.
    """
    position, centre, right, bottom = (cameras[..., i, :] for i in range(4))
    direction = centre + columns[..., None] * right + rows[..., None] * bottom
    return position, direction / jnp.linalg.norm(direction, axis=-1, keepdims=True)


def pixel_rays(
    cameras: Float[Array, "*batch 4 3"],
    rows: Int[Array, "*batch"],
    columns: Int[Array, "*batch"],
    size: tuple[int, int],
) -> tuple[Float[Array, "*batch 3"], Float[Array, "*batch 3"]]:
    """Return position and unit direction of the rays through the centres of pixels.

    Args:
        cameras: as for `camera_rays`.
        rows: the pixels' rows, from 0.
        columns: the pixels' columns, from 0.
        size: (H, W) of the picture.
    """
    centre = lambda index, length: (2.0 * index + 1.0) / length - 1.0  # noqa: E731
    return camera_rays(cameras, centre(rows, size[0]), centre(columns, size[1]))


def octave_waves(
    x: Float[Array, "... C"], octaves: int, first: int
) -> Float[Array, "... 2*C*octaves"]:
    """Return all sines, then all cosines, of 2**o * pi * x for consecutive octaves o.

    Coordinates come first in their order, octaves second. Float32 alone resolves high octaves.

    Args:
        x: coordinates.
        octaves: number of octaves.
        first: the first octave.
    """
    factors = 2.0 ** jnp.arange(first, first + octaves, dtype=jnp.float32) * jnp.float32(jnp.pi)
    angles = (x.astype(jnp.float32)[..., None] * factors).reshape(*x.shape[:-1], -1)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


@dataclasses.dataclass(frozen=True)
class RayEncoding:
    """The encoding of a camera's position and a ray's direction, by as many octaves for both.

    From SRT (Sajjadi et al. 2022, arXiv 2111.13152). Octaves of directions begin at 0.

    Attributes:
        octaves: number of octaves; 15 in OSRT.
        position_octave: first octave of positions; -5 in OSRT.
    """

    octaves: int
    position_octave: int

    @property
    def width(self) -> int:
        """The number of channels."""
        return 2 * 6 * self.octaves

    def __call__(
        self, positions: Float[Array, "... 3"], rays: Float[Array, "... 3"]
    ) -> Float[Array, "... E"]:
        """Return the encodings, positions first; float32."""
        of_positions = octave_waves(positions, self.octaves, self.position_octave)
        of_rays = octave_waves(rays, self.octaves, 0)
        shape = (*of_rays.shape[:-1], of_positions.shape[-1])
        return jnp.concatenate([jnp.broadcast_to(of_positions, shape), of_rays], axis=-1)


def ray_encoding(path: str, octaves: int, position_octave: int) -> RayEncoding:
    """Return an encoding of these settings of a part.

    Raises:
        UserError: a setting is out of range.
    """
    check_whole(f"{path}.octaves", octaves)
    check_whole(f"{path}.position_octave", position_octave, least=-64)
    return RayEncoding(octaves, position_octave)
