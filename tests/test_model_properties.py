"""Properties of every model: symmetry, masks, gradients that must not flow, time, randomness."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import tiny_config

from smoothsa_jax.errors import UserError
from smoothsa_jax.losses.build import weighted_losses
from smoothsa_jax.models.aggregators.slot_attention import SlotAttention
from smoothsa_jax.models.build import build_model
from smoothsa_jax.models.draws import (
    Draws,
    sample_evaluation_draws,
    sample_training_draws,
    sample_visible,
)
from smoothsa_jax.models.parameters import split

CLOSE = 2e-5  # sums in another order, in float32
CASES = [
    "video-boxes-random_ar",
    "video-gaussian-mlp_mixture",
    "image-boxes-mlp_mixture",
    "image-gaussian-random_ar",
]
HISTORY = 3  # less than the frames of a clip, so that the bound shows


@dataclasses.dataclass
class Case:
    """A small model with random parameters, and inputs for it."""

    definition: object
    params: dict
    frozen: dict
    features: np.ndarray
    boxes: np.ndarray
    draws: Draws
    slot_mask: np.ndarray
    settings: object
    video: np.ndarray

    def __post_init__(self):
        self.run = jax.jit(self.apply)

    def apply(self, params, features, draws, boxes=None, mask=None, detach=False):
        model = self.definition.merge(params, self.frozen)
        return model(features, draws, boxes, mask, detach)


def make_case(
    name: str, first_iterations: int = 2, later_iterations: int = 1, warmer: bool = True
) -> Case:
    kind, initializer, decoder = name.split("-")
    frames = 4 if kind == "video" else 1
    config = tiny_config(num_frames=frames, initializer=initializer, decoder=decoder)
    settings = config.model.slot_attention
    settings.first_iterations, settings.later_iterations = first_iterations, later_iterations
    config.model.initializer.warmer = warmer
    if frames > 1:
        config.model.transition.history = HISTORY
    size = config.data.image_size
    model = nnx.eval_shape(lambda: build_model(config.model, (size, size), 0))
    definition, params, frozen = split(model)
    rng = np.random.default_rng(0)

    def fill(name, array):
        """Distinct values in every entry, so that symmetric initial values hide no fault."""
        scale = 0.3 if len(array.shape) < 2 else array.shape[-2] ** -0.5
        centre = 1.0 if name.endswith("scale") else 0.0
        return jnp.asarray(centre + scale * rng.standard_normal(array.shape), jnp.float32)

    batch, num_slots, slot_size = 3, settings.num_slots, settings.slot_size
    tokens, width = model.backbone.num_tokens, model.backbone.feature_size
    draws = sample_training_draws(
        jax.random.key(1), batch, num_slots, slot_size, frames, tokens, HISTORY
    )
    if frames > 1:  # the two ends of the history in every clip
        draws = draws.replace(slot_offset=jnp.array([[1, 2, 2], [1, 1, 2], [1, 2, 1]]))
        draws = draws.replace(feature_offset=jnp.array([[0, 1, 0], [0, 0, 1], [0, 1, 1]]))
    return Case(
        definition=definition,
        params={key: fill(key, x) for key, x in params.items()},
        frozen={key: fill(key, x) for key, x in frozen.items()},
        features=rng.standard_normal((batch, frames, tokens, width)).astype("f"),
        boxes=rng.random((batch, frames, num_slots, 4)).astype("f"),
        draws=draws.replace(dropout=None),
        slot_mask=np.ones((batch, num_slots), bool),
        settings=settings,
        video=rng.standard_normal((batch, frames, size, size, 3)).astype("f"),
    )


@pytest.fixture(scope="module", params=CASES)
def case(request) -> Case:
    return make_case(request.param)


@pytest.fixture(scope="module")
def video() -> Case:
    return make_case("video-boxes-random_ar")


def pick(x, index):
    """Per-sample slots `index` (B, k) of an array (B, N, ...) or (B, T, N, ...), second axis."""
    return np.take_along_axis(np.asarray(x), index.reshape(*index.shape, *(1,) * (x.ndim - 2)), 1)


def pick_frames(x, index):
    """Likewise of (B, T, N, ...)."""
    return pick(np.asarray(x).swapaxes(1, 2), index).swapaxes(1, 2)


def pick_inputs(case: Case, index) -> tuple[Draws, np.ndarray]:
    draws = case.draws.replace(
        cold_noise=pick(case.draws.cold_noise, index),
        query_noise=pick(case.draws.query_noise, index),
    )
    return draws, pick_frames(case.boxes, index)


SLOT_OUTPUTS = ("slots", "attention", "decoder_attention")  # (B, T, N, ...)


def assert_close(actual, expected, message=""):
    np.testing.assert_allclose(actual, expected, rtol=CLOSE, atol=CLOSE, err_msg=message)


# ----------------------------------------------------------------------------------- slots as a set


def test_slots_permute_with_the_queries(case):
    """Permuting cold-start noise, query noise and boxes, per sample, permutes all slots."""
    order = np.array([[2, 0, 3, 1], [1, 2, 3, 0], [0, 3, 2, 1]])
    plain = case.run(case.params, case.features, case.draws, case.boxes, case.slot_mask)
    draws, boxes = pick_inputs(case, order)
    moved = case.run(case.params, case.features, draws, boxes, case.slot_mask)
    for name in SLOT_OUTPUTS:
        assert_close(moved[name], pick_frames(plain[name], order), name)
        assert np.abs(moved[name] - plain[name]).max() > 1e-2  # the order did change something
    assert_close(moved["warm_queries"], pick(plain["warm_queries"], order))
    assert_close(moved["reconstruction"], plain["reconstruction"])


def test_masked_slots_are_as_if_absent(case):
    """Sample 0 keeps all slots, the others keep two different ones: equals the smaller batch."""
    kept = np.array([[0, 1], [0, 3], [1, 2]])
    mask = np.ones_like(case.slot_mask)
    mask[1:] = False
    np.put_along_axis(mask[1:], kept[1:], True, axis=1)
    boxes = np.where(mask[:, None, :, None], case.boxes, -1)  # as a loader pads them
    masked = case.run(case.params, case.features, case.draws, boxes, mask)
    whole = case.run(case.params, case.features, case.draws, case.boxes, case.slot_mask)
    draws, few = pick_inputs(case, kept)
    small = case.run(case.params, case.features, draws, few, case.slot_mask[:, :2])
    for name in SLOT_OUTPUTS:
        assert_close(masked[name][0], whole[name][0], name)
        assert_close(pick_frames(masked[name], kept)[1:], small[name][1:], name)
    for name in ("attention", "decoder_attention"):
        absent = ~mask[:, None, :, None] & np.ones(masked[name].shape, bool)
        assert not np.any(masked[name][absent]), name
    assert_close(masked["warm_queries"][0], whole["warm_queries"][0])
    assert_close(pick(masked["warm_queries"], kept)[1:], small["warm_queries"][1:])
    assert_close(masked["reconstruction"][0], whole["reconstruction"][0])
    assert_close(masked["reconstruction"][1:], small["reconstruction"][1:])
    # That the mask matters at all:
    assert np.abs(masked["reconstruction"][1:] - whole["reconstruction"][1:]).max() > 1e-3


WEIGHTS = {"reconstruction": 1.0, "distillation": 10.0, "slot_contrast": 0.5}


def test_masked_slots_are_absent_from_losses_and_gradients():
    """Three of four slots valid, different ones per sample: equals the batch of three slots."""
    video = make_case("video-boxes-random_ar", first_iterations=1)  # quicker to compile
    kept = np.array([[0, 1, 2], [0, 2, 3], [1, 2, 3]])
    mask = np.zeros_like(video.slot_mask)
    np.put_along_axis(mask, kept, True, axis=1)

    @jax.jit
    def losses(params, draws, boxes, mask):
        def total(params):
            outputs = video.apply(params, video.features, draws, boxes, mask)
            terms = weighted_losses(outputs, mask, WEIGHTS)
            return sum(terms.values()), terms

        return jax.grad(total, has_aux=True)(params)

    grads, terms = losses(video.params, video.draws, video.boxes, mask)
    draws, few = pick_inputs(video, kept)
    small_grads, small_terms = losses(video.params, draws, few, np.ones((3, 3), bool))
    assert set(terms) == set(WEIGHTS)
    for name, term in terms.items():
        np.testing.assert_allclose(term, small_terms[name], rtol=1e-5, err_msg=name)
    for name, grad in grads.items():
        error = np.abs(grad - small_grads[name]).max()
        assert error <= 1e-4 * max(np.abs(small_grads[name]).max(), 1e-2), name


# ------------------------------------------------------------------------------ gradients that stop


@pytest.fixture(scope="module")
def gradients(video):
    """Gradients of each loss term for parameters, backbone arrays and pixels, by `detach`."""

    def losses(params, frozen, pixels, detach):
        model = video.definition.merge(params, frozen)
        outputs = model(model.extract(pixels), video.draws, video.boxes, None, detach)
        return weighted_losses(outputs, None, WEIGHTS)

    run = jax.jit(jax.jacrev(losses, argnums=(0, 1, 2)))
    return {flag: run(video.params, video.frozen, video.video, flag) for flag in (True, False)}


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize(
    ("term", "reached", "not_reached"),
    [
        (
            "reconstruction",
            ("projection", "slot_attention", "transition", "decoder", "initializer.log_std"),
            ("initializer.warmer", "initializer.sampler"),
        ),
        (
            "slot_contrast",
            ("projection", "slot_attention", "transition", "initializer.log_std"),
            ("initializer.warmer", "initializer.sampler", "decoder"),
        ),
        (
            "distillation",
            ("initializer.warmer", "initializer.sampler"),
            ("slot_attention", "transition", "decoder", "initializer.log_std"),
        ),
    ],
)
def test_which_parameters_each_loss_trains(gradients, detach, term, reached, not_reached):
    if (
        term == "distillation"
    ):  # the only path of it to the projection is through the warmer's features
        reached, not_reached = (
            (reached, (*not_reached, "projection"))
            if detach
            else ((*reached, "projection"), not_reached)
        )
    found = gradients[detach][term][0]
    seen = set()
    for name, grad in found.items():
        assert np.isfinite(grad).all(), name
        if name.startswith(reached):
            assert np.any(grad), f"{name} gets no gradient"
        else:
            assert name.startswith(not_reached), name
            assert not np.any(grad), f"{name} gets a gradient"
        seen |= {part for part in (*reached, *not_reached) if name.startswith(part)}
    assert seen == {*reached, *not_reached}


def test_nothing_reaches_the_backbone_and_the_pixels(gradients):
    for terms in gradients.values():
        for _, frozen, pixels in terms.values():
            assert frozen and all(not np.any(grad) for grad in frozen.values())
            assert not np.any(pixels)


def test_the_warmer_gives_its_queries_without_gradient(video):
    """Only the noise's scale of the queries takes gradient; warm queries take all, but detached."""

    def results(params, encoded, query_noise, detach):
        initializer = video.definition.merge(params, video.frozen).initializer
        warm, queries = initializer(
            encoded, video.draws.cold_noise, query_noise, video.boxes[:, 0], None, detach
        )
        weights = jnp.arange(queries.size).reshape(queries.shape) / queries.size
        return {"warm": jnp.sum(warm * weights), "queries": jnp.sum(queries * weights)}

    run = jax.jit(jax.jacrev(results, argnums=(0, 1)))
    encoded = video.features[:, 0]
    of = lambda grads, part: [g for name, g in grads.items() if name.startswith(part)]  # noqa: E731
    for detach in (True, False):
        jacobian = run(video.params, encoded, video.draws.query_noise, detach)
        params, features = jacobian["queries"]
        assert not np.any(features)
        assert {name for name, grad in params.items() if np.any(grad)} == {"initializer.log_std"}
        params, features = jacobian["warm"]
        assert np.any(features) == (not detach)
        assert all(
            np.any(g) for g in of(params, "initializer.warmer") + of(params, "initializer.sampler")
        )
        assert not np.any(params["initializer.log_std"])


def test_bi_level_truncation():
    """Gradients are those of the last iteration, from slots that are constant plus queries."""
    rng = np.random.default_rng(0)
    encoded, queries, weights = (
        rng.standard_normal(shape).astype("f") for shape in ((2, 5, 6), (2, 3, 4), (2, 3, 4))
    )
    truncated, whole = (
        nnx.split(SlotAttention(6, 4, truncate=truncate, rngs=nnx.Rngs(0)))
        for truncate in (True, False)
    )
    no_shift = np.zeros_like(queries)

    @jax.jit
    def run(params):
        def iterate(part, params, encoded, queries, count):
            return nnx.merge(part[0], params)(encoded, queries, count)[0]

        before_last = iterate(whole, params, encoded, queries, 2)

        def scalars(params, encoded, shift):
            slots = {
                "truncated": iterate(truncated, params, encoded, queries + shift, 3),
                "whole": iterate(whole, params, encoded, queries + shift, 3),
                "last": iterate(whole, params, encoded, before_last + shift, 1),
            }
            return {name: jnp.sum(x * weights) for name, x in slots.items()}

        grads = jax.jacrev(scalars, argnums=(0, 1, 2))(params, encoded, no_shift)
        return scalars(params, encoded, no_shift), grads

    values, grads = run(whole[1])
    np.testing.assert_allclose(values["truncated"], values["whole"], rtol=1e-6)
    for ours, last, full in zip(
        *(jax.tree.leaves(grads[name]) for name in ("truncated", "last", "whole")), strict=True
    ):
        assert_close(ours, last)
        # What truncation removes is there without it.
        assert np.abs(full - last).max() > 1e-3 * np.abs(full).max()


def test_without_a_warmer_gradient_reaches_the_sampler():
    case = make_case("image-gaussian-mlp_mixture", first_iterations=1, warmer=False)
    assert not any("warmer" in name or name == "initializer.log_std" for name in case.params)

    @jax.jit
    def run(params):
        outputs = case.apply(params, case.features, case.draws)
        return weighted_losses(outputs, None, {"reconstruction": 1.0})["reconstruction"], outputs

    grads, outputs = jax.grad(run, has_aux=True)(case.params)
    assert "warm_queries" not in outputs
    assert np.any(grads["initializer.sampler.mean"]) and np.any(
        grads["initializer.sampler.log_std"]
    )


# --------------------------------------------------------------------------------------------- time


def test_no_frame_looks_ahead(video):
    """Other features from frame t on: nothing changes before t, and everything from t on."""
    plain = video.run(video.params, video.features, video.draws, video.boxes, video.slot_mask)
    for start in range(1, video.features.shape[1]):
        features = video.features.copy()
        features[:, start:] = np.random.default_rng(start).standard_normal(
            features[:, start:].shape
        )
        other = video.run(video.params, features, video.draws, video.boxes, video.slot_mask)
        np.testing.assert_array_equal(other["warm_queries"], plain["warm_queries"])
        for name in ("slots", "attention", "decoder_attention", "reconstruction"):
            np.testing.assert_array_equal(
                other[name][:, :start], plain[name][:, :start], err_msg=name
            )
            changed = np.abs(other[name][:, start:] - plain[name][:, start:]).max(axis=(0, 2, 3))
            assert (changed > 1e-3).all(), name


def test_gradient_stays_within_its_frame(video):
    """The transition passes values on, of slots and of features, but no gradient."""

    def per_frame(features):
        slots = video.apply(video.params, features, video.draws, video.boxes, None, True)["slots"]
        weights = jnp.cos(jnp.arange(slots[0, 0].size)).reshape(slots.shape[2:])
        return jnp.sum(slots * weights, axis=(0, 2, 3))

    jacobian = jax.jit(jax.jacrev(per_frame))(
        video.features
    )  # (T of slots, B, T of features, M, C)
    reached = np.abs(jacobian).max(axis=(1, 3, 4)) > 0
    np.testing.assert_array_equal(reached, np.eye(len(reached), dtype=bool))
    # Yet the first frame does influence the last:
    features = video.features.copy()
    features[:, 0] = np.sin(3 * features[:, 0])
    ones = video.slot_mask
    other, plain = (
        video.run(video.params, x, video.draws, video.boxes, ones)["slots"][:, -1]
        for x in (features, video.features)
    )
    assert np.abs(other - plain).max() > 1e-4


def test_scan_equals_a_loop_over_frames():
    """With a random history and dropout, and unusual numbers of iterations."""
    case = make_case("video-boxes-random_ar", first_iterations=1, later_iterations=2)
    draws = case.draws.replace(dropout=jax.random.key(7))

    model = case.definition.merge(case.params, case.frozen)
    attend = jax.jit(model.slot_attention, static_argnums=2)
    encoded = jax.jit(model.projection)(case.features)
    _, queries = jax.jit(model.initializer)(
        encoded[:, 0], draws.cold_noise, draws.query_noise, case.boxes[:, 0], None, False
    )
    num_samples, num_frames = case.features.shape[:2]
    slots, attention = ([x] for x in attend(encoded[:, 0], queries, 1))
    keys = jax.random.split(draws.dropout, num_frames - 1)
    transit = jax.jit(model.transition)
    for t in range(1, num_frames):
        ago = draws.slot_offset[:, t - 1], draws.feature_offset[:, t - 1]
        past = jnp.stack([slots[t - ago[0][sample]][sample] for sample in range(num_samples)])
        seen = jnp.stack([encoded[sample, t - ago[1][sample]] for sample in range(num_samples)])
        queries = transit(past, seen, *ago, None, keys[t - 1])
        for results, new in zip((slots, attention), attend(encoded[:, t], queries, 2), strict=True):
            results.append(new)
    slots, attention = jnp.stack(slots, 1), jnp.stack(attention, 1)

    scanned = case.run(case.params, case.features, draws, case.boxes)
    assert_close(scanned["slots"], slots)
    assert_close(scanned["attention"], attention)
    without = case.run(case.params, case.features, case.draws, case.boxes)
    assert np.abs(without["slots"][:, 1:] - slots[:, 1:]).max() > 1e-3  # dropout did something
    assert_close(without["slots"][:, 0], slots[:, 0])


# --------------------------------------------------------------------------------------- randomness


def test_draws_that_are_off_equal_evaluation(video):
    """No query noise, all tokens visible, offsets 1 and 0, every slot valid: None's meaning."""
    batch, frames, tokens = video.features.shape[:3]
    neutral = Draws(
        cold_noise=video.draws.cold_noise,
        query_noise=jnp.zeros_like(video.draws.query_noise),
        visible=jnp.ones((batch, frames, tokens), bool),
        slot_offset=jnp.ones((batch, frames - 1), jnp.int32),
        feature_offset=jnp.zeros((batch, frames - 1), jnp.int32),
    )
    evaluation = video.run(video.params, video.features, Draws(video.draws.cold_noise), video.boxes)
    explicit = video.run(video.params, video.features, neutral, video.boxes, video.slot_mask)
    for name, value in evaluation.items():
        assert_close(explicit[name], value, name)
    # Each draw of training changes the outputs.
    for name in ("query_noise", "visible", "slot_offset", "feature_offset"):
        one = neutral.replace(**{name: getattr(video.draws, name)})
        outputs = video.run(video.params, video.features, one, video.boxes, video.slot_mask)
        changed = "reconstruction" if name == "visible" else "slots"
        assert np.abs(outputs[changed] - evaluation[changed]).max() > 1e-3, name


def test_distribution_of_training_draws():
    batch, slots, size, frames, tokens, history = 4000, 2, 3, 6, 20, 4
    draws = sample_training_draws(jax.random.key(0), batch, slots, size, frames, tokens, history)
    for noise in (draws.cold_noise, draws.query_noise):
        assert noise.shape == (batch, slots, size)
        assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03
    correlation = np.corrcoef(np.ravel(draws.cold_noise), np.ravel(draws.query_noise))[0, 1]
    assert abs(correlation) < 0.03
    for t in range(1, frames):
        available = min(t, history - 1)
        slot, feature = draws.slot_offset[:, t - 1], draws.feature_offset[:, t - 1]
        # Uniform over all pairs, so the two are independent too; 5 standard deviations.
        pairs = (
            np.histogram2d(slot, feature, bins=(range(1, history + 1), range(history)))[0] / batch
        )
        expected = np.zeros((history - 1, history - 1))
        expected[:available, :available] = 1 / available**2
        assert np.abs(pairs - expected).max() < 5 * (0.25 / batch) ** 0.5, f"frame {t}"
        assert slot.min() == 1 and slot.max() == available
        assert feature.min() == 0 and feature.max() == available - 1
    assert draws.visible.shape == (batch, frames, tokens)
    assert jnp.any(draws.visible[:, 0] != draws.visible[:, 1])  # drawn for every frame


def test_distribution_of_visible_tokens():
    """k is 24 of 256 in half of the cases, else uniform on 0 .. 254; the tokens are uniform."""
    count, tokens = 10_000, 256
    visible = np.asarray(sample_visible(jax.random.key(3), (count,), tokens))
    k = visible.sum(axis=1)
    assert abs((k == 24).mean() - 0.5 - 0.5 / 255) < 5 * (0.25 / count) ** 0.5
    assert k.min() == 0 and k.max() == 254
    uniform = np.sort(k[k != 24])
    expected = np.delete(np.arange(255), 24)
    below = np.searchsorted(uniform, expected, side="right") / len(uniform)
    assert np.abs(below - np.arange(1, 255) / 254).max() < 2.5 / len(uniform) ** 0.5
    each = visible.mean(axis=0)
    assert np.abs(each - k.mean() / tokens).max() < 5 * (0.25 / count) ** 0.5
    together = (visible.T.astype("f") @ visible.astype("f")) / count
    mean = (k * (k - 1)).mean() / (tokens * (tokens - 1))
    assert np.abs(together[~np.eye(tokens, dtype=bool)] - mean).max() < 6 * (0.25 / count) ** 0.5


def test_evaluation_draws_hold_the_cold_noise_alone():
    draws = sample_evaluation_draws(jax.random.key(0), 2, 3, 4)
    assert draws.cold_noise.shape == (2, 3, 4)
    assert len(jax.tree.leaves(draws)) == 1  # all else is off


# ------------------------------------------------------------------------------------------- errors


def test_clips_need_a_transition():
    case = make_case("image-gaussian-random_ar")
    features = np.repeat(case.features, 2, axis=1)
    with pytest.raises(UserError, match="no transition and got clips of 2 frames"):
        jax.eval_shape(case.apply, case.params, features, Draws(case.draws.cold_noise))


def test_box_models_need_boxes(video):
    with pytest.raises(UserError, match="starts its slots from boxes"):
        jax.eval_shape(video.apply, video.params, video.features, Draws(video.draws.cold_noise))


@pytest.mark.parametrize("part", ["backbone", "initializer", "transition", "decoder"])
def test_unknown_parts_are_named(part):
    config = tiny_config()
    right = config.model[part].name
    config.model[part].name = right[:-1]
    with pytest.raises(UserError, match=rf"model\.{part}\.name=.*did you mean '{right}'"):
        nnx.eval_shape(lambda: build_model(config.model, (16, 16), 0))


def test_an_image_that_does_not_fit_the_patch():
    with pytest.raises(UserError, match="18x16 pixels does not divide into patches of 4"):
        nnx.eval_shape(lambda: build_model(tiny_config().model, (18, 16), 0))
