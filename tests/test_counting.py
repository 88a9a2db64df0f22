"""Counts on the device equal NumPy's exactly, and there is one program per shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation import upsampling
from smoothsa_jax.evaluation.counting import _counted, count_pixels, counted_masks
from smoothsa_jax.evaluation.masks import MaskEvaluator
from smoothsa_jax.evaluation.metrics import (
    METRICS,
    contingency,
    contingency_from_counts,
    score_batch,
    score_counts,
)
from smoothsa_jax.evaluation.split import evaluate
from smoothsa_jax.evaluation.upsampling import segments_from_masks
from smoothsa_jax.models.backend import Backend


def assert_same_counts(found, expected):
    for name in ("table", "predicted_area", "true_area"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_counts_equal_numpys_at_24x256x256():
    rng = np.random.default_rng(0)
    shape = (1, 24, 256, 256)
    true = np.where(rng.random(shape) < 0.8, 0, rng.integers(0, 6, shape)).astype(np.uint8)
    predicted = np.where(rng.random(shape) < 0.7, true, rng.integers(0, 8, shape)).astype(np.uint8)
    true[rng.random(shape) < 0.1] = 255
    predicted[rng.random(shape) < 0.1] = 255
    counts = jax.jit(count_pixels, static_argnums=2)(predicted, true, 8)
    assert counts.dtype == jnp.int32 and counts.shape == (1, 24, 9, 256)
    assert_same_counts(
        contingency_from_counts(counts[0]), contingency(predicted[0], true[0], 8)
    )  # of each frame
    assert_same_counts(
        contingency_from_counts(counts.sum(1)), contingency(predicted, true)
    )  # of the clip


@pytest.mark.parametrize("size, largest", [((12, 12), 3), ((20, 9), 254)])
def test_scores_equal_numpys_to_the_last_bit(size, largest):
    rng = np.random.default_rng(largest)
    logits = 2 * rng.normal(size=(3, 4, 5, 36)).astype(np.float32)
    masks = jax.nn.softmax(logits, axis=2).reshape(3, 4, 5, 6, 6)
    labels = rng.integers(0, largest + 1, (3, 4, *size)).astype(np.uint8)
    labels[0][labels[0] == 0] = 1  # a crop without background
    labels[1, :, :3] = 255  # pixels in no segment
    labels[2] = 255  # a clip without any
    slot_mask = np.array([[True] * 5, [True] * 2 + [False] * 3, [True] * 5])
    num_frames = np.array([4, 3, 4], np.int32)
    found = counted_masks(masks, labels, slot_mask, num_frames)
    np.testing.assert_array_equal(found.segments, segments_from_masks(masks, size, slot_mask))
    for b, length in enumerate(num_frames):
        one = np.asarray(found.segments)[b : b + 1, :length], labels[b : b + 1, :length]
        counts = contingency_from_counts(found.counts[b : b + 1])
        assert_same_counts(counts, contingency(*one))
        for column_always in (False, True):
            for paper in (False, True):
                options = {"match_paper": paper, "background_column_always": column_always}
                expected = score_batch(*one, **options)
                scores = score_counts(counts, **options)
                for name in METRICS:
                    np.testing.assert_array_equal(scores[name], expected[name])


def test_frames_together_give_the_same_as_one_by_one(monkeypatch):
    masks = jax.random.uniform(jax.random.key(0), (5, 3, 4, 4))
    alone = segments_from_masks(masks, (8, 8))
    monkeypatch.setattr(upsampling, "FRAMES_AT_ONCE", 2)
    together = segments_from_masks(masks, (8, 8), backend=Backend("tpu"))
    np.testing.assert_array_equal(alone, together)


def test_one_program_whatever_the_labels_hold():
    """Batches differ in their labels, and the last one in how many samples count."""

    def batches():
        rng = np.random.default_rng(0)
        for largest in (1, 3, 200, 254):
            labels = rng.integers(0, largest, (2, 1, 10, 10)).astype(np.uint8)
            valid = np.array([True, largest < 254])
            yield {"segmentations": labels, "video": labels[..., None], "valid": valid}

    masks = jax.random.uniform(jax.random.key(0), (2, 1, 3, 5, 5))
    before = _counted._cache_size()
    found = evaluate(lambda batch, key, paper: {"masks": masks}, batches(), MaskEvaluator())
    assert found.scores["ari"].shape == (1, 7)
    assert _counted._cache_size() == before + 1


def test_what_cannot_be_counted_is_refused():
    masks = jnp.zeros((1, 2, 256, 2, 2))
    with pytest.raises(UserError, match="256 slots"):
        counted_masks(masks, np.zeros((1, 2, 4, 4), np.uint8))
    batch = {"segmentations": np.full((1, 2, 4, 4), 300), "video": np.zeros((1, 2, 4, 4, 3))}
    with pytest.raises(UserError, match="labels hold numbers from 300"):
        evaluate(lambda b, k, p: {"masks": masks[:, :, :3]}, [batch], MaskEvaluator())
