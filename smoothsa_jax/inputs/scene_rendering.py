"""Ray-cast pictures of a scene: colors, labels, depth and backward flow, exact at pixel centers.

The ground fills the picture; each object is cast in a window around it only.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, UInt8

from smoothsa_jax.inputs.cameras import project
from smoothsa_jax.inputs.scene_shapes import SHAPES, Three, points_at
from smoothsa_jax.inputs.sprite_textures import paint

AMBIENT = 0.7  # brightness of surfaces that the light does not reach
NEAR = 0.05  # m; nothing nearer to a camera is seen


class Look(NamedTuple):
    """How the ground (first) and n objects look."""

    textures: list[str]  # 1 + n, see sprite_textures
    frequencies: np.ndarray  # (1 + n,) radians per meter
    phases: np.ndarray  # (1 + n, 2) radians
    axes: np.ndarray  # (1 + n, 2, 3) the directions of the two texture coordinates
    colours: np.ndarray  # (1 + n, 2, 3)
    light: np.ndarray  # (3,) unit vector towards the light


class Rendered(NamedTuple):
    """T pictures of H x W pixels; see smoothsa_jax.inputs for units."""

    video: UInt8[np.ndarray, "T H W 3"]
    labels: UInt8[np.ndarray, "T H W"]  # 0 ground, k + 1 object k
    depth: Float32[np.ndarray, "T H W"]
    flow: Float32[np.ndarray, "T H W 2"] | None


class Poses(NamedTuple):
    """Where everything is in T frames: n objects and the camera."""

    position: Float[np.ndarray, "n T 3"]
    rotation: Float[np.ndarray, "n T 3 3"]  # object to world
    cameras: Float[np.ndarray, "T 4 3"]

    def of_frames(self, frames: slice) -> "Poses":
        return Poses(self.position[:, frames], self.rotation[:, frames], self.cameras[frames])


class _Canvas:
    """What is seen so far, as flat arrays over frames, rows and columns."""

    def __init__(self, frames: int, height: int, width: int, with_flow: bool):
        self.shape, pixels = (frames, height, width), frames * height * width
        self.nearest = np.empty(pixels, np.float32)  # in lengths of the ray's direction
        self.labels = np.zeros(pixels, np.uint8)
        self.colours = np.empty((3, pixels), np.float32)
        self.flow = np.zeros((pixels, 2), np.float32) if with_flow else None


def render(
    kinds: list[str],
    half_sizes: np.ndarray,
    look: Look,
    poses: Poses,
    before: Poses | None,
    height: int,
    width: int,
) -> Rendered:
    """Render T frames.

    Args:
        kinds: of the n objects, keys of SHAPES.
        half_sizes: (n, 3) in meters.
        look: how everything looks.
        poses: where everything is in the T frames.
        before: where everything was one frame earlier each, for the flow; None: no flow.
        height: H, in pixels.
        width: W, in pixels.
    """
    frames = len(poses.cameras)
    canvas = _Canvas(frames, height, width, before is not None)
    _ground(canvas, look, poses, before)
    for k, kind in enumerate(kinds):
        _object(canvas, k, kind, half_sizes[k], look, poses, before)
    video = np.empty((canvas.colours.shape[1], 3), np.uint8)
    canvas.colours += 0.5
    for channel, values in enumerate(canvas.colours):
        video[:, channel] = values
    rows, columns = np.arange(height)[:, None], np.arange(width)
    direction = _directions(poses.cameras[:, 1:], height, width, rows[None], columns[None, None])
    lengths = np.sqrt(sum(d * d for d in direction))
    return Rendered(
        video.reshape(*canvas.shape, 3),
        canvas.labels.reshape(canvas.shape),
        canvas.nearest.reshape(canvas.shape) * lengths,
        None if canvas.flow is None else canvas.flow.reshape(*canvas.shape, 2),
    )


def _directions(
    axes: Float[np.ndarray, "T 3 3"],
    height: int,
    width: int,
    rows: np.ndarray,
    columns: np.ndarray,
) -> Three:
    """The rays through pixels, each coordinate (T, h, w): c + a r + b d."""
    across = ((2 * columns + 1) / width - 1).astype(np.float32)
    along = ((2 * rows + 1) / height - 1).astype(np.float32)
    centre, right, down = axes.astype(np.float32).transpose(1, 2, 0)[..., None, None]
    # Sums of rows and of columns first: one addition per pixel.
    return tuple((c + along * d) + across * r for c, r, d in zip(centre, right, down, strict=True))


def _ground(canvas: _Canvas, look: Look, poses: Poses, before: Poses | None) -> None:
    frames, height, width = canvas.shape
    cameras = poses.cameras
    rows, columns = np.arange(height)[None, :, None], np.arange(width)[None, None]
    x, y, z = _directions(cameras[:, 1:], height, width, rows, columns)
    px, py, pz = (cameras[:, 0, k, None, None].astype(np.float32) for k in range(3))
    distance = -pz / np.minimum(z, -1e-6)
    points = [px + distance * x, py + distance * y]
    canvas.nearest[:] = distance.ravel()
    grain = look.frequencies[0] * look.axes[0]
    u, v = (
        np.float32(g[0]) * points[0] + np.float32(g[1]) * points[1] + np.float32(phase)
        for g, phase in zip(grain, look.phases[0], strict=True)
    )
    bright = np.float32(AMBIENT + (1 - AMBIENT) * max(look.light[2], 0.0))
    canvas.colours[:] = paint(look.textures[0], u, v, bright, look.colours[0]).reshape(3, -1)
    if before is not None:
        world = np.stack([*points, np.zeros_like(points[0])], axis=-1).reshape(frames, -1, 3)
        there, _ = project(before.cameras, world, height, width)
        here = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1)
        canvas.flow[:] = (there - here.reshape(1, -1, 2)).reshape(-1, 2)


def _object(
    canvas: _Canvas,
    k: int,
    kind: str,
    half: np.ndarray,
    look: Look,
    poses: Poses,
    before: Poses | None,
) -> None:
    frames, height, width = canvas.shape
    position, rotation, cameras = poses.position[k], poses.rotation[k], poses.cameras
    rows, columns = _window(position, half, cameras, height, width)
    # The camera in the coordinates of the object.
    axes = np.einsum("tji,tkj->tki", rotation, cameras[:, 1:])
    origin = np.einsum("tji,tj->ti", rotation, cameras[:, 0] - position).astype(np.float32)
    origin = tuple(origin.T[..., None, None])
    direction = _directions(axes, height, width, rows[:, :, None], columns[:, None])
    near, far, normal_at = SHAPES[kind](origin, direction, half.astype(np.float32))
    pixels = (np.arange(frames)[:, None, None] * height + rows[:, :, None]) * width
    pixels = pixels + columns[:, None]
    seen = (near < far) & (near > NEAR) & (near < canvas.nearest.take(pixels))
    which = np.flatnonzero(seen)
    pixels = pixels.take(which)
    points = points_at(origin, direction, near, which)
    # To world coordinates, at the frame of each pixel.
    frame = which // (seen.shape[1] * seen.shape[2])
    light = np.einsum("tji,j->it", rotation, look.light).astype(np.float32)
    facing = sum(n * turned[frame] for n, turned in zip(normal_at(which), light, strict=True))
    grain = (look.frequencies[k + 1] * look.axes[k + 1]).astype(np.float32)
    u, v = (
        sum(g * p for g, p in zip(along, points, strict=True)) + np.float32(phase)
        for along, phase in zip(grain, look.phases[k + 1], strict=True)
    )
    bright = AMBIENT + (1 - AMBIENT) * np.maximum(facing, 0)
    colours = paint(look.textures[k + 1], u, v, bright, look.colours[k + 1])
    canvas.nearest[pixels] = near.take(which)
    canvas.labels[pixels] = k + 1
    for channel, values in zip(canvas.colours, colours, strict=True):
        channel[pixels] = values
    if before is not None:
        turn, place = before.rotation[k], before.position[k]
        local = np.stack(points, axis=-1)
        world = np.einsum("pij,pj->pi", turn[frame], local) + place[frame]
        there, _ = project(before.cameras, world, height, width, frame)
        here = np.stack([pixels // width % height, pixels % width], axis=-1)
        canvas.flow[pixels] = there - here


def _window(
    position: Float[np.ndarray, "T 3"],
    half: np.ndarray,
    cameras: Float[np.ndarray, "T 4 3"],
    height: int,
    width: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (T, h) and columns (T, w) of windows of one size that hold an object in every frame."""
    reach = np.linalg.norm(half)
    signs = np.stack(np.meshgrid(*3 * [[-1.0, 1.0]]), axis=-1).reshape(-1, 3)
    corners, forward = project(cameras, position[:, None] + reach * signs, height, width)
    found = []
    for axis, size in enumerate((height, width)):
        low, high = corners[..., axis].min(axis=1), corners[..., axis].max(axis=1)
        behind = forward.min(axis=1) < NEAR  # then corners say nothing
        low, high = np.where(behind, 0, low), np.where(behind, size, high)
        low, high = (np.clip(x, 0, size - 1).astype(int) for x in (np.floor(low), np.ceil(high)))
        count = int((high - low).max()) + 1
        found.append(np.minimum(low, size - count)[:, None] + np.arange(count))
    return found[0], found[1]
