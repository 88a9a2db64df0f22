"""Inverted transformers and slot attention in other programs' conventions: what they promise."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from recipes import quick
from tiny import tiny_config

from configs.systems import inverted
from smoothsa_jax.config.load import load_config
from smoothsa_jax.config.values import canonical
from smoothsa_jax.errors import UserError
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.models.aggregators.unchanged import Unchanged
from smoothsa_jax.models.build import (
    AGGREGATORS,
    build_slot_model,
    check_prunable,
    check_repeatable,
    slot_model_shapes,
    untrained_queries,
)
from smoothsa_jax.models.initializers import Gaussian
from smoothsa_jax.models.interfaces import Sizes
from smoothsa_jax.models.layers.basic import GRUCell, linear
from smoothsa_jax.models.parameters import split
from smoothsa_jax.parts import make
from smoothsa_jax.tasks.checks import check

CONFIGS = Path(__file__).parent.parent / "configs"
WIDTH, SIZE, TOKENS, SLOTS = 6, 8, 10, 3
ZERO = np.zeros(())
VARIANTS = {
    "tf": inverted.TF,
    "tf_inv": inverted.TF_INV,
    "tf_inv_gru": inverted.TF_INV_GRU,
    "sa_no_gru": inverted.SA_NO_GRU,
    "sa": inverted.SA,
    "sa_id": inverted.SA_ID,
}


def aggregator(settings: dict) -> nnx.Module:
    return make("model.aggregator", settings, AGGREGATORS, WIDTH, SIZE, rngs=nnx.Rngs(0))


def built(settings: dict):
    """An aggregator's definition, and arrays that depend on their names alone."""
    definition, shapes, _ = split(nnx.eval_shape(lambda: aggregator(settings)))

    def fill(name, array):
        rng = np.random.default_rng(sum(name.encode()))
        scale = 0.3 if array.ndim < 2 else len(array) ** -0.5
        found = scale * rng.standard_normal(array.shape)
        return jnp.asarray(found + name.endswith("scale"), jnp.float32)

    return definition, {name: fill(name, x) for name, x in shapes.items()}


@functools.cache
def inputs() -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((2, TOKENS, WIDTH)).astype("f")
    return jnp.asarray(tokens), jnp.asarray(rng.standard_normal((2, SLOTS, SIZE)).astype("f"))


def run(settings: dict, **more):
    """What an aggregator makes of the inputs."""
    definition, arrays = built(settings)

    @jax.jit
    def apply(arrays, tokens, queries):
        module = definition.merge(arrays)
        return module(module.prepare(tokens), queries, **more)

    return apply(arrays, *inputs())


# ------------------------------------------------------------------------------- layers and sharing


@pytest.mark.parametrize("name", VARIANTS)
def test_one_key_sets_the_number_of_layers_on_all_frames(name):
    definition, arrays = built({**VARIANTS[name], "first": 4})

    def states(first, arrays, tokens, queries):
        module = definition.merge(arrays)
        return module(module.prepare(tokens), queries, first=first).states

    for first in (True, False):
        assert len(jax.eval_shape(functools.partial(states, first), arrays, *inputs())) == 4


def test_later_frames_run_the_first_layers():
    settings = {**inverted.TF_INV, "first": 2, "later": 1}
    whole, later = run(settings), run(settings, first=False)
    np.testing.assert_allclose(later.slots, whole.states[0], atol=1e-6)


@pytest.mark.parametrize("share", [("gru",), ("attention", "mlp")])
def test_layers_own_what_they_do_not_share(share):
    definition, arrays = built({**inverted.TF_INV_GRU, "first": 2, "share": share})
    for name in ("attention", "gru", "mlp"):
        layers = {key.split(".")[1] for key in arrays if key.startswith(f"{name}.")}
        assert len(layers) == (1 if name in share else 2)
    tokens, queries = inputs()

    def total(arrays):
        module = definition.merge(arrays)
        return jnp.sum(jnp.sin(module(module.prepare(tokens), queries).slots))

    for name, gradient in jax.jit(jax.grad(total))(arrays).items():  # all of them take part
        zero_in_exact_arithmetic = name.endswith(("norm_slots.bias", "query.bias"))
        assert zero_in_exact_arithmetic or np.any(gradient), name


def test_a_transformer_attends_over_tokens():
    found = run({**inverted.TF, "first": 1})
    of_tokens = found.extras["token_attention"]  # (B,I,N,M)
    np.testing.assert_allclose(of_tokens.sum(axis=-1), 1.0, atol=1e-5)
    shares = of_tokens / of_tokens.sum(axis=2, keepdims=True)
    np.testing.assert_allclose(found.attention.swapaxes(0, 1), shares, atol=1e-5)


# -------------------------------------------------------------------------------------- truncations


@pytest.mark.parametrize("name", ["tf_inv", "sa"])
def test_truncations_change_gradients_and_no_values(name):
    tokens, queries = inputs()

    @jax.jit
    def all_of_them(queries):
        """The slots and the queries' gradient, by truncation and number of layers."""
        found = {}
        for key in (("full", 2), ("last", 2), ("last_and_queries", 2)):
            settings = {**VARIANTS[name], "gradient": key[0], "first": key[1]}
            definition, arrays = built(settings)

            def total(queries, definition=definition, arrays=arrays):
                module = definition.merge(arrays)
                slots = module(module.prepare(tokens), queries).slots
                return jnp.sum(jnp.sin(slots)), slots

            gradient, slots = jax.grad(total, has_aux=True)(queries)
            found[key] = slots, gradient
        return found

    found = all_of_them(queries)
    full = found["full", 2][0]
    for truncation in ("last", "last_and_queries"):
        np.testing.assert_allclose(found[truncation, 2][0], full, atol=1e-6)
    assert not np.any(found["last", 2][1]) and np.any(found["last_and_queries", 2][1])
    assert np.any(found["last_and_queries", 2][1] != found["full", 2][1])


def test_an_extra_iteration_comes_on_top():
    settings = {**inverted.SA_ID, "first": 1, "extra_iteration": True}
    np.testing.assert_allclose(
        run(settings).slots, run({**inverted.SA, "first": 2}).slots, atol=1e-6
    )
    with pytest.raises(UserError, match="extra_iteration is True, but the gradient passes"):
        aggregator({**settings, "gradient": "full"})


def test_a_truncation_that_leaves_queries_untrained_is_said():
    """In one line, and only where there is no gradient indeed."""
    line = untrained_queries(load("sa_id").model)
    assert "model.initializer.name='gaussian' gets no gradient" in line and "\n" not in line
    assert "'learned'" in untrained_queries(load("sa_id,learned").model)
    assert untrained_queries(load("sa").model) is None
    # On sprites, the warmer passes the gradient straight to the samples.
    line = untrained_queries(load("sa_id,smooth").model)
    assert "model.initializer.cold.name='gaussian' gets no" in line
    assert untrained_queries(load("sa_id,smooth", "coco", "").model) is None
    assert untrained_queries(ConfigDict({"name": "recognition_head"})) is None
    video = load_config(f"{CONFIGS / 'scenes.py'}:savi,sa")
    video.model.aggregator.gradient = "last"
    line = untrained_queries(video.model)
    assert "initializer.name='boxes' and model.transition.name='transformer' get no grad" in line


@functools.cache
def load(words: str, data: str = "sprites", variant: str = "image,") -> ConfigDict:
    return load_config(f"{CONFIGS / data}.py:{variant}inverted,{words}")


# ------------------------------------------------------------------------------------------ pruning


def with_aggregator(settings: dict, **evaluation) -> ConfigDict:
    config = tiny_config(1, "gaussian", "mlp_mixture").unlock()
    config.model.aggregator = ConfigDict(settings)
    config.eval.update(evaluation)
    return canonical(config)


def test_layers_of_their_own_cannot_run_once_more():
    refused = "inverted_transformer' has layers with weights of their own"
    own, shared = (built(x)[0].skeleton() for x in (inverted.TF_INV, inverted.SA_NO_GRU))
    for restart in ("slots", "queries"):
        check_prunable(shared, inverted.TF_INV["name"], restart)
        with pytest.raises(UserError, match=refused):
            check_prunable(own, inverted.TF_INV["name"], restart)
    check_prunable(own, inverted.TF_INV["name"], "none")
    unchanged = Unchanged(4, 4, rngs=nnx.Rngs(0))  # runs none, so one more run is the same
    check_prunable(unchanged, "none", "slots")
    with pytest.raises(UserError, match="'none' runs a fixed number of iterations"):
        check_repeatable(unchanged, "none", "eval.iterations", 6)
    config = with_aggregator(inverted.TF_INV, prune=0.5)
    with pytest.raises(UserError, match=refused):
        check(config)
    pruning = {"pruning": {"name": "redundancy", "distance": 0.8}}
    with pytest.raises(UserError, match=refused):
        slot_model_shapes(ConfigDict({**config.model.to_dict(), **pruning}), (16, 16))


@pytest.mark.slow
def test_a_segmenter_prunes_inverted_transformers_with_more_slots():
    config = with_aggregator(inverted.TF_INV)
    model = build_slot_model(config.model, (16, 16), 0)
    _, params, frozen = split(model)
    segmenter = Segmenter(config, {k: np.asarray(x) for k, x in {**params, **frozen}.items()})
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    found = segmenter.segment(picture, prune=2.0, prune_restart="none", num_slots=6)
    assert found.slot_mask.sum() == 1
    with pytest.raises(UserError, match="prune_restart=none or merge"):
        segmenter.segment(picture, prune=0.5)


# --------------------------------------------------------------------- conventions and their starts


def test_stochastic_depth_drops_the_mlp_of_whole_samples():
    definition, arrays = built({**inverted.SA, "mlp_drop_rate": 0.25, "first": 1})
    tokens, queries = (jnp.concatenate([x] * 100) for x in inputs())
    sizes, key = Sizes(len(tokens), 1, SLOTS), [jax.random.key(0)]
    drawn = definition.skeleton().draw(key, sizes, True)
    assert drawn.shape == (len(tokens), 1)
    assert definition.skeleton().draw(key, sizes, False) is None

    def slots(arrays, draws):
        module = definition.merge(arrays)
        return module(module.prepare(tokens), queries, None, draws).slots

    @jax.jit
    def outputs(arrays):
        silent = {name: x * (not name.startswith("mlp.out")) for name, x in arrays.items()}
        return slots(arrays, drawn[:, 0]), slots(silent, None), slots(arrays, None)

    found, bare, whole = outputs(arrays)
    dropped = np.all(np.isclose(found, bare, atol=1e-5), axis=(1, 2))
    rescaled = (bare + (whole - bare) / 0.75)[~dropped]
    np.testing.assert_allclose(found[~dropped], rescaled, atol=1e-5)
    assert 0.1 < dropped.mean() < 0.4


def test_initial_values_of_linen_and_keras():
    rngs, wide = nnx.Rngs(0), 400
    lecun = np.asarray(linear(wide, wide, start="lecun", rngs=rngs).kernel[...])
    assert lecun.std() == pytest.approx(wide**-0.5, rel=0.02)
    assert np.abs(lecun).max() <= 2.0001 * wide**-0.5 / 0.87962566103423978
    glorot = linear(wide, 3 * wide, start="glorot", before_relu=True, rngs=rngs)
    assert np.abs(glorot.kernel[...]).max() == pytest.approx((6 / (4 * wide)) ** 0.5, rel=0.01)
    assert not np.any(glorot.bias[...])
    for start, blocks in (("lecun", 3), ("glorot", 1)):
        kernel = np.asarray(GRUCell(SIZE, start=start, rngs=rngs).hidden.kernel[...])
        for block in np.split(kernel, blocks, axis=1):
            np.testing.assert_allclose(block @ block.T, np.eye(SIZE), atol=1e-5)
    gaussian = Gaussian(WIDTH, wide, 1, log_std=None, mean="glorot", rngs=rngs)
    for array in (gaussian.mean[...], gaussian.log_std[...]):
        assert np.abs(array).max() == pytest.approx((6 / (1 + wide)) ** 0.5, rel=0.05)


def test_a_linen_gru_is_a_torch_gru_without_some_hidden_biases():
    linen = GRUCell(SIZE, 5, form="linen", start="lecun", rngs=nnx.Rngs(0))
    torch = GRUCell(SIZE, 5, rngs=nnx.Rngs(1))
    linen.new_bias[...] = jnp.arange(SIZE, dtype=jnp.float32)
    torch.input, torch.hidden.kernel = linen.input, linen.hidden.kernel
    torch.hidden.bias[...] = jnp.concatenate([jnp.zeros(2 * SIZE), linen.new_bias[...]])
    x, state = jnp.ones((2, 5)), inputs()[1][:, 0]
    np.testing.assert_allclose(linen(x, state), torch(x, state), atol=1e-6)


def test_the_mlp_has_the_width_that_is_asked_for():
    shape = lambda **x: built({**inverted.SA, **x})[1].get("mlp.hidden.kernel", ZERO).shape  # noqa: E731
    assert shape(mlp_size=5) == (SIZE, 5) and shape(mlp_ratio=1.5) == (SIZE, 12)
    assert shape(mlp_size=0) == shape(mlp_ratio=0.0) == ZERO.shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": ("mlps",)}, r"share is \('mlps',\); expected a list of attention, gru, mlp"),
        ({"share": "gru"}, "share is 'gru'; expected a list"),
        ({"qkv_size": 6, "output_projection": False}, "cannot be added to updates of that width"),
        ({"update": "add"}, "update is 'add'; expected one of gru, residual"),
        ({"first": 0}, "first is 0; expected a whole number of at least 1"),
    ],
)
def test_bad_settings_are_refused_in_one_line(changes, message):
    with pytest.raises(UserError, match=message) as error:
        aggregator({**inverted.TF_INV, **changes})
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------- the words


@pytest.mark.parametrize("data", quick(["coco", "clevrtex", "movi_c"], "clevrtex"))
def test_full_sizes_fit_together(data):
    """The paper's encoder, slot size and decoder, as shapes alone."""
    variant = "image," if data == "movi_c" else ""
    config = load("tf_inv_gru,original", data, variant)
    model = slot_model_shapes(config.model, (config.data.image_size,) * 2)
    sizes = {"coco": (256, 196), "movi_c": (128, 784), "clevrtex": (64, 256)}
    assert (model.slot_size, model.encoder.grid[0] * model.encoder.grid[1]) == sizes[data]
    assert (config.train.num_steps, config.train.batch_size) == (300_000, 64)
    frozen = [entry.into for entry in config.weights.values()]
    assert frozen == ([] if data == "clevrtex" else ["encoder"])
