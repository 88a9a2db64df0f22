"""Masks from attention: the resampling, the argmax, the slot mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.masks import interpolation_matrix, masks_from_attention


def random_attention(*shape, seed=0):
    logits = 3 * np.random.default_rng(seed).normal(size=shape)
    attention = np.exp(logits) / np.exp(logits).sum(axis=-2, keepdims=True)
    return attention.astype(np.float32)


@pytest.mark.parametrize("size", [(40, 40), (60, 100), (7, 9), (3, 4)])
def test_equals_bilinear_resize_and_argmax(size):
    attention = random_attention(2, 3, 5, 6 * 8)
    large = jax.image.resize(
        attention.reshape(2, 3, 5, 6, 8), (2, 3, 5, *size), "bilinear", antialias=False
    )
    top = np.sort(np.asarray(large), axis=2)
    clear = top[:, :, -1] - top[:, :, -2] > 1e-5  # elsewhere rounding decides
    masks = np.asarray(masks_from_attention(attention, (6, 8), size))
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(masks[clear], np.asarray(large.argmax(axis=2))[clear])


def test_resampling_by_hand():
    # Centres of 4 pixels over 2 tokens lie at -0.25, 0.25, 0.75, 1.25 tokens; edges repeat.
    expected = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    np.testing.assert_array_equal(interpolation_matrix(4, 2), expected)


def test_masked_slot_gets_no_pixel_and_changes_no_other():
    attention = random_attention(2, 3, 5, 16)
    slot_mask = jnp.array([[True] * 5, [True, True, False, True, False]])
    masks = np.asarray(masks_from_attention(attention, (4, 4), (12, 12), slot_mask))
    assert set(np.unique(masks[1])) <= {0, 1, 3}
    np.testing.assert_array_equal(
        masks[0], np.asarray(masks_from_attention(attention[0], (4, 4), (12, 12)))
    )
    smaller = np.asarray(masks_from_attention(attention[1][:, [0, 1, 3]], (4, 4), (12, 12)))
    np.testing.assert_array_equal(masks[1], np.array([0, 1, 3])[smaller])


def test_jit_gives_the_same_and_labels_are_small_integers():
    attention = random_attention(2, 3, 5, 16)
    jitted = jax.jit(masks_from_attention, static_argnums=(1, 2))
    masks = masks_from_attention(attention, (4, 4), (20, 12))
    np.testing.assert_array_equal(jitted(attention, (4, 4), (20, 12)), masks)
    assert masks.shape == (2, 3, 20, 12) and masks.dtype == jnp.uint8


def test_shapes_that_do_not_fit_are_refused():
    attention = random_attention(2, 3, 5, 16)
    with pytest.raises(UserError, match=r"16 tokens.*grid 5x5 has 25"):
        masks_from_attention(attention, (5, 5), (20, 20))
    with pytest.raises(UserError, match=r"slot_mask of shape \(2, 4\)"):
        masks_from_attention(attention, (4, 4), (20, 20), jnp.ones((2, 4), bool))
