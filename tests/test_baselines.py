"""The segmentations that need no learning."""

import numpy as np
import pytest

from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.baselines import (
    block_pattern,
    boxes_kept_still,
    kmeans,
    kmeans_on_features,
    kmeans_on_rgb,
    num_true_segments,
)


def test_boxes_are_filled_with_both_ends_and_kept():
    boxes = np.full((3, 4, 4), -1, np.float32)
    boxes[:, 0] = np.array([1, 2, 5, 6]) / [16, 8, 16, 8]  # left, top, right, bottom
    boxes[:, 1] = 0  # absent from the first frame
    boxes[1:, 0] = 0.5  # later boxes are not looked at
    masks = boxes_kept_still(boxes, (8, 16))
    expected = np.zeros((8, 16), np.uint8)
    expected[2:7, 1:6] = 1
    np.testing.assert_array_equal(masks, [expected] * 3)


def test_smaller_box_is_on_top():
    boxes = np.zeros((1, 3, 4), np.float32)
    boxes[0, 0] = np.array([2, 2, 3, 3]) / 8
    boxes[0, 1] = np.array([0, 0, 7, 7]) / 8  # the whole frame
    boxes[0, 2] = np.array([1, 1, 5, 5]) / 8
    mask = boxes_kept_still(boxes, (8, 8))[0]
    assert (mask[2:4, 2:4] == 1).all() and mask[1, 1] == 3 and mask[0, 0] == mask[7, 7] == 2
    assert (mask > 0).all()


def test_number_of_segments():
    assert num_true_segments(np.array([[[0, 3], [255, 3]]], np.uint8)) == 2
    assert num_true_segments(np.full((1, 2, 2), 255, np.uint8)) == 1


@pytest.mark.parametrize("count", range(1, 12))
def test_blocks_share_every_frame_equally(count):
    masks = block_pattern(count, 2, (120, 132))
    assert masks.shape == (2, 120, 132) and masks.dtype == np.uint8
    np.testing.assert_array_equal(masks[0], masks[1])
    pixels = np.bincount(masks[0].ravel())
    assert len(pixels) == count and abs(pixels / pixels.mean() - 1).max() < 0.1
    for number in range(count):  # each is a rectangle
        rows, columns = np.nonzero(masks[0] == number)
        assert pixels[number] == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)


def test_blocks_are_about_as_high_as_wide():
    np.testing.assert_array_equal(block_pattern(4, 1, (2, 2)), [[[0, 2], [1, 3]]])
    np.testing.assert_array_equal(
        block_pattern(3, 1, (2, 6)), [[[0, 0, 0, 0, 2, 2], [1, 1, 1, 1, 2, 2]]]
    )


def test_kmeans_finds_separate_groups():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(5, 8)) * 5
    points = (truth[rng.integers(0, 5, 400)] + 0.1 * rng.normal(size=(400, 8))).astype(np.float32)
    centres = kmeans(points, 5)
    distance = np.linalg.norm(truth[:, None] - centres, axis=-1)
    assert sorted(distance.argmin(axis=1)) == list(range(5)) and distance.min(axis=1).max() < 0.1


def test_kmeans_is_deterministic_and_takes_more_clusters_than_points():
    points = np.random.default_rng(0).random((200, 3), np.float32)
    np.testing.assert_array_equal(kmeans(points, 4, seed=1), kmeans(points, 4, seed=1))
    assert not np.array_equal(kmeans(points, 4, seed=1), kmeans(points, 4, seed=2))
    same = np.ones((10, 3), np.float32)
    np.testing.assert_array_equal(kmeans(same, 3), np.ones((3, 3)))
    with pytest.raises(UserError, match="0 clusters"):
        kmeans(points, 0)


def test_clusters_go_through_time():
    """Two colours that change places between frames keep their numbers."""
    video = np.zeros((2, 32, 32, 3), np.uint8)
    video[0, :, :16] = video[1, :, 16:] = 200
    masks = kmeans_on_rgb(video, 2, num_fitted=500)
    np.testing.assert_array_equal(masks[0, :, :16], masks[1, :, 16:])
    assert masks[0, 0, 0] != masks[0, 0, 31] and masks.dtype == np.uint8
    features = video[:, 2::4, 2::4] / 255
    masks = kmeans_on_features(features, 2, (32, 32))
    np.testing.assert_array_equal(masks[0, :, :16], masks[1, :, 16:])
    assert masks.shape == (2, 32, 32) and len(np.unique(masks)) == 2
