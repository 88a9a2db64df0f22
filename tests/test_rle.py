"""Masks as run lengths and polygons, against slow and simple definitions."""

import numpy as np
import pytest

from data.family import BadSample
from data.rle import counts_of, decode, fill


def run_lengths(mask: np.ndarray) -> list[int]:
    """By walking down the columns, a pixel at a time."""
    counts, inside = [0], False
    for column in range(mask.shape[1]):
        for row in range(mask.shape[0]):
            if bool(mask[row, column]) != inside:
                inside = not inside
                counts.append(0)
            counts[-1] += 1
    return counts


def compressed(counts: list[int]) -> str:
    text = ""
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        while True:
            group, value = value & 31, value >> 5
            # No more groups once the rest is only copies of this one's sign.
            more = value != (-1 if group & 16 else 0)
            text += chr(48 + group + (32 if more else 0))
            if not more:
                break
    return text


def masks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    cases = [
        rng.random((h, w)) < share for h, w, share in [(7, 5, 0.5), (40, 60, 0.02), (1, 9, 0.9)]
    ]
    disc = np.hypot(*np.mgrid[-50:50, -80:80]) < 40
    return [*cases, disc, np.zeros((300, 200), bool), np.ones((300, 200), bool)]


@pytest.mark.parametrize("mask", masks())
def test_run_lengths_give_the_mask(mask):
    counts = run_lengths(mask)
    assert counts_of(compressed(counts), "x") == counts
    for stored in (counts, compressed(counts), compressed(counts).encode()):
        rle = {"size": list(mask.shape), "counts": stored}
        np.testing.assert_array_equal(decode(rle, mask.shape, "x"), mask)


@pytest.mark.parametrize(
    ("rle", "expected"),
    [
        ({"size": [2, 3], "counts": [1, 4]}, r"counts 5 pixels, its size \[2, 3\] has 6"),
        ({"size": [2, 3], "counts": [7, -1]}, "counts 6 pixels"),
        ({"size": [3, 2], "counts": [1, 5]}, r"size \[3, 2\], the image \[2, 3\]"),
        ({"size": [2, 3], "counts": ["a"]}, "expected a text or a list of whole numbers"),
        ({"size": [2, 3], "counts": None}, "expected a text or a list of whole numbers"),
        ({"size": [2], "counts": [2]}, r"size \[2\], the image"),
        ({"counts": [6]}, "size None, the image"),
        ([[1, 2, 3, 4, 5, 6]], "expected an RLE, found a list"),
        ({"size": [2, 3]}, "counts"),
        ({"size": [2, 3], "counts": "1\x7f"}, "character"),
        ({"size": [2, 3], "counts": "1P"}, "ends within a number"),
    ],
)
def test_run_lengths_that_do_not_fit(rle, expected):
    with pytest.raises(BadSample, match=expected):
        decode(rle, (2, 3), "x")


def test_polygons_hold_the_pixels_whose_centres_are_inside():
    rng = np.random.default_rng(1)
    rows, columns = np.mgrid[:24, :31] + 0.5
    for _ in range(20):
        corners = rng.uniform(-5, 36, (rng.integers(3, 9), 2)).round(2)
        inside = np.zeros(rows.shape, bool)
        for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            crosses = (y0 <= rows) != (y1 <= rows)
            if y0 != y1:
                inside ^= crosses & (x0 + (x1 - x0) * (rows - y0) / (y1 - y0) <= columns)
        filled = fill([corners.ravel().tolist()], (24, 31), "x")
        assert (filled != inside).sum() == 0


def test_polygons_of_one_object_are_joined():
    square, inner = [2, 2, 8, 2, 8, 8, 2, 8], [4, 4, 12, 4, 12, 6, 4, 6]
    mask = fill([square, inner], (10, 14), "x")
    expected = np.zeros((10, 14), bool)
    expected[2:8, 2:8] = expected[4:6, 4:12] = True
    np.testing.assert_array_equal(mask, expected)


def test_polygons_outside_of_the_image():
    for polygon in ([-9, -9, -2, -9, -2, -2], [50, 2, 60, 2, 60, 8], [1, 1, 5, 1, 9, 1]):
        assert not fill([polygon], (10, 10), "x").any()


@pytest.mark.parametrize("polygon", [[1, 2, 3, 4], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5, None]])
def test_what_is_no_polygon(polygon):
    with pytest.raises(BadSample, match="a polygon"):
        fill([polygon], (10, 10), "x")
