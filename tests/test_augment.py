"""Windows, crops and flips against their definition (torchvision's RandomResizedCrop)."""

import math

import numpy as np
import pytest
import scipy.stats

from smoothsa_jax.inputs.augment import (
    RESTS,
    View,
    centre_square,
    draw_view,
    draw_window,
    drop_absent,
    first_of_blocks,
    repeats,
    settled_starts,
    view_labels,
    view_pixels,
    windows,
)
from smoothsa_jax.inputs.resize import resize_labels, resize_pixels

SEED = 0


def _views(height, width, count=4000):
    rng = np.random.default_rng(SEED)
    return [draw_view(rng, height, width) for _ in range(count)]


def _definition(height, width, count=40_000):
    """Accepted crops (area share, log aspect), straight from the definition, all at once."""
    rng = np.random.default_rng(SEED + 1)
    area = rng.uniform(0.75, 1, count)
    aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), count))
    side = min(height, width)
    rows, columns = np.round(side * np.sqrt(area / aspect)), np.round(side * np.sqrt(area * aspect))
    fits = (rows <= height) & (columns <= width)
    return area[fits], np.log(aspect[fits])


@pytest.mark.parametrize("height, width", [(600, 1400), (1400, 600), (1000, 1000)])
def test_size_of_a_crop_follows_the_definition(height, width):
    views = _views(height, width)
    area, aspect = _definition(height, width)
    side = min(height, width)
    shares = [view.height * view.width / side**2 for view in views]
    aspects = [math.log(view.width / view.height) for view in views]
    assert scipy.stats.ks_2samp(shares, area).pvalue > 1e-3
    assert scipy.stats.ks_2samp(aspects, aspect).pvalue > 1e-3


def test_where_every_size_fits_area_and_log_aspect_are_uniform():
    # Wide enough for every width; the height alone refuses some, so use the accepted ones' wide
    # half.
    views = [view for view in _views(600, 1400) if view.width / view.height > 1]
    aspects = [math.log(view.width / view.height) for view in views]
    uniform = scipy.stats.uniform(0, math.log(4 / 3))
    assert scipy.stats.kstest(aspects, uniform.cdf).pvalue > 1e-3
    shares = [view.height * view.width / 600**2 for view in views]
    assert scipy.stats.kstest(shares, scipy.stats.uniform(0.75, 0.25).cdf).pvalue > 1e-3


def test_place_is_uniform_and_inside_and_half_are_flipped():
    views = _views(300, 700)
    for view in views:
        assert 0 <= view.top <= 300 - view.height and 0 <= view.left <= 700 - view.width
    across = [(view.left + 0.5) / (700 - view.width + 1) for view in views]
    down = [(view.top + 0.5) / (300 - view.height + 1) for view in views if view.height < 270]
    assert scipy.stats.kstest(across, "uniform").pvalue > 1e-3
    assert scipy.stats.kstest(down, "uniform").pvalue > 1e-3
    assert scipy.stats.binomtest(sum(view.flipped for view in views), len(views)).pvalue > 1e-3


class _AlwaysLargest:
    """Draws that never fit into a square: the largest area and the most extreme aspect ratio."""

    def __init__(self):
        self.pairs = 0

    def uniform(self, low, high):
        self.pairs += 0.5
        return high

    def random(self):
        return 0.9


@pytest.mark.parametrize(
    "size, expected",
    [
        ((100, 100), View(0, 0, 100, 100)),
        ((90, 100), View(0, 0, 90, 100)),  # its aspect ratio is within 3/4..4/3: whole
    ],
)
def test_after_ten_tries_the_fallback_serves(size, expected):
    rng = _AlwaysLargest()
    assert draw_view(rng, *size) == expected
    assert rng.pairs == 10


@pytest.mark.parametrize(
    "size, expected",
    [((3, 100), View(0, 48, 3, 4)), ((100, 3), View(48, 0, 4, 3))],
)
def test_fallback_of_a_long_picture_is_in_the_middle(size, expected, monkeypatch):
    monkeypatch.setattr("smoothsa_jax.inputs.augment.TRIES", 0)
    assert draw_view(np.random.default_rng(0), *size)._replace(flipped=False) == expected


@pytest.mark.parametrize("size", [(30, 80), (80, 30)])
def test_a_random_square_has_the_shorter_side(size):
    """As VideoSAUR's program crops YouTube-VIS."""
    rng = np.random.default_rng(SEED)
    views = [draw_view(rng, *size, "square") for _ in range(3000)]
    assert {(view.height, view.width) for view in views} == {(30, 30)}
    assert {view.top if size[1] < size[0] else view.left for view in views} == set(range(51))
    places = [(view.top + view.left + rng.random()) / 51 for view in views]
    assert scipy.stats.kstest(places, "uniform").pvalue > 1e-3
    assert scipy.stats.binomtest(sum(view.flipped for view in views), len(views)).pvalue > 1e-3


def test_a_clip_may_be_seen_whole_and_never_or_always_mirrored():
    rng = np.random.default_rng(SEED)
    assert {draw_view(rng, 30, 80, "none", flip=0.0) for _ in range(20)} == {View(0, 0, 30, 80)}
    assert {draw_view(rng, 30, 80, "centre", 0.0) for _ in range(20)} == {View(0, 25, 30, 30)}
    assert all(draw_view(rng, 30, 80, flip=1.0).flipped for _ in range(20))


def test_centre_square():
    assert centre_square(10, 30) == View(0, 10, 10, 10)
    assert centre_square(31, 10) == View(10, 0, 10, 10)  # 10.5 is rounded to the even 10
    assert centre_square(33, 10) == View(12, 0, 10, 10)  # and 11.5 to 12
    assert centre_square(7, 7) == View(0, 0, 7, 7)


def test_what_a_view_shows():
    rng = np.random.default_rng(SEED)
    video = rng.integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    labels = rng.integers(0, 5, (3, 20, 30), dtype=np.uint8)
    view = View(top=2, left=5, height=12, width=17)
    pixels, seen = view_pixels(video, view, (8, 9)), view_labels(labels, view, (8, 9))
    np.testing.assert_array_equal(pixels, resize_pixels(video[:, 2:14, 5:22], (8, 9)))
    np.testing.assert_array_equal(seen, resize_labels(labels[:, 2:14, 5:22], (8, 9)))
    mirrored = view._replace(flipped=True)
    np.testing.assert_array_equal(view_pixels(video, mirrored, (8, 9)), pixels[:, :, ::-1])
    np.testing.assert_array_equal(view_labels(labels, mirrored, (8, 9)), seen[:, :, ::-1])


def cubic(distance: np.ndarray) -> np.ndarray:
    """Keys's kernel with the coefficient -0.75."""
    x, a = np.abs(distance), -0.75
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


@pytest.mark.parametrize("size", [(9, 13), (31, 40), (20, 30)])
def test_bicubic_resizing_follows_the_definition(size):
    """Without antialiasing; a pixel beyond the border is that at the border."""
    frame = np.random.default_rng(SEED).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    weights = []
    for new, old in zip(size, frame.shape, strict=False):
        centre = (np.arange(new)[:, None] + 0.5) * old / new - 0.5
        places = np.arange(-3, old + 3)
        shares = cubic(places - centre)
        assert np.allclose(shares.sum(axis=1), 1)
        table = np.zeros((new, old))
        for i, place in enumerate(places.clip(0, old - 1)):
            table[:, place] += shares[:, i]
        weights.append(table)
    exact = np.einsum("yr,rcx,zc->yzx", weights[0], frame.astype(np.float64), weights[1])
    found = resize_pixels(frame[None], size, "bicubic")[0]
    assert np.abs(found - exact.clip(0, 255)).max() < 0.5 + 1e-3
    assert (exact.min() < 0) == (exact.max() > 255) == (size != (20, 30))  # some are clipped


def test_windows_cover_the_video_and_the_last_is_moved_back():
    assert windows(24, 6) == [range(0, 6), range(6, 12), range(12, 18), range(18, 24)]
    assert windows(14, 6) == [range(0, 6), range(6, 12), range(8, 14)]
    assert windows(7, 6) == [range(0, 6), range(1, 7)]
    assert windows(6, 6) == [range(6)] and windows(4, 6) == [range(4)]
    assert windows(14, 6, "drop") == [range(0, 6), range(6, 12)]
    assert windows(14, 6, "keep") == [range(0, 6), range(6, 12), range(12, 14)]
    for rest in RESTS:
        assert windows(12, 6, rest) == [range(0, 6), range(6, 12)]
        assert windows(4, 6, rest) == [range(4)]


def test_every_window_is_as_likely():
    rng = np.random.default_rng(SEED)
    starts = [draw_window(rng, 14, 6).start for _ in range(3000)]
    values, counts = np.unique(starts, return_counts=True)
    assert values.tolist() == [0, 6, 8]
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_repeats_of_a_long_video():
    assert [repeats(t, 30) for t in (1, 29, 30, 31, 59, 60, 95)] == [1, 1, 1, 1, 1, 2, 3]


def test_absent_objects_are_dropped_and_the_others_keep_their_order():
    labels = np.array([[[0, 3, 255], [7, 7, 0]], [[0, 254, 255], [7, 3, 0]]], np.uint8)
    numbered, kept = drop_absent(labels)
    expected = [[[0, 1, 255], [2, 2, 0]], [[0, 3, 255], [2, 1, 0]]]
    np.testing.assert_array_equal(numbered, expected)
    assert kept.tolist() == [3, 7, 254] and numbered.dtype == np.uint8


def test_no_background_and_no_object():
    full, kept = drop_absent(np.full((1, 2, 2), 9, np.uint8))
    assert (full == 1).all() and kept.tolist() == [9]
    nothing, kept = drop_absent(np.full((1, 2, 2), 255, np.uint8))
    assert (nothing == 255).all() and kept.size == 0


def test_windows_without_late_entries_are_those_of_slotformer():
    """Frame by frame, as its paper's program has them: every `s`-th, the last three observed."""
    rng = np.random.default_rng(0)
    dropped = 0
    sizes = ((6, 10, 2, 128), (6, 42, 2, 128), (4, 3, 1, 20), (4, 4, 1, 20))
    for history, future, step, length in sizes:
        span = step * (history + future - 1) + 1
        for number in (0, 1, 3):
            entries = rng.choice(np.arange(1, length), number, replace=False)
            expected = []
            for start in range(length - span + 1):
                first, last = start + (history - 3) * step, start + (history + future - 1) * step
                if not any(first < t <= last for t in entries):
                    expected.append(start)
            found = settled_starts(length, span, entries, step * (history - 3))
            assert found.tolist() == expected
            dropped += length - span + 1 - len(expected)
            half, firsts = (span - 1) // 2, []
            for block in range(0, length - span + 1, half):
                firsts += [k for k in range(block, block + half) if k in expected][:1]
            assert first_of_blocks(found, span).tolist() == firsts
    assert dropped > 50
    assert settled_starts(5, 6, np.zeros(0, int), 0).tolist() == []
    assert settled_starts(6, 6, np.array([3]), 3).tolist() == [0]
