"""Iterations: another number at evaluation, drawn in training, or as each sample needs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command import ROOT
from flax import nnx
from test_inference import assert_close, model_of
from tiny import tiny_batch, tiny_config

from smoothsa_jax.config.load import load_config
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.masks import MaskEvaluator
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.models.aggregators.slot_attention import SlotAttention, relative_change
from smoothsa_jax.models.asked import of_evaluation
from smoothsa_jax.models.interfaces import Sizes
from smoothsa_jax.tasks.checks import check
from smoothsa_jax.training.step import build_training


@pytest.fixture(scope="module")
def gaussian() -> Segmenter:
    return model_of(tiny_config(initializer="gaussian", decoder="mlp_mixture"))


@pytest.fixture(scope="module")
def video() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)


def with_aggregator(model: Segmenter, **settings) -> Segmenter:
    """The same arrays in an aggregator with other settings."""
    config = model.config.copy_and_resolve_references().unlock()
    config.model.aggregator.update(settings)
    return Segmenter(config, model.params)


# ------------------------------------------------------------------------ another one at evaluation


@pytest.mark.slow
@pytest.mark.parametrize(
    "asked, first, later", [pytest.param(4, 4, 4, marks=pytest.mark.slow), ((3, 2), 3, 2)]
)
def test_what_is_asked_for_is_what_a_model_of_these_settings_does(
    gaussian, video, asked, first, later
):
    expected = with_aggregator(gaussian, first=first, later=later).segment(video, video=True)
    assert_close(gaussian.segment(video, video=True, iterations=asked), expected, rtol=0)
    frames = list(gaussian.stream(video, iterations=asked))
    for number, found in enumerate(frames):
        np.testing.assert_allclose(found.slots, expected.slots[number], atol=1e-5)
    assert np.abs(expected.slots - gaussian.segment(video, video=True).slots).max() > 1e-3


@pytest.mark.slow
def test_the_numbers_of_the_training_change_nothing(gaussian, video):
    own = gaussian.config.model.aggregator
    same = gaussian.segment(video, video=True, iterations=(own.first, own.later))
    assert_close(same, gaussian.segment(video, video=True), rtol=0)


@pytest.mark.slow
def test_the_evaluation_of_a_run_has_its_own_number(gaussian, video):
    config = gaussian.config.copy_and_resolve_references().unlock()
    config.eval.iterations = 5
    model = Segmenter(config, gaussian.params)
    assert_close(model.segment(video[0]), gaussian.segment(video[0], iterations=5), rtol=0)
    assert_close(model.segment(video[0], iterations=2), gaussian.segment(video[0]), rtol=0)

    batch = tiny_batch(config, 2)
    training = build_training(config)
    key = jax.random.key(0)
    predict = lambda training: np.asarray(  # noqa: E731
        training.predict(training.state.params, training.frozen, batch, key, False)["masks"]
    )
    found = predict(training)
    assert np.abs(found - predict(build_training(gaussian.config))).max() > 1e-4
    config.model.aggregator.update(first=5, later=5)
    config.eval.iterations = None
    np.testing.assert_array_equal(found, predict(build_training(config)))


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, "6", (1, 0), (1, 2, 3), (6,)])
def test_numbers_out_of_range_are_told(gaussian, video, wrong):
    with pytest.raises(UserError, match="iterations is .*; expected a whole number of at least 1"):
        gaussian.segment(video[0], iterations=wrong)
    with pytest.raises(UserError, match="^eval.iterations is"):
        of_evaluation({**gaussian.config.eval, "iterations": wrong})


def test_layers_with_weights_of_their_own_are_a_fixed_number(video):
    config = tiny_config(num_frames=1, initializer="gaussian", decoder="mlp_mixture")
    config.model.aggregator = {
        "name": "inverted_transformer",
        **{"first": 2, "later": None, "share": (), "inverted": True, "update": "residual"},
        **{"renormalize": "mean", "bias": True, "output_projection": True, "mlp_ratio": 2.0},
        **{"activation": "relu", "gradient": "full", "epsilon": 1e-8, "norm_epsilon": 1e-6},
        **{"gru": "linen", "start": "lecun"},
    }
    with pytest.raises(UserError, match="^iterations is 3, but .* runs a fixed number"):
        model_of(config).segment(video[0], iterations=3)
    config.eval.iterations = (3, 1)
    with pytest.raises(UserError, match=r"^eval.iterations is \(3, 1\), but .*fixed number"):
        check(config)


# -------------------------------------------------------------------------- halting by itself

BATCH, SLOTS, TOKENS, WIDTH, SIZE = 5, 4, 9, 6, 8
MOST = 5


def halting(threshold: float, minimum: int = 1, maximum: int = MOST, signal: str = "max_slot"):
    return {"signal": signal, "threshold": threshold, "minimum": minimum, "maximum": maximum}


@functools.cache
def sample(seed: int = 0):
    """Tokens and queries; the samples differ much in size, and so in when they stop."""
    keys = jax.random.split(jax.random.key(seed), 2)
    tokens = jax.random.normal(keys[0], (BATCH, TOKENS, WIDTH))
    scale = jnp.linspace(0.1, 3.0, BATCH)[:, None, None]
    return tokens, scale * jax.random.normal(keys[1], (BATCH, SLOTS, SIZE))


def aggregator(differentiated: bool = False, **settings) -> SlotAttention:
    settings = {"first": MOST, "later": 2, "gradient": "last_and_queries", **settings}
    found = SlotAttention(WIDTH, SIZE, **settings, rngs=nnx.Rngs(0))
    found.differentiated = differentiated
    if found.mlp is not None:  # random weights of full size keep slots moving in circles
        found.mlp.out.kernel[...] = 0.1 * found.mlp.out.kernel[...]
    return found


@functools.partial(jax.jit, static_argnames=("first", "iterations"))
def run(part: SlotAttention, tokens, queries, mask=None, draws=None, first=True, iterations=None):
    return part(part.prepare(tokens), queries, mask, draws, first=first, iterations=iterations)


def gradients(part: SlotAttention, *inputs, **more):
    """Of a function of all that losses may read, with respect to weights, tokens and queries."""

    @jax.jit
    def of(part, tokens, queries):
        def total(part, tokens, queries):
            found = part(part.prepare(tokens), queries, **more)
            parts = found.slots, found.attention[-1], found.states[-1], found.attention[0]
            return sum(jnp.sum(jnp.cos(3 * x)) for x in parts)

        return nnx.grad(total, argnums=(0, 1, 2))(part, tokens, queries)

    return jax.tree.leaves(of(part, *inputs))


def assert_equal(one, two):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.more
@pytest.mark.parametrize(
    "gradient", ["last_and_queries", pytest.param("full", marks=pytest.mark.slow)]
)
def test_without_a_threshold_it_is_the_fixed_loop_bit_for_bit(gradient):
    off = aggregator(True, first=2, halting=halting(0.0), gradient=gradient)
    fixed = aggregator(True, gradient=gradient)
    found, expected = run(off, *sample()), run(fixed, *sample())
    assert found.extras["iterations"].tolist() == [MOST] * BATCH
    assert "iterations" not in expected.extras
    assert_equal(found[:3], expected[:3])
    assert_equal(gradients(off, *sample()), gradients(fixed, *sample()))


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["last_and_queries", "last", "full"])
def test_training_has_the_values_of_evaluation_and_the_gradient_of_the_last_iteration(gradient):
    """Each sample alone is a fixed loop of as many iterations as it has used."""
    part = aggregator(True, halting=halting(0.3), gradient=gradient)
    found = run(part, *sample())
    used = found.extras["iterations"]
    at_evaluation = run(aggregator(halting=halting(0.3)), *sample())
    assert_equal(used, at_evaluation.extras["iterations"])
    for one, two in zip(found[:3], at_evaluation[:3], strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)
    fixed, numbers = aggregator(True, gradient=gradient), sorted(set(used.tolist()))
    assert len(numbers) > 1
    *of_weights, tokens, queries = gradients(part, *sample())
    total = [0.0] * len(of_weights)
    for number in numbers:
        mine = np.flatnonzero(used == number)
        group = [x[mine] for x in sample()]
        expected = run(fixed, *group, iterations=number)
        close = functools.partial(np.testing.assert_allclose, atol=1e-6)
        close(found.slots[mine], expected.slots)
        close(found.states[:number, mine], expected.states)
        close(found.attention[:number, mine], expected.attention)
        for maps in (found.states[:, mine], found.attention[:, mine]):  # what has stopped stays
            np.testing.assert_array_equal(
                maps[number:], np.broadcast_to(maps[-1], maps[number:].shape)
            )
        *mine_of_weights, of_tokens, of_queries = gradients(fixed, *group, iterations=number)
        total = [a + b for a, b in zip(total, mine_of_weights, strict=True)]
        np.testing.assert_allclose(tokens[mine], of_tokens, atol=2e-5)
        np.testing.assert_allclose(queries[mine], of_queries, atol=2e-5)
    for one, two in zip(of_weights, total, strict=True):
        np.testing.assert_allclose(one, two, atol=2e-4 * max(1.0, np.abs(two).max()))


@pytest.mark.parametrize("signal", ["max_slot", pytest.param("mean_slot", marks=pytest.mark.slow)])
def test_a_sample_does_not_depend_on_the_others(signal):
    part = aggregator(halting=halting(0.3, signal=signal))
    whole = run(part, *sample())
    assert len(set(whole.extras["iterations"].tolist())) > 1
    for index in range(BATCH):
        alone = run(part, *(x[index : index + 1] for x in sample()))
        assert alone.extras["iterations"][0] == whole.extras["iterations"][index]
        for one, two in zip(alone[:3], whole[:3], strict=True):
            axis = int(one.ndim > 3)
            np.testing.assert_allclose(one, two.take(jnp.array([index]), axis), atol=1e-6)


@pytest.mark.parametrize("signal", [pytest.param("max_slot", marks=pytest.mark.slow), "mean_slot"])
def test_a_masked_slot_has_no_effect(signal):
    tokens, queries = sample()
    mask = jnp.arange(SLOTS) < jnp.array([[3]] * BATCH)
    part = aggregator(halting=halting(0.3, signal=signal))
    found = run(part, tokens, queries.at[:, 3].set(100.0), mask)
    fewer = run(part, tokens, queries[:, :3])
    assert_equal(found.extras["iterations"], fewer.extras["iterations"])
    np.testing.assert_allclose(found.slots[:, :3], fewer.slots, atol=1e-5)


def test_a_fixed_point_stops_at_once():
    """Without the MLP, whose random weights keep slots moving in circles."""
    tokens, queries = sample()
    still = run(aggregator(mlp_ratio=0.0, halting=halting(1e-14, maximum=200)), tokens, queries)
    assert still.extras["iterations"].max() < 200
    for minimum in (1, 3):
        part = aggregator(mlp_ratio=0.0, halting=halting(1e-3, minimum))
        found = run(part, tokens, still.slots)
        assert found.extras["iterations"].tolist() == [minimum] * BATCH


@pytest.mark.slow
def test_a_higher_threshold_stops_no_later():
    used = [
        np.asarray(run(aggregator(halting=halting(t, 2)), *sample()).extras["iterations"])
        for t in (1e-9, 0.1, 0.3, 0.6, 1e9)
    ]
    assert all(np.all(one >= two) for one, two in zip(used, used[1:], strict=False))
    assert used[0].tolist() == [MOST] * BATCH and used[-1].tolist() == [2] * BATCH
    part = aggregator(halting=halting(1e-9))
    assert run(part, *sample(), iterations=3).extras["iterations"].tolist() == [3] * BATCH


@pytest.mark.slow
def test_slots_of_zero_are_finite():
    zeros = jnp.zeros((2, SLOTS, SIZE))
    assert not np.any(relative_change(zeros, zeros, None))
    tokens = jnp.zeros((2, TOKENS, WIDTH))
    for differentiated in (True, False):
        part = aggregator(differentiated, halting=halting(0.3))
        assert np.isfinite(run(part, tokens, zeros).slots).all()
    part = aggregator(True, halting=halting(0.3))
    assert all(np.isfinite(x).all() for x in gradients(part, tokens, zeros))


def test_every_head_stops_with_its_sample():
    part = aggregator(halting=halting(0.3), num_heads=2)
    found = run(part, *sample())
    maps = found.extras["head_attention"]
    assert maps.shape == (BATCH, MOST, 2, SLOTS, TOKENS)
    for index, number in enumerate(found.extras["iterations"].tolist()):
        assert np.all(np.asarray(maps[index, number - 1 :]) == maps[index, number - 1])


# -------------------------------------------------------------------------------- drawn in training


@pytest.mark.slow
def test_a_number_that_is_drawn_is_that_number():
    part = aggregator(True, iterations=(1, 4))
    drawn = [part.draw([jax.random.key(n)], Sizes(BATCH, 2, SLOTS), True) for n in range(40)]
    numbers = [int(x["iterations"][0, 0]) for x in drawn]
    assert all(
        np.all(np.asarray(x["iterations"]) == n) for x, n in zip(drawn, numbers, strict=True)
    )
    assert set(numbers) == {1, 2, 3, 4}
    assert part.draw([jax.random.key(0)], Sizes(BATCH, 2, SLOTS), False) is None
    for number in (1, 3):
        draws = {"dropout": None, "iterations": jnp.full((BATCH,), number)}
        found, fixed = run(part, *sample(), draws=draws), aggregator(True)
        np.testing.assert_allclose(
            found.slots, run(fixed, *sample(), iterations=number).slots, atol=1e-6
        )
        assert found.extras["iterations"].tolist() == [number] * BATCH
        with_draws = gradients(part, *sample(), draws=draws)
        for one, two in zip(
            with_draws, gradients(fixed, *sample(), iterations=number), strict=True
        ):
            np.testing.assert_allclose(one, two, atol=1e-4)
    # At evaluation: as the settings say.
    assert run(part, *sample()).extras["iterations"].tolist() == [MOST] * BATCH


# ------------------------------------------------------------------------------- in a whole model


@pytest.mark.slow
def test_a_model_tells_its_iterations(gaussian, video):
    """Of every frame, in whole videos as in streams; and it can be trained."""
    model = with_aggregator(gaussian, halting=halting(0.02))
    whole = model.segment(video, video=True)
    frames = list(model.stream(video))
    assert [int(frame.iterations) for frame in frames] == whole.iterations.tolist()
    assert 1 <= whole.iterations.min() and whole.iterations.max() <= MOST
    assert gaussian.segment(video[0]).iterations is None

    plain = with_aggregator(gaussian, first=MOST, later=MOST).segment(video, video=True)
    off = with_aggregator(gaussian, halting=halting(0.0)).segment(video, video=True)
    assert off.iterations.tolist() == [MOST] * 3
    for name in ("slots", "masks", "attention", "decoder_attention"):
        np.testing.assert_array_equal(getattr(off, name), getattr(plain, name))


def test_an_evaluation_tells_mean_iterations():
    labels = np.zeros((3, 2, 4, 4), np.uint8)
    masks = jax.random.uniform(jax.random.key(0), (3, 2, 5, 4, 4))
    outputs = {"masks": masks, "iterations": jnp.array([[1, 3], [2, 5], [4, 4]])}
    evaluator = MaskEvaluator(halts=True)
    batch = {"segmentations": labels, "num_frames": np.array([2, 1, 2])}
    rows = evaluator.per_sample(jax.device_get(evaluator.measure(outputs, batch).tables), False)
    assert rows["iterations"].tolist() == [2, 2, 4] and "iterations" in evaluator.outputs
    plain = MaskEvaluator()
    assert "iterations" not in plain.outputs
    assert "iterations" not in plain.measure(outputs, batch).tables


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"halting": halting(0.02)}, {"iterations": (1, 3)}])
def test_such_models_train(gaussian, settings):
    config = gaussian.config.copy_and_resolve_references().unlock()
    config.model.aggregator.update(settings)
    check(config)
    training = build_training(config)
    state, metrics = training.train_step(
        training.state, training.frozen, tiny_batch(config), jax.random.key(0)
    )
    assert np.isfinite(float(metrics["loss"])) and int(state.step) == 1
    batch, key = tiny_batch(config), jax.random.key(1)
    found = training.predict(state.params, training.frozen, batch, key, False)
    assert ("iterations" in found) == ("halting" in settings)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"halting": 0.1}, "halting is 0.1; expected None or a group of signal, threshold"),
        ({"halting": {"threshold": 0.1}}, "needs model.aggregator.halting.signal"),
        ({"halting": halting(0.1) | {"most": 3}}, "halting.most is not a setting"),
        ({"halting": halting(0.1, signal="slot")}, "halting.signal is 'slot'; expected one of"),
        ({"halting": halting(-0.1)}, "halting.threshold is -0.1"),
        ({"halting": halting(0.1, 0)}, "halting.minimum is 0"),
        ({"halting": halting(0.1, 4, 3)}, "halting.maximum is 3; expected a whole number of at l"),
        ({"iterations": (3, 1)}, r"iterations is \(3, 1\); expected the lowest and the highest"),
        ({"iterations": 3}, "iterations is 3; expected the lowest and the highest"),
        ({"iterations": (1, 3), "halting": halting(0.1)}, "both halting and iterations"),
        ({"halting": halting(0.1), "last_mlp": False}, "last_mlp is False, which does not go with"),
        (
            {"iterations": (1, 3), "extra_iteration": True},
            "extra_iteration is True, which does not go with model.aggregator.iterations",
        ),
    ],
)
def test_settings_that_do_not_fit_are_told(settings, message):
    with pytest.raises(UserError, match=message):
        aggregator(**settings)


# ------------------------------------------------------------------------ the benchmark's rule


def test_halting_is_compared_with_the_line_between_fixed_numbers(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import halting as benchmark

    change = np.array([[0.5, 0.2, 0.05], [0.5, 0.01, 0.3], [0.5, 0.2, 0.05], [0.01, 0.0, 0.0]])
    assert benchmark.iterations_used(change, 0.1).tolist() == [3, 2, 3, 1]
    assert benchmark.iterations_used(change, 1e9).tolist() == [1] * 4
    assert benchmark.iterations_used(change, 0.0).tolist() == [3] * 4
    scores = np.array([[0.1, 0.2, 0.6], [0.1, 0.5, 0.4], [0.1, 0.2, 0.6], [0.3, 0.3, 0.3]])
    row = {"change": change} | {name: scores for name in benchmark.METRICS}
    found = benchmark.above_the_line(row, 0.1)  # 2.25 iterations
    line = 0.75 * scores[:, 1] + 0.25 * scores[:, 2]
    np.testing.assert_allclose(found["fg_ari"], [0.6, 0.5, 0.6, 0.3] - line)
    for threshold in (0.0, 1e9):
        assert not np.any(benchmark.above_the_line(row, threshold)["fg_ari"])


def test_fixed_numbers_of_a_model_that_halts_are_fixed(gaussian, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.iterations import own_numbers, without_halting

    assert without_halting(gaussian) is gaussian
    fixed = without_halting(with_aggregator(gaussian, halting=halting(0.02)))
    assert fixed.config.model.aggregator.halting is None
    assert own_numbers(fixed) == (MOST, MOST)


@pytest.mark.parametrize("word", ["drawn", "halting"])
def test_configs_to_train_with_are_sound(word):
    config = load_config(f"{ROOT}/benchmarks/adaptive.py:gaussian,{word},smoke")
    check(config)
    assert config.name.endswith(word) and config.model.num_slots
