"""Resizing of pixels and labels, as the authors' program does it (method section 6.1).

Pixels: bilinear with antialias, in float32, rounded to uint8. Labels: the nearest pixel, so that no label is mixed.
Both use half-pixel centres. The float32 operations run in the order of the authors' program (rows first, neighbours
from first to last), so that a value half-way between two levels is rounded to the same side as theirs nearly always.
"""

import functools

import cv2
import numpy as np
import scipy.sparse

from smoothsa_jax.errors import UserError


def resize_pixels(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resizing with antialias.

    Making an image smaller, each new pixel averages over as many old ones as it covers; making it larger, this is plain
    bilinear interpolation.

    Args:
        pixels: (..., H, W, 3) uint8.
        size: new height and width in pixels.

    Returns:
        (..., *size, 3) uint8, contiguous.

    Raises:
        UserError: not uint8, or a size below 1.
    """
    if pixels.dtype != np.uint8:
        raise UserError(f"pixels to resize are {pixels.dtype}, expected uint8: convert them first")
    height, width = _checked(size)
    resized = np.empty((*pixels.shape[:-3], height, width, 3), np.uint8)
    # One by one: what a picture needs on the way stays in the processor's cache.
    for place in np.ndindex(pixels.shape[:-3]):
        values = _weigh_rows(pixels[place].astype(np.float32), height)
        values = cv2.transpose(_weigh_rows(cv2.transpose(values), width))
        cv2.convertScaleAbs(values, dst=resized[place])  # rounds half to even, as np.rint
    return resized


def resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Each new pixel takes the label of the old pixel that its centre lies in.

    Args:
        labels: (..., H, W) of any type.
        size: new height and width in pixels.

    Returns:
        (..., *size) of the same type, contiguous.

    Raises:
        UserError: a size below 1.
    """
    height, width = _checked(size)
    rows = _nearest(height, labels.shape[-2])
    columns = _nearest(width, labels.shape[-1])
    # Two takes are four times as fast as one with both indices.
    return labels.take(columns, axis=-1).take(rows, axis=-2)


def _weigh_rows(values: np.ndarray, num_out: int) -> np.ndarray:
    """Resizes the first axis of float32 values (rows, columns, 3)."""
    num_in = len(values)
    if num_in == num_out:
        return values
    # The sparse product adds the neighbours of a new pixel one after the other, as the authors' program does.
    resized = _weights(num_out, num_in) @ values.reshape(num_in, -1)
    return resized.reshape(num_out, *values.shape[1:])


@functools.lru_cache(maxsize=256)
def _weights(num_out: int, num_in: int) -> scipy.sparse.csr_array:
    """The share (num_out, num_in) of every old pixel in every new one: a triangle, each row normalised to sum 1."""
    scale = np.float32(num_in) / np.float32(num_out)
    reach = max(scale, np.float32(1))  # half the width of the triangle, in old pixels
    centre = scale * (np.arange(num_out, dtype=np.float32) + np.float32(0.5))
    first = np.maximum((centre - reach + np.float32(0.5)).astype(np.int64), 0)
    end = np.minimum((centre + reach + np.float32(0.5)).astype(np.int64), num_in)
    taps = (end - first).max()
    old = first[:, None] + np.arange(taps)  # (num_out, taps)
    distance = np.abs(old.astype(np.float32) - centre[:, None] + np.float32(0.5))
    weights = np.maximum(1 - distance * (np.float32(1) / reach), 0)
    weights[old >= end[:, None]] = 0
    # cumsum adds one after the other; sum would pair the terms.
    weights /= np.cumsum(weights, axis=1)[:, -1:]
    rows = np.arange(num_out + 1) * taps
    columns = np.minimum(old, num_in - 1)
    return scipy.sparse.csr_array((weights.ravel(), columns.ravel(), rows), (num_out, num_in))


def _nearest(num_out: int, num_in: int) -> np.ndarray:
    """The old pixel (num_out,) that the centre of each new pixel lies in."""
    scale = np.float32(num_in) / np.float32(num_out)
    centre = ((np.arange(num_out) + 0.5) * np.float64(scale)).astype(np.float32)
    return np.minimum(np.floor(centre).astype(np.int64), num_in - 1)


def _checked(size: tuple[int, int]) -> tuple[int, int]:
    height, width = size
    if height < 1 or width < 1:
        raise UserError(f"a size of {height}x{width} pixels was asked for, expected at least 1x1")
    return height, width
