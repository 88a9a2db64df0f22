"""Properties of every model: symmetry, masks, gradients that must not flow, time, randomness."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import tiny_config

from smoothsa_jax.errors import UserError
from smoothsa_jax.losses.build import build_losses
from smoothsa_jax.models.aggregators.slot_attention import SlotAttention
from smoothsa_jax.models.build import OPTIONAL, PARTS, build_slot_model, slot_model_shapes
from smoothsa_jax.models.decoders.random_ar import RandomARDecoder, sample_visible
from smoothsa_jax.models.initializers import Gaussian, Warmed
from smoothsa_jax.models.interfaces import Sizes
from smoothsa_jax.models.parameters import split
from smoothsa_jax.models.transitions import RandSFQ

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
    draws: dict
    slot_mask: np.ndarray
    video: np.ndarray

    def __post_init__(self):
        self.run = jax.jit(self.apply)

    def apply(self, params, features, draws, boxes=None, mask=None, detach=False):
        model = self.definition.merge(params, self.frozen)
        given = {"target": features}
        return model(features, given, draws, boxes, mask, scheduled(detach))


def make_case(
    name: str, first_iterations: int = 2, later_iterations: int = 1, warmer: bool = True
) -> Case:
    kind, initializer, decoder = name.split("-")
    frames = 4 if kind == "video" else 1
    config = tiny_config(num_frames=frames, initializer=initializer, decoder=decoder)
    config.model.aggregator.update(first=first_iterations, later=later_iterations)
    if not warmer:
        with config.unlocked():
            config.model.initializer = config.model.initializer.cold
    if frames > 1:
        config.model.transition.history = HISTORY
    size = config.data.image_size
    model = nnx.eval_shape(lambda: build_slot_model(config.model, (size, size), 0))
    definition, params, frozen = split(model, frozen=("encoder.*",))
    rng = np.random.default_rng(0)

    def fill(name, array):
        """Distinct values in every entry, so that symmetric initial values hide no fault."""
        scale = 0.3 if len(array.shape) < 2 else array.shape[-2] ** -0.5
        centre = 1.0 if name.endswith("scale") else 0.0
        return jnp.asarray(centre + scale * rng.standard_normal(array.shape), jnp.float32)

    batch, num_slots = 3, config.model.num_slots
    (h, w), width = model.encoder.grid, model.encoder.width
    draws = model.draw(jax.random.key(1), Sizes(batch, frames, num_slots), training=True)
    if frames > 1:  # the two ends of the history in every clip
        draws["transition"] = {
            "slot_offset": jnp.array([[1, 2, 2], [1, 1, 2], [1, 2, 1]]),
            "feature_offset": jnp.array([[0, 1, 0], [0, 0, 1], [0, 1, 1]]),
            "dropout": None,
        }
    return Case(
        definition=definition,
        params={key: fill(key, x) for key, x in params.items()},
        frozen={key: fill(key, x) for key, x in frozen.items()},
        features=rng.standard_normal((batch, frames, h * w, width)).astype("f"),
        boxes=rng.random((batch, frames, num_slots, 4)).astype("f"),
        draws=draws,
        slot_mask=np.ones((batch, num_slots), bool),
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


def pick_inputs(case: Case, index) -> tuple[dict, np.ndarray]:
    noise = jax.tree.map(lambda x: pick(x, index), case.draws["initializer"])
    return {**case.draws, "initializer": noise}, pick_frames(case.boxes, index)


def scheduled(detach: bool) -> dict:
    """The values of a step's schedules."""
    return {"initializer": {"detach": 1.0 * detach}}


def evaluation(case: Case) -> dict:
    """The draws of evaluation, with the cold-start noise of training."""
    cold = {"cold": case.draws["initializer"]["cold"], "noise": None}
    return {**dict.fromkeys(case.draws), "initializer": cold}


def weighted_losses(outputs, features, mask, weights) -> dict:
    """The terms of these weights, each times its own."""
    settings = {"slot_contrast": {"temperature": 0.1}}
    losses = build_losses({k: {"weight": w, **settings.get(k, {})} for k, w in weights.items()})
    outputs = {**outputs, "target": features}
    outputs = outputs if mask is None else {**outputs, "slot_mask": mask}
    return losses(outputs, {}, losses.schedules)


SLOT_OUTPUTS = ("slots", "attention", "masks")  # (B, T, N, ...)


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
    assert_close(moved["prediction"], plain["prediction"])


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
    for name in ("attention", "masks"):
        absent = ~mask[:, None, :, None, None] & np.ones(masked[name].shape, bool)
        assert not np.any(masked[name][absent]), name
    assert_close(masked["warm_queries"][0], whole["warm_queries"][0])
    assert_close(pick(masked["warm_queries"], kept)[1:], small["warm_queries"][1:])
    assert_close(masked["prediction"][0], whole["prediction"][0])
    assert_close(masked["prediction"][1:], small["prediction"][1:])
    # That the mask matters at all:
    assert np.abs(masked["prediction"][1:] - whole["prediction"][1:]).max() > 1e-3


WEIGHTS = {"reconstruction": 1.0, "distillation": 10.0, "slot_contrast": 0.5}


@pytest.mark.slow
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
            terms = weighted_losses(outputs, video.features, mask, WEIGHTS)
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
    """Gradients of each loss term for parameters, encoder arrays and pixels, by `detach`."""

    def losses(params, frozen, pixels, detach):
        model = video.definition.merge(params, frozen)
        features = model.encode(pixels)["features"]
        given = {"target": features}
        outputs = model(features, given, video.draws, video.boxes, None, scheduled(detach))
        return weighted_losses(outputs, features, None, WEIGHTS)

    run = jax.jit(jax.jacrev(losses, argnums=(0, 1, 2)))
    return {flag: run(video.params, video.frozen, video.video, flag) for flag in (True, False)}


@pytest.mark.slow
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize(
    ("term", "reached", "not_reached"),
    [
        (
            "reconstruction",
            ("projection", "aggregator", "transition", "decoder", "initializer.log_std"),
            ("initializer.warmer", "initializer.cold"),
        ),
        (
            "slot_contrast",
            ("projection", "aggregator", "transition", "initializer.log_std"),
            ("initializer.warmer", "initializer.cold", "decoder"),
        ),
        (
            "distillation",
            ("initializer.warmer", "initializer.cold"),
            ("aggregator", "transition", "decoder", "initializer.log_std"),
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


def test_nothing_reaches_the_encoder_and_the_pixels(gradients):
    for terms in gradients.values():
        for _, frozen, pixels in terms.values():
            assert frozen and all(not np.any(grad) for grad in frozen.values())
            assert not np.any(pixels)


def test_the_warmer_gives_its_queries_without_gradient(video):
    """Only the noise's scale of the queries takes gradient; warm queries take all, but detached."""

    def results(params, encoded, query_noise, detach):
        initializer = video.definition.merge(params, video.frozen).initializer
        draws = {**video.draws["initializer"], "noise": query_noise}
        values = scheduled(detach)["initializer"]
        queries, extras = initializer(encoded, video.boxes[:, 0], None, draws, values)
        warm = extras["warm_queries"]
        weights = jnp.arange(queries.size).reshape(queries.shape) / queries.size
        return {"warm": jnp.sum(warm * weights), "queries": jnp.sum(queries * weights)}

    run = jax.jit(jax.jacrev(results, argnums=(0, 1)))
    encoded = video.features[:, 0]
    of = lambda grads, part: [g for name, g in grads.items() if name.startswith(part)]  # noqa: E731
    for detach in (True, False):
        jacobian = run(video.params, encoded, video.draws["initializer"]["noise"], detach)
        params, features = jacobian["queries"]
        assert not np.any(features)
        assert {name for name, grad in params.items() if np.any(grad)} == {"initializer.log_std"}
        params, features = jacobian["warm"]
        assert np.any(features) == (not detach)
        assert all(
            np.any(g) for g in of(params, "initializer.warmer") + of(params, "initializer.cold")
        )
        assert not np.any(params["initializer.log_std"])


@pytest.mark.slow
def test_bi_level_truncation():
    """Gradients are those of the last iteration, from slots that are constant plus queries."""
    rng = np.random.default_rng(0)
    encoded, queries, weights = (
        rng.standard_normal(shape).astype("f") for shape in ((2, 5, 6), (2, 3, 4), (2, 3, 4))
    )

    def split_of(**settings):
        return nnx.split(SlotAttention(6, 4, **settings, later=1, rngs=nnx.Rngs(0)))

    truncated = split_of(gradient="last_and_queries", first=3)
    whole, last, first_two = (split_of(gradient="full", first=count) for count in (3, 1, 2))
    no_shift = np.zeros_like(queries)

    @jax.jit
    def run(params):
        def iterate(part, params, encoded, queries):
            module = nnx.merge(part[0], params)
            return module(module.prepare(encoded), queries).slots

        before_last = iterate(first_two, params, encoded, queries)

        def scalars(params, encoded, shift):
            slots = {
                "truncated": iterate(truncated, params, encoded, queries + shift),
                "whole": iterate(whole, params, encoded, queries + shift),
                "last": iterate(last, params, encoded, before_last + shift),
            }
            return {name: jnp.sum(x * weights) for name, x in slots.items()}

        grads = jax.jacrev(scalars, argnums=(0, 1, 2))(params, encoded, no_shift)
        return scalars(params, encoded, no_shift), grads

    values, grads = run(whole[1])
    np.testing.assert_allclose(values["truncated"], values["whole"], rtol=1e-6)
    for ours, once, full in zip(
        *(jax.tree.leaves(grads[name]) for name in ("truncated", "last", "whole")), strict=True
    ):
        assert_close(ours, once)
        # What truncation removes is there without it.
        assert np.abs(full - once).max() > 1e-3 * np.abs(full).max()


def test_without_a_warmer_gradient_reaches_the_cold_start():
    case = make_case("image-gaussian-mlp_mixture", first_iterations=1, warmer=False)
    assert not any("warmer" in name or ".cold." in name for name in case.params)

    @jax.jit
    def run(params):
        outputs = case.apply(params, case.features, case.draws)
        terms = weighted_losses(outputs, case.features, None, {"reconstruction": 1.0})
        return terms["reconstruction"], outputs

    grads, outputs = jax.grad(run, has_aux=True)(case.params)
    assert "warm_queries" not in outputs
    assert np.any(grads["initializer.mean"]) and np.any(grads["initializer.log_std"])


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
        for name in ("slots", "attention", "masks", "prediction"):
            np.testing.assert_array_equal(
                other[name][:, :start], plain[name][:, :start], err_msg=name
            )
            changed = np.abs(other[name][:, start:] - plain[name][:, start:])
            changed = changed.max(axis=(0, *range(2, changed.ndim)))
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


@pytest.mark.more
def test_scan_equals_a_loop_over_frames():
    """With a random history and dropout, and unusual numbers of iterations."""
    case = make_case("video-boxes-random_ar", first_iterations=1, later_iterations=2)
    dropout = jax.random.split(jax.random.key(7), len(case.features))
    draws = {**case.draws, "transition": {**case.draws["transition"], "dropout": dropout}}

    model = case.definition.merge(case.params, case.frozen)

    @functools.partial(jax.jit, static_argnames="first")
    def aggregate(tokens, queries, first):
        found = model.aggregator(model.aggregator.prepare(tokens), queries, first=first)
        return found.slots, found.attention[-1]

    @jax.jit
    def transit(slots, tokens, slot_offset, feature_offset, keys):
        transition = model.transition
        remembered = transition.remember(tokens, feature_offset)
        return transition.look(slots, remembered, slot_offset, None, keys)

    encoded = jax.jit(model.projection)(case.features)
    queries, _ = jax.jit(model.initializer)(
        encoded[:, 0], case.boxes[:, 0], None, draws["initializer"], {}
    )
    num_samples, num_frames = case.features.shape[:2]
    slots, attention = ([x] for x in aggregate(encoded[:, 0], queries, first=True))
    keys = jnp.stack([jax.random.split(key, num_frames - 1) for key in dropout], axis=1)
    of_transition = draws["transition"]
    for t in range(1, num_frames):
        ago = [of_transition[name][:, t - 1] for name in ("slot_offset", "feature_offset")]
        past = jnp.stack([slots[t - ago[0][sample]][sample] for sample in range(num_samples)])
        seen = jnp.stack([encoded[sample, t - ago[1][sample]] for sample in range(num_samples)])
        queries = transit(past, seen, *ago, keys[t - 1])
        found = aggregate(encoded[:, t], queries, first=False)
        for results, new in zip((slots, attention), found, strict=True):
            results.append(new)
    slots, attention = jnp.stack(slots, 1), jnp.stack(attention, 1)

    scanned = case.run(case.params, case.features, draws, case.boxes)
    assert_close(scanned["slots"], slots)
    assert_close(scanned["attention"].reshape(attention.shape), attention)
    without = case.run(case.params, case.features, case.draws, case.boxes)
    assert np.abs(without["slots"][:, 1:] - slots[:, 1:]).max() > 1e-3  # dropout did something
    assert_close(without["slots"][:, 0], slots[:, 0])


# --------------------------------------------------------------------------------------- randomness


def test_draws_that_are_off_equal_evaluation(video):
    """No query noise, all tokens visible, offsets 1 and 0, every slot valid: None's meaning."""
    batch, frames, tokens = video.features.shape[:3]
    initializer = video.draws["initializer"]
    neutral = {
        "initializer": {**initializer, "noise": jnp.zeros_like(initializer["noise"])},
        "decoder": jnp.ones((batch, frames, tokens), bool),
        "transition": {
            "slot_offset": jnp.ones((batch, frames - 1), jnp.int32),
            "feature_offset": jnp.zeros((batch, frames - 1), jnp.int32),
            "dropout": None,
        },
        "aggregator": None,
    }
    plain = video.run(video.params, video.features, evaluation(video), video.boxes)
    explicit = video.run(video.params, video.features, neutral, video.boxes, video.slot_mask)
    for name, value in plain.items():
        assert_close(explicit[name], value, name)
    # Each draw of training changes the outputs.
    for part, name in (
        ("initializer", "noise"),
        ("decoder", ""),
        ("transition", "slot_offset"),
        ("transition", "feature_offset"),
    ):
        drawn = video.draws[part]
        one = {**neutral, part: {**neutral[part], name: drawn[name]} if name else drawn}
        outputs = video.run(video.params, video.features, one, video.boxes, video.slot_mask)
        changed = "prediction" if part == "decoder" else "slots"
        assert np.abs(outputs[changed] - plain[changed]).max() > 1e-3, (part, name)


def draws_of_all_parts(batch, slots, size, grid, frames, history, training) -> dict:
    """Of parts on their own, from one key each."""
    sizes, rngs = Sizes(batch, frames, slots), nnx.Rngs(0)
    cold = Gaussian(4, size, slots, log_std=0.0, rngs=rngs)
    settings = {"history": history, "dropout_rate": 0.5, "num_heads": 1}
    keys = jax.random.split(jax.random.key(0), 6)
    return {
        "initializer": Warmed(4, size, slots, cold=cold, num_heads=1, log_std=0.0, rngs=rngs).draw(
            keys[:2], sizes, training
        ),
        "decoder": RandomARDecoder(grid, 4, size, num_layers=1, num_heads=1, rngs=rngs).draw(
            keys[2:3], sizes, training
        ),
        "transition": RandSFQ(4, size, **settings, rngs=rngs).draw(keys[3:], sizes, training),
    }


@pytest.mark.slow
def test_distribution_of_training_draws():
    batch, slots, size, frames, tokens, history = 4000, 2, 3, 6, 20, 4
    draws = draws_of_all_parts(batch, slots, size, (4, 5), frames, history, training=True)
    cold, query = draws["initializer"]["cold"], draws["initializer"]["noise"]
    for noise in (cold, query):
        assert noise.shape == (batch, slots, size)
        assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03
    correlation = np.corrcoef(np.ravel(cold), np.ravel(query))[0, 1]
    assert abs(correlation) < 0.03
    for t in range(1, frames):
        available = min(t, history - 1)
        offsets = draws["transition"]
        slot, feature = offsets["slot_offset"][:, t - 1], offsets["feature_offset"][:, t - 1]
        # Uniform over all pairs, so the two are independent too; 5 standard deviations.
        pairs = (
            np.histogram2d(slot, feature, bins=(range(1, history + 1), range(history)))[0] / batch
        )
        expected = np.zeros((history - 1, history - 1))
        expected[:available, :available] = 1 / available**2
        assert np.abs(pairs - expected).max() < 5 * (0.25 / batch) ** 0.5, f"frame {t}"
        assert slot.min() == 1 and slot.max() == available
        assert feature.min() == 0 and feature.max() == available - 1
    visible = draws["decoder"]
    assert visible.shape == (batch, frames, tokens)
    assert jnp.any(visible[:, 0] != visible[:, 1])  # drawn for every frame


@pytest.mark.slow
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
    draws = draws_of_all_parts(2, 3, 4, (2, 2), 3, 4, training=False)
    assert draws["initializer"]["cold"].shape == (2, 3, 4)
    assert len(jax.tree.leaves(draws)) == 1  # all else is off


# ------------------------------------------------------------------------------------------- errors


def test_clips_need_a_transition():
    case = make_case("image-gaussian-random_ar")
    features = np.repeat(case.features, 2, axis=1)
    with pytest.raises(UserError, match="no transition and got clips of 2 frames"):
        jax.eval_shape(case.apply, case.params, features, evaluation(case))


def test_box_models_need_boxes(video):
    with pytest.raises(UserError, match="starts its slots from boxes"):
        jax.eval_shape(video.apply, video.params, video.features, evaluation(video))


@pytest.mark.parametrize("part", [part for part in PARTS if part not in OPTIONAL])
def test_unknown_parts_are_named(part):
    config = tiny_config()
    right = config.model[part].name
    config.model[part].name = right[:-1]
    with pytest.raises(UserError, match=rf"model\.{part}\.name .*did you mean '{right}'"):
        slot_model_shapes(config.model, (16, 16))


def test_an_image_that_does_not_fit_the_patch():
    with pytest.raises(UserError, match="18x16 pixels does not divide into patches of 4"):
        slot_model_shapes(tiny_config().model, (18, 16))
