"""Augmentation: a temporal window, a crop, a flip; of pixels and of what belongs to them.

All randomness comes from the generator passed in, and is drawn once for all frames of a clip.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, Int, UInt8

from smoothsa_jax.inputs import NO_SEGMENT
from smoothsa_jax.inputs.cameras import cropped
from smoothsa_jax.inputs.resize import resize_labels, resize_pixels, resize_values

AREA = (0.75, 1.0)  # of a random crop, relative to min(height, width)^2
ASPECT = (3 / 4, 4 / 3)  # of a random crop, width / height
TRIES = 10
COVERED, SMALLEST = 0.75, 0.05  # of "covering": least share of the frame, accepted and drawn
COVERING_TRIES = 100
FLIP_PROBABILITY = 0.5
CROPS = ("area", "covering", "square", "centre", "none")  # how `draw_view` crops
RESTS = ("back", "drop", "keep")  # what `windows` makes of frames behind the last whole window


class View(NamedTuple):
    """A rectangle in pixels, the same in every frame, and whether it is mirrored left to right."""

    top: int
    left: int
    height: int
    width: int
    flipped: bool = False


# ------------------------------------------------------------------------------------------- time


def windows(length: int, num_frames: int, rest: str = "back") -> list[range]:
    """Split a video of `length` frames into windows of `num_frames`, in order.

    Args:
        length: number of frames of the video.
        num_frames: number of frames of a window.
        rest: where the length is not a multiple: "back" moves the last window back to fit, "drop"
            leaves out the frames behind the last whole window, "keep" makes a shorter window of
            them. A video that is shorter than a window is one window, whatever this says.
    """
    if length <= num_frames:
        return [range(length)]
    starts = range(0, length - num_frames + 1 if rest == "drop" else length, num_frames)
    if rest == "back":
        starts = (min(start, length - num_frames) for start in starts)
    return [range(start, min(start + num_frames, length)) for start in starts]


def draw_window(
    rng: np.random.Generator, length: int, num_frames: int, rest: str = "back"
) -> range:
    """Draw one of the `windows` uniformly."""
    choices = windows(length, num_frames, rest)
    return choices[int(rng.integers(len(choices)))]


def settled_starts(
    length: int, num_frames: int, entries: Int[np.ndarray, " k"], last_entry: int
) -> Int[np.ndarray, " s"]:
    """The starts of all windows of a video into which no object enters late.

    Args:
        length: number of frames of the video.
        num_frames: number of frames of a window.
        entries: the frames of the video at which an object enters the view.
        last_entry: the last frame of a window, from 0, at which one may.
    """
    starts = np.arange(max(length - num_frames + 1, 0))
    places = np.asarray(entries)[:, None] - starts  # of the entries in each window
    return starts[~((places > last_entry) & (places < num_frames)).any(axis=0)]


def first_of_blocks(starts: Int[np.ndarray, " s"], num_frames: int) -> Int[np.ndarray, " b"]:
    """The first of these starts in every block of half a window; of SlotFormer's program."""
    _, first = np.unique(starts // max((num_frames - 1) // 2, 1), return_index=True)
    return starts[first]


def repeats(length: int, repeat_frames: int) -> int:
    """How often a video counts per epoch: floor(length / repeat_frames), but at least once."""
    return max(1, length // repeat_frames)


# ------------------------------------------------------------------------------------------ space


def draw_view(
    rng: np.random.Generator,
    height: int,
    width: int,
    crop: str = "area",
    flip: float = FLIP_PROBABILITY,
) -> View:
    """Draw a crop of frames (height, width), mirrored with probability `flip`.

    Args:
        rng: the generator.
        height: of the frames.
        width: of the frames.
        crop: "area", the default, is torchvision's RandomResizedCrop. "covering" is a crop that
            covers most of the frame, as SAVi++'s program crops. "square" is a square of the
            shorter side at a uniform position, as VideoSAUR's program crops YouTube-VIS. "centre"
            is the square in the middle, as DINOSAUR crops pictures. "none" is the whole frame, as
            VideoSAUR's program takes MOVi.
        flip: the probability.
    """
    draw = {
        "area": _area,
        "covering": _covering,
        "square": _square,
        "centre": lambda _, *size: centre_square(*size),
        "none": lambda _, *size: View(0, 0, *size),
    }[crop]
    return draw(rng, height, width)._replace(flipped=bool(rng.random() < flip))


def _area(rng: np.random.Generator, height: int, width: int) -> View:
    """Draw a crop of random area and aspect ratio.

    The crop's area is uniform in AREA times min(height, width)^2, its aspect ratio log-uniform in
    ASPECT, and its position uniform. Sizes are drawn until one fits, at most TRIES times. Otherwise
    the crop is the largest centered rectangle with an aspect ratio within ASPECT, as in
    torchvision's RandomResizedCrop.
    """
    for _ in range(TRIES):
        area = min(height, width) ** 2 * rng.uniform(*AREA)
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        rows, columns = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < rows <= height and 0 < columns <= width:
            top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
            return View(int(top), int(left), rows, columns)
    return _fallback(height, width)


def _covering(rng: np.random.Generator, height: int, width: int) -> View:
    """Draw a crop of at least 75 % of the frame.

    The law is that of TensorFlow's sample_distorted_bounding_box, with the whole frame as the
    object to cover: an aspect ratio (width / height) uniform in ASPECT, then a height uniform
    between that of 5 % of the area and the largest that fits, drawn until the crop is large enough.
    So small crops are likelier than under a law that is uniform in the area.
    """
    for _ in range(COVERING_TRIES):
        aspect = rng.uniform(*ASPECT)
        low = round(math.sqrt(SMALLEST * height * width / aspect))
        high = min(round(math.sqrt(height * width / aspect)), height)
        if round(high * aspect) > width:
            high = int((width + 0.5 - 1e-7) / aspect)
        rows = int(rng.integers(low, high + 1)) if low < high else high
        columns = min(round(rows * aspect), width)
        if rows * columns >= COVERED * height * width:
            # The last place is never drawn, as there.
            top = int(rng.integers(height - rows)) if rows < height else 0
            left = int(rng.integers(width - columns)) if columns < width else 0
            return View(top, left, rows, columns)
    return View(0, 0, height, width)


def _square(rng: np.random.Generator, height: int, width: int) -> View:
    side = min(height, width)
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    return View(int(top), int(left), side, side)


def _fallback(height: int, width: int) -> View:
    rows = min(height, round(width / ASPECT[0]))
    columns = min(width, round(height * ASPECT[1]))
    return View((height - rows) // 2, (width - columns) // 2, rows, columns)


def within(view: View, size: int, height: int, width: int) -> View:
    """Move a view of the central `size` x `size` pixels into frames (height, width) around them."""
    top, left = (height - size) // 2, (width - size) // 2
    return view._replace(top=view.top + top, left=view.left + left)


def centre_square(height: int, width: int) -> View:
    """The largest centered square; half pixels round to even, as in torchvision."""
    side = min(height, width)
    return View(round((height - side) / 2), round((width - side) / 2), side, side)


def view_pixels(
    frames: UInt8[np.ndarray, "T H W 3"],
    view: View,
    size: tuple[int, int],
    interpolation: str = "bilinear",
) -> UInt8[np.ndarray, "T h w 3"]:
    """Crop frames to `view` and resize to `size` (height, width) as `resize_pixels` does."""
    pixels = resize_pixels(_cut(frames, view), size, interpolation)
    if view.flipped:  # flip all rows at once with OpenCV: 40 times as fast as copying [:, :, ::-1]
        rows = pixels.reshape(-1, *pixels.shape[2:])
        pixels = cv2.flip(rows, 1).reshape(pixels.shape)
    return pixels


def view_labels(
    labels: UInt8[np.ndarray, "T H W"], view: View, size: tuple[int, int]
) -> UInt8[np.ndarray, "T h w"]:
    """Crop label maps to `view` and resize to `size` (height, width): nearest-exact."""
    seen = resize_labels(_cut(labels, view), size)
    return np.ascontiguousarray(seen[:, :, ::-1]) if view.flipped else seen


def view_depth(
    depth: Float32[np.ndarray, "T H W"], view: View, size: tuple[int, int]
) -> Float32[np.ndarray, "T h w"]:
    """Crop depth maps to `view` and resize to `size` (height, width)."""
    seen = resize_values(_cut(depth, view), size)
    return np.ascontiguousarray(seen[:, :, ::-1]) if view.flipped else seen


def view_flow(
    flow: Float32[np.ndarray, "T H W 2"], view: View, size: tuple[int, int]
) -> Float32[np.ndarray, "T h w 2"]:
    """Crop flow to `view` and resize to `size`; its lengths are scaled with each axis."""
    seen = resize_values(_cut(flow, view), size)
    seen *= np.array([size[0] / view.height, size[1] / view.width], np.float32)
    if view.flipped:
        seen = seen[:, :, ::-1] * np.array([1, -1], np.float32)
    return np.ascontiguousarray(seen)


def view_cameras(
    cameras: Float32[np.ndarray, "T 4 3"], view: View, size: tuple[int, int]
) -> Float32[np.ndarray, "T 4 3"]:
    """The cameras of frames of `size` (height, width) that are cropped to `view`."""
    crop = (view.top, view.left, view.height, view.width)
    return cropped(cameras, size, crop, view.flipped).astype(np.float32)


def view_boxes(
    boxes: Float32[np.ndarray, "... 4"], view: View, size: tuple[int, int]
) -> Float32[np.ndarray, "... 4"]:
    """The boxes (top, left, bottom, right in 0..1) of frames of `size`, as seen in `view`.

    They are clipped to the view. A box that lies outside of it becomes all zero, as absent ones
    are.
    """
    height, width = size
    scale = np.array([height, width, height, width], np.float32)
    corner = np.array([view.top, view.left, view.top, view.left], np.float32)
    side = np.array([view.height, view.width, view.height, view.width], np.float32)
    seen = np.clip((boxes * scale - corner) / side, 0, 1)
    if view.flipped:
        top, left, bottom, right = np.moveaxis(seen, -1, 0)
        seen = np.stack([top, 1 - right, bottom, 1 - left], axis=-1)
    there = (seen[..., 2] > seen[..., 0]) & (seen[..., 3] > seen[..., 1])
    there &= boxes.any(axis=-1)
    return np.where(there[..., None], seen, 0).astype(np.float32)


def _cut(pictures: np.ndarray, view: View) -> np.ndarray:
    bottom, right = view.top + view.height, view.left + view.width
    return pictures[:, view.top : bottom, view.left : right]


# ----------------------------------------------------------------------------------------- labels


def drop_absent(
    labels: UInt8[np.ndarray, "T H W"],
) -> tuple[UInt8[np.ndarray, "T H W"], Int[np.ndarray, " K"]]:
    """Renumber the objects visible in some frame as 1, 2, ..., in the order of their labels.

    The background stays 0, and NO_SEGMENT stays NO_SEGMENT.

    Returns:
        The new labels, and the original labels of the K visible objects.
    """
    rows = labels.reshape(-1, labels.shape[-1])
    seen = cv2.calcHist([rows], [0], None, [256], [0, 256]).ravel() > 0
    seen[[0, NO_SEGMENT]] = False
    table = np.cumsum(seen).astype(np.uint8)
    table[0], table[NO_SEGMENT] = 0, NO_SEGMENT
    return cv2.LUT(rows, table).reshape(labels.shape), np.flatnonzero(seen)
