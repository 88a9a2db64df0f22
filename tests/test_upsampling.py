"""Segments from masks: the resampling, the argmax, the slot mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.upsampling import interpolation_matrix, segments_from_masks


def random_masks(*shape, seed=0):
    logits = 3 * np.random.default_rng(seed).normal(size=shape)
    masks = np.exp(logits) / np.exp(logits).sum(axis=-3, keepdims=True)
    return masks.astype(np.float32)


@pytest.mark.parametrize("size", [(40, 40), (60, 100), (7, 9), (3, 4)])
def test_equals_bilinear_resize_and_argmax(size):
    masks = random_masks(2, 3, 5, 6, 8)
    large = jax.image.resize(masks, (2, 3, 5, *size), "bilinear", antialias=False)
    top = np.sort(np.asarray(large), axis=2)
    clear = top[:, :, -1] - top[:, :, -2] > 1e-5  # elsewhere rounding decides
    segments = np.asarray(segments_from_masks(masks, size))
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(segments[clear], np.asarray(large.argmax(axis=2))[clear])


def test_resampling_by_hand():
    # Centres of 4 pixels over 2 tokens lie at -0.25, 0.25, 0.75, 1.25 tokens; edges repeat.
    expected = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    np.testing.assert_array_equal(interpolation_matrix(4, 2), expected)


def test_masked_slot_gets_no_pixel_and_changes_no_other():
    masks = random_masks(2, 3, 5, 4, 4)
    slot_mask = jnp.array([[True] * 5, [True, True, False, True, False]])
    segments = np.asarray(segments_from_masks(masks, (12, 12), slot_mask))
    assert set(np.unique(segments[1])) <= {0, 1, 3}
    np.testing.assert_array_equal(segments[0], np.asarray(segments_from_masks(masks[0], (12, 12))))
    smaller = np.asarray(segments_from_masks(masks[1][:, [0, 1, 3]], (12, 12)))
    np.testing.assert_array_equal(segments[1], np.array([0, 1, 3])[smaller])


def test_jit_gives_the_same_and_labels_are_small_integers():
    masks = random_masks(2, 3, 5, 4, 4)
    jitted = jax.jit(segments_from_masks, static_argnums=1)
    segments = segments_from_masks(masks, (20, 12))
    np.testing.assert_array_equal(jitted(masks, (20, 12)), segments)
    assert segments.shape == (2, 3, 20, 12) and segments.dtype == jnp.uint8


def test_shapes_that_do_not_fit_are_refused():
    masks = random_masks(2, 3, 5, 4, 4)
    for shape in ((2, 4), (3, 5), (2, 2, 5)):
        with pytest.raises(
            UserError, match=r"slot_mask of shape .*masks of shape \(2, 3, 5, 4, 4\)"
        ):
            segments_from_masks(masks, (20, 20), jnp.ones(shape, bool))
