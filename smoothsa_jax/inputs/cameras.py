"""Pinhole cameras as four vectors: (..., 4, 3) in world coordinates.

    position    of the camera
    centre c    from there through the center of the picture
    right r     from the center of the picture to the middle of its right edge
    down d      from the center of the picture to the middle of its bottom edge

The ray of pixel (i, j) of H x W starts at the position and has the direction
c + ((2j + 1)/W - 1) r + ((2i + 1)/H - 1) d. Every pinhole camera has this form, at any size of the
picture; the lengths of c, r and d have one common factor that changes nothing. `ray_directions`,
`cropped` and `halved` take NumPy's arrays and JAX's.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from smoothsa_jax.errors import UserError

# The largest distance of a ray from the fitted one, both of length one. float32 rounds by 1e-7; a
# lens with a distortion of one pixel in 256 has 4e-3.
TINY = 1e-4


def ray_directions(cameras: Any, height: int, width: int) -> Any:
    """The rays (..., H, W, 3) of pixel centers, not normalized.

    Args:
        cameras: (..., 4, 3).
        height: H, in pixels.
        width: W, in pixels.
    """
    across = ((2 * np.arange(width) + 1) / width - 1).astype(np.float32)[:, None]
    along = ((2 * np.arange(height) + 1) / height - 1).astype(np.float32)[:, None, None]
    centre, right, down = (cameras[..., k, None, None, :] for k in (1, 2, 3))
    return (centre + along * down) + across * right


def project(
    cameras: np.ndarray, points: np.ndarray, height: int, width: int, which: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Where points appear.

    Args:
        cameras: (T, 4, 3).
        points: (T, P, 3) in world coordinates, or (P, 3) with `which`.
        height: H of the picture, in pixels.
        width: W.
        which: (P,) the camera of each point; None: P points for every camera.

    Returns:
        Rows and columns (T, P, 2) or (P, 2) in pixels: whole numbers are pixel centers; and how far
        along the centre vector the points are, positive in front of the camera.
    """
    axes = np.linalg.inv(np.swapaxes(cameras[:, 1:], -1, -2))  # rows: of c, r, d
    if which is None:
        along = np.einsum("tij,tpj->tpi", axes, points - cameras[:, None, 0])
    else:
        along = np.einsum("pij,pj->pi", axes[which], points - cameras[which, 0])
    forward = along[..., 0]
    columns = ((along[..., 1] / forward + 1) * width - 1) / 2
    rows = ((along[..., 2] / forward + 1) * height - 1) / 2
    return np.stack([rows, columns], axis=-1), forward


def look_at(
    position: Float[np.ndarray, "*T 3"], target: Float[np.ndarray, "*T 3"], half_angle: float
) -> Float[np.ndarray, "*T 4 3"]:
    """Upright cameras with square pixels and a square picture, that look at points.

    Args:
        position: of the cameras; the third coordinate is up.
        target: what is in the center of the pictures.
        half_angle: between the center of the picture and the middle of an edge, in radians.
    """
    centre = target - position
    centre = centre / np.linalg.norm(centre, axis=-1, keepdims=True)
    right = np.cross(centre, np.array([0.0, 0.0, 1.0]))
    right /= np.linalg.norm(right, axis=-1, keepdims=True)
    down = np.cross(centre, right)
    half = np.tan(half_angle)
    return np.stack([position + 0 * centre, centre, half * right, half * down], axis=-2)


def from_matrices(
    intrinsics: Float[np.ndarray, "*T 3 3"],
    rotation: Float[np.ndarray, "*T 3 3"],
    translation: Float[np.ndarray, "*T 3"],
    height: int,
    width: int,
) -> Float[np.ndarray, "*T 4 3"]:
    """Cameras from OpenCV's matrices.

    Args:
        intrinsics: K, in pixels; (0, 0) is the outer corner of the first pixel.
        rotation: R of world to camera, X_camera = R X_world + t.
        translation: t.
        height: of the picture, in pixels.
        width: of the picture, in pixels.
    """
    inverse = np.linalg.inv(intrinsics)
    corners = np.array([[width / 2, height / 2, 1.0], [width / 2, 0, 0], [0, height / 2, 0]])
    axes = np.einsum("...ji,...jk,ck->...ci", rotation, inverse, corners)
    position = -np.einsum("...ji,...j->...i", rotation, translation)
    return np.concatenate([position[..., None, :], axes], axis=-2)


def cropped(
    cameras: Any,
    size: tuple[int, int],
    crop: tuple[float, float, float, float],
    flipped: bool = False,
) -> Any:
    """The cameras of a part of their pictures, perhaps mirrored left to right.

    Args:
        cameras: (..., 4, 3).
        size: height and width of the pictures, in pixels.
        crop: top, left, height and width of the part, in pixels.
        flipped: whether the part is mirrored.
    """
    (height, width), (top, left, rows, columns) = size, crop
    across, along = (2 * left + columns) / width - 1, (2 * top + rows) / height - 1
    position, centre, right, down = (cameras[..., k, :] for k in range(4))
    sign = -1.0 if flipped else 1.0
    parts = [
        position,
        centre + across * right + along * down,
        right * (sign * columns / width),
        down * (rows / height),
    ]
    # Adding zeros of the right shape stacks without a library of its own.
    return sum(
        part[..., None, :] * np.eye(4, dtype=np.float32)[k][:, None] for k, part in enumerate(parts)
    )


def halved(cameras: Any, height: int, width: int) -> Any:
    """The cameras of every second pixel, from the second row and column on: x[1::2, 1::2].

    These pixels are half a full-size pixel to the right of, and below, the centers of the pixels of
    a picture of half the size. Height and width are the full-size ones, and even.
    """
    return cropped(cameras, (height, width), (0.5, 0.5, height, width))


def fit(
    origins: Float[np.ndarray, "H W 3"], directions: Float[np.ndarray, "H W 3"], what: str
) -> Float[np.ndarray, "4 3"]:
    """The pinhole camera of given rays.

    Args:
        origins: where the rays start.
        directions: of any length.
        what: the name of the picture, for messages.

    Raises:
        UserError: no pinhole camera has these rays.
    """
    origins, directions = origins.astype(np.float64), directions.astype(np.float64)
    height, width = directions.shape[:2]
    position = origins.reshape(-1, 3).mean(axis=0)
    spread = np.abs(origins - position).max()
    lengths = np.linalg.norm(directions, axis=-1, keepdims=True)
    if not lengths.min() > 0 or not np.isfinite(lengths).all():
        raise UserError(f"{what} has rays without a direction; expected one for each pixel")
    unit = directions / lengths
    # Rays x of a pinhole camera obey x cross (c + a r + b d) = 0, linear in its nine numbers.
    across = (2 * np.arange(width) + 1) / width - 1
    along = (2 * np.arange(height) + 1) / height - 1
    b, a = np.meshgrid(along, across, indexing="ij")
    basis = np.stack([np.ones_like(a), a, b], axis=-1).reshape(-1, 3)
    x = unit.reshape(-1, 3)
    # The sum of |x cross v|^2 = v.v - (x.v)^2 over rays is a quadratic form of the nine numbers.
    form = np.kron(basis.T @ basis, np.eye(3))
    mixed = (basis[:, :, None] * x[:, None, :]).reshape(-1, 9)
    form -= mixed.T @ mixed
    numbers = np.linalg.eigh(form)[1][:, 0].reshape(3, 3)
    if np.sum(basis @ numbers * x) < 0:
        numbers = -numbers
    numbers /= np.linalg.norm(numbers[0])
    fitted = basis @ numbers
    fitted /= np.linalg.norm(fitted, axis=-1, keepdims=True)
    error = max(np.abs(fitted - x).max(), spread / max(1.0, np.abs(position).max()))
    if not error < TINY:
        raise UserError(
            f"{what} has rays that differ by up to {error:.1e} from those of a pinhole camera, "
            f"expected less than {TINY}; render it with a lens without distortion"
        )
    return np.concatenate([position[None], numbers])
