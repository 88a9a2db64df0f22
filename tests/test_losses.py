"""The loss terms against their definitions in NumPy: values, per-sample masks, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smoothsa_jax.errors import UserError
from smoothsa_jax.losses.attention import attention_match_loss
from smoothsa_jax.losses.build import build_losses
from smoothsa_jax.losses.reconstruction import reconstruction_loss
from smoothsa_jax.losses.slots import distillation_loss, slot_contrast_loss

RNG = np.random.default_rng(0)
SLOTS = RNG.standard_normal((3, 4, 5, 6)).astype("f")  # B, T, N, D
WARM = RNG.standard_normal((3, 5, 6)).astype("f")
# Of each sample its own number of valid slots, and not the first ones only.
MASK = np.array([[1, 1, 1, 1, 1], [0, 1, 0, 1, 0], [1, 1, 0, 0, 1]], bool)


def contrast(slots, mask, temperature=0.1):
    """The definition, slot by slot: cross-entropy of each slot towards its previous frame's."""
    terms = []
    for t in range(slots.shape[1] - 1):
        earlier, later = (slots[:, s][mask].astype(float) for s in (t, t + 1))
        earlier /= np.linalg.norm(earlier, axis=1, keepdims=True)
        later /= np.linalg.norm(later, axis=1, keepdims=True)
        for own, slot in enumerate(later):
            similarity = earlier @ slot / temperature
            terms.append(np.log(np.exp(similarity).sum()) - similarity[own])
    return np.mean(terms)


# Each operation by itself would be compiled by itself.
contrast_loss = jax.jit(slot_contrast_loss, static_argnames="alone")


@pytest.mark.parametrize("mask", [None, MASK], ids=["all valid", "masked"])
def test_slot_contrast_is_its_definition(mask):
    valid = np.ones_like(MASK) if mask is None else mask
    loss = contrast_loss(jnp.asarray(SLOTS), mask)
    np.testing.assert_allclose(loss, contrast(SLOTS, valid), rtol=1e-5)
    # The softmax runs over the earlier frame's slots: time turned round is another number.
    backwards = contrast(SLOTS[:, ::-1], valid)
    assert abs(loss - backwards) > 1e-3


@pytest.mark.parametrize("mask", [None, MASK], ids=["all valid", "masked"])
def test_slot_contrast_of_each_video_on_its_own(mask):
    """Each video's valid slots alone are compared; every slot counts the same."""
    valid = np.ones_like(MASK) if mask is None else mask
    videos = [contrast(SLOTS[b : b + 1], valid[b : b + 1]) for b in range(len(SLOTS))]
    expected = np.average(videos, weights=valid.sum(axis=1))
    loss = contrast_loss(jnp.asarray(SLOTS), mask, alone=True)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    # A video without any slot changes nothing, and no gradient breaks.
    none = np.append(valid, np.zeros_like(valid[:1]), axis=0)
    more = jnp.asarray(np.append(SLOTS, SLOTS[:1], axis=0))
    run = jax.jit(jax.value_and_grad(lambda slots: slot_contrast_loss(slots, none, alone=True)))
    loss, gradient = run(more)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert np.isfinite(gradient).all() and not np.any(gradient[-1])


def test_slot_contrast_trains_both_frames_and_no_masked_slot():
    gradient = jax.jit(jax.grad(slot_contrast_loss))(jnp.asarray(SLOTS[:, :2]), MASK)
    assert np.isfinite(gradient).all()
    reached = np.abs(gradient).max(axis=-1) > 0  # (B, T, N)
    np.testing.assert_array_equal(reached, np.broadcast_to(MASK[:, None], reached.shape))


def test_slot_contrast_of_a_slot_of_zeros_is_finite():
    """Its norm is floored, so it resembles nothing; neither the loss nor a gradient breaks."""
    slots = jnp.asarray(SLOTS).at[0, 1, 2].set(0.0)
    loss, gradient = jax.jit(jax.value_and_grad(slot_contrast_loss))(slots)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("mask", [None, MASK], ids=["all valid", "masked"])
def test_distillation_is_its_definition(mask):
    valid = np.ones_like(MASK) if mask is None else mask
    target = SLOTS[:, 0]
    loss = distillation_loss(jnp.asarray(WARM), jnp.asarray(target), mask)
    np.testing.assert_allclose(loss, np.mean((WARM - target)[valid] ** 2), rtol=1e-6)


def test_distillation_trains_the_queries_alone():
    to_queries, to_target = jax.grad(distillation_loss, argnums=(0, 1))(
        jnp.asarray(WARM), jnp.asarray(SLOTS[:, 0]), MASK
    )
    assert not np.any(to_target)
    np.testing.assert_array_equal(np.abs(to_queries).max(axis=-1) > 0, MASK)


def test_reconstruction_is_its_definition_and_has_a_constant_target():
    features = RNG.standard_normal((2, 3, 4, 5)).astype("f")
    reconstruction = RNG.standard_normal((2, 3, 4, 5)).astype("f")
    loss, grads = jax.value_and_grad(reconstruction_loss, argnums=(0, 1))(
        jnp.asarray(reconstruction), jnp.asarray(features)
    )
    np.testing.assert_allclose(loss, np.mean((reconstruction - features) ** 2), rtol=1e-6)
    np.testing.assert_allclose(grads[0], 2 * (reconstruction - features) / features.size, rtol=1e-5)
    assert not np.any(grads[1])


def weighted(outputs, mask, config):
    """The terms of a config, each times its weight."""
    losses = build_losses(config)
    outputs = outputs if mask is None else {**outputs, "slot_mask": mask}
    return losses(outputs, {}, losses.schedules)


def with_weights(**weights):
    settings = {"slot_contrast": {"temperature": 0.1}}
    return {name: {"weight": x, **settings.get(name, {})} for name, x in weights.items()}


def test_weighted_sum():
    outputs = {
        "slots": jnp.asarray(SLOTS),
        "warm_queries": jnp.asarray(WARM),
        "target": jnp.ones((3, 4, 2, 2)),
        "prediction": jnp.zeros((3, 4, 2, 2)),
    }
    weights = {"reconstruction": 3.0, "distillation": 100.0, "slot_contrast": 0.5}
    once = weighted(outputs, MASK, with_weights(**dict.fromkeys(weights, 1.0)))
    assert set(once) == {"reconstruction", "distillation", "slot_contrast"}
    for name, loss in weighted(outputs, MASK, with_weights(**weights)).items():
        np.testing.assert_allclose(loss, weights[name] * once[name], rtol=1e-6)
    # The distillation's target is the first frame's slots alone.
    np.testing.assert_allclose(
        once["distillation"], distillation_loss(WARM, SLOTS[:, 0], MASK), rtol=1e-6
    )
    # A term that is off is not computed: what it needs may be missing.
    del outputs["warm_queries"]
    with pytest.raises(UserError, match="losses.distillation needs warm_queries, which this model"):
        weighted(outputs, MASK, with_weights(**weights))
    for off in ({**weights, "distillation": 0.0}, {k: weights[k] for k in weights if k[0] != "d"}):
        left = weighted(outputs, MASK, with_weights(**off))
        assert set(left) == {"reconstruction", "slot_contrast"}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"reconstruction": {"weight": 0.0}}, "all loss weights are 0"),
        ({"reconstruction": {}}, "losses.reconstruction has no weight"),
        ({"reconstruction": {"weight": -1.0}}, "losses.reconstruction.weight is -1.0; expected"),
        ({"reconstructoin": {"weight": 1.0}}, "did you mean 'reconstruction'"),
        ({"slot_contrast": {"weight": 1.0}}, "needs losses.slot_contrast.temperature"),
        (
            {"slot_contrast": {"weight": 1.0, "temperature": 0.1, "temprature": 1.0}},
            "losses.slot_contrast.temprature is not a setting of .*did you mean 'temperature'",
        ),
    ],
)
def test_what_is_no_loss_is_refused(config, words):
    with pytest.raises(UserError, match=words):
        build_losses(config)


def test_the_temperature_is_that_of_the_config():
    for temperature in (0.1, 0.5):
        config = {"slot_contrast": {"weight": 1.0, "temperature": temperature}}
        found = weighted({"slots": jnp.asarray(SLOTS)}, MASK, config)["slot_contrast"]
        np.testing.assert_allclose(found, contrast(SLOTS, MASK, temperature), rtol=1e-5)
    losses = build_losses(config)
    losses.check_frames(2)
    with pytest.raises(UserError, match="slot_contrast compares 2 frames, but clips have 1"):
        losses.check_frames(1)


def test_a_masked_slot_of_a_student_teaches_nothing():
    """A teacher with more slots than the student has in use: the loss stays finite."""
    rng = np.random.default_rng(0)
    student, teacher = (rng.standard_normal((2, 4, 9)).astype(np.float32) for _ in range(2))
    masked = np.array([[True, True, False, True], [True, False, False, True]])
    run = jax.jit(jax.value_and_grad(attention_match_loss))
    loss, gradient = run(np.where(masked[:, :, None], student, -np.inf), teacher)
    assert np.isfinite(loss) and loss > 0 and np.isfinite(gradient).all()
    assert not np.asarray(gradient)[~masked].any()
