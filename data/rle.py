"""Decode the masks of COCO and YouTube-VIS: run lengths and polygons.

Run lengths count pixels column by column, alternating between outside and inside the mask, starting
outside. They are a list or a text. In a text, every number from the fourth on is stored as its
difference to the last but one. A number is split into groups of 5 bits, lowest first, one character
each: 48 + bits, + 32 if more groups follow. The highest bit of the last group is the sign.
"""

from typing import Any

import numpy as np

from data.big_json import LARGEST
from data.family import BadSample
from smoothsa_jax.text import short

OFFSET, BITS, MORE, SIGN = 48, 5, 32, 16


def decode(rle: dict[str, Any], shape: tuple[int, int], where: str) -> np.ndarray:
    """Decode run lengths to a mask (H,W) bool.

    Args:
        rle: `size` (height, width) and `counts`, a list or a text.
        shape: height and width of the image in pixels.
        where: the name of the mask in error messages.

    Raises:
        BadSample: the run lengths are damaged, or do not fit `shape`.
    """
    if not isinstance(rle, dict):
        raise BadSample(
            f"{where}: expected an RLE, found a {type(rle).__name__}; download the annotations "
            "again"
        )
    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(size, list) or size != list(shape):
        raise BadSample(
            f"{where}: the RLE has size {short(size)}, the image {list(shape)}; download the "
            "annotations again"
        )
    num_pixels = shape[0] * shape[1]
    if isinstance(counts, (str, bytes)):
        counts = counts_of(counts, where)
    lengths = _numbers(counts)
    if lengths is None or lengths.ndim != 1 or (lengths != np.floor(lengths)).any():
        raise BadSample(
            f"{where}: the RLE's counts are {short(counts)}, expected a text or a list of whole "
            "numbers; download the annotations again"
        )
    if (lengths < 0).any() or lengths.sum() != num_pixels:
        raise BadSample(
            f"{where}: the RLE counts {lengths.sum():.0f} pixels, its size {list(shape)} has "
            f"{num_pixels}; download the annotations again"
        )
    lengths = lengths.astype(np.int64)
    inside = np.arange(len(lengths)) % 2 == 1
    return np.repeat(inside, lengths).reshape(shape[::-1]).T


def counts_of(text: str | bytes, where: str) -> list[int]:
    """Decode the run lengths of a text.

    Raises:
        BadSample: the text ends within a number, or has characters that RLE does not use.
    """
    counts: list[int] = []
    value = shift = 0
    for code in text.encode("utf-8", "replace") if isinstance(text, str) else text:
        group = code - OFFSET
        if not 0 <= group < 2 * MORE:
            raise BadSample(
                f"{where}: the RLE has the character {chr(code)!r}; download the annotations again"
            )
        value |= (group & (MORE - 1)) << shift
        shift += BITS
        if group & MORE:
            continue
        if group & SIGN:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise BadSample(f"{where}: the RLE ends within a number; download the annotations again")
    return counts


def fill(polygons: list[list[float]], shape: tuple[int, int], where: str) -> np.ndarray:
    """Fill polygons, each x, y, x, y, ... in pixels, and return the union as a mask (H,W) bool.

    A pixel is inside if its center is (even-odd rule). pycocotools draws the outline on a grid five
    times finer and rounds there; the two differ only at pixels on the outline.

    Raises:
        BadSample: a polygon has fewer than three corners, or values that are not finite numbers.
    """
    if not isinstance(polygons, list):
        raise BadSample(
            f"{where}: the segmentation is {short(polygons)}, expected a list of polygons, or an "
            "RLE; download the annotations again"
        )
    mask = np.zeros(shape, bool)
    for polygon in polygons:
        values = _numbers(polygon)
        if values is None or values.size % 2 or values.ndim > 2:
            raise BadSample(
                f"{where}: a polygon is {short(polygon)}, expected a list of x, y, ...; download "
                "the annotations again"
            )
        corners = values.reshape(-1, 2)
        if len(corners) < 3:
            raise BadSample(
                f"{where}: a polygon has {len(corners)} corners, expected at least 3; download the "
                "annotations again"
            )
        mask |= _fill(corners, shape)
    return mask


def _fill(corners: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    height, width = shape
    start, end = corners, np.roll(corners, -1, axis=0)
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    # An edge crosses rows whose centers are in low <= y < high, so a shared corner counts once.
    first = np.clip(np.ceil(low - 0.5), 0, height).astype(int)
    last = np.clip(np.ceil(high - 0.5), 0, height).astype(int)
    edges = np.repeat(np.arange(len(corners)), last - first)
    within = np.arange(len(edges)) - np.repeat(
        np.cumsum(last - first) - (last - first), last - first
    )
    rows = first[edges] + within
    rise = end[edges] - start[edges]
    x = start[edges, 0] + rise[:, 0] * (rows + 0.5 - start[edges, 1]) / rise[:, 1]
    columns = np.clip(np.ceil(x - 0.5), 0, width).astype(int)
    mask = np.zeros(shape, bool)
    if not len(rows):
        return mask
    # Everything to the right of a crossing toggles; right of the last crossing, all is outside.
    top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max()
    crossings = np.zeros((bottom - top, right - left + 1), np.int32)
    np.add.at(crossings, (rows - top, columns - left), 1)
    mask[top:bottom, left:right] = np.cumsum(crossings, axis=1)[:, :-1] % 2 == 1
    return mask


def _numbers(values: Any) -> np.ndarray | None:
    """A list of finite numbers as float64, in which pixels are exact; None if it is no such list.

    NumPy would also take texts of digits for numbers.
    """
    try:
        found = np.array(values) if isinstance(values, list) else None
    except (ValueError, OverflowError):  # lists of several lengths
        return None
    if found is None or found.dtype.kind not in "iuf":
        return None
    found = found.astype(np.float64)
    return found if (np.abs(found) <= LARGEST).all() else None
