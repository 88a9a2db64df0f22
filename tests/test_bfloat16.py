"""`dtype="bfloat16"`: only matrix products are in bfloat16.

Parameters, optimizer, softmax, LayerNorm statistics and losses stay in float32. Output differences
are tested in test_golden.py. Dtypes are read from traced programs, which are not compiled.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny import as_recognition, tiny_batch, tiny_config, with_tokens_along

from smoothsa_jax.errors import UserError
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.training.step import build_training

VIT = {"name": "vit", "resize": 0.5, "registers": 1}
VIT |= {"width": 12, "depth": 1, "num_heads": 2, "patch": 4}


def config_of(dtype: str = "bfloat16", encoder: dict | None = None, **choices: str) -> ConfigDict:
    config = tiny_config(num_frames=2, **choices)
    config.dtype = dtype
    if encoder is not None:
        config.model.encoder = ConfigDict(encoder)
    return config


def equations(jaxpr) -> Iterator:
    """All of a program, those in its loops and calls too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def dtypes(jaxpr, primitive: str) -> list[str]:
    """Of the inputs of each use of a primitive; "float32 x bfloat16" where they differ."""
    found = (e for e in equations(jaxpr) if e.primitive.name == primitive)
    return [" x ".join(sorted({str(v.aval.dtype) for v in e.invars})) for e in found]


@pytest.mark.parametrize(
    ("dtype", "decoder"),
    [
        ("bfloat16", "random_ar"),
        pytest.param("bfloat16", "mlp_mixture", marks=pytest.mark.slow),
        pytest.param("float32", "random_ar", marks=pytest.mark.slow),
    ],
)
def test_what_a_training_step_computes_in(dtype, decoder):
    config = config_of(dtype, VIT, decoder=decoder)
    training = build_training(config)
    inputs = (training.state, training.frozen, training.place(tiny_batch(config)))
    traced = training.train_step.trace(*inputs, jax.random.key(0))
    products = dtypes(traced.jaxpr.jaxpr, "dot_general")
    # Of slot contrast, a loss: the similarities of all slots, and their two gradients.
    in_float32 = 3 if dtype == "bfloat16" else len(products)
    assert len(products) > 40 and products.count("float32") == in_float32
    assert products.count(dtype) == max(in_float32, len(products) - in_float32)
    for statistic in ("reduce_max", "rsqrt"):  # of softmax and of LayerNorm
        found = dtypes(traced.jaxpr.jaxpr, statistic)
        assert len(found) > 4 and set(found) == {"float32"}
    state, metrics = traced.out_info
    assert {str(x.dtype) for x in jax.tree.leaves((state, metrics))} == {"float32", "int32"}
    assert {str(x.dtype) for x in training.frozen.values()} == {"float32"}


def test_recognition_computes_in_it():
    discovery = config_of(encoder=VIT)
    training = build_training(as_recognition(discovery, num_classes=3))
    batch = tiny_batch(discovery) | {"categories": np.zeros((2, 3), np.int32)}
    inputs = (training.state, training.frozen, batch, jax.random.key(0))
    traced = training.train_step.trace(*inputs)
    assert dtypes(traced.jaxpr.jaxpr, "dot_general").count("bfloat16") > 20
    state, metrics = traced.out_info
    assert {str(x.dtype) for x in jax.tree.leaves((state, metrics))} == {"float32", "int32"}


@pytest.mark.slow
def test_colour_features_are_those_of_float32():
    """Their frequencies are no weights and are not rounded; only the features are."""
    features = {}
    for dtype in ("float32", "bfloat16"):
        training = build_training(config_of(dtype))
        definition = training.definitions["model"]
        model = definition.merge(training.state.params, training.frozen)
        features[dtype] = model.encode(tiny_batch(config_of())["video"])["features"]
    assert features["bfloat16"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(features["bfloat16"], features["float32"].astype(jnp.bfloat16))


@pytest.mark.slow
@pytest.mark.parametrize("initializer", ["boxes", "gaussian", "along"])
def test_a_step_is_near_that_of_float32(initializer):
    """The last one with a tokenizer that is trained along."""
    found, along = {}, initializer == "along"
    for dtype in ("float32", "bfloat16"):
        config = config_of(dtype, initializer="gaussian" if along else initializer)
        training = build_training(with_tokens_along(config) if along else config)
        batch = training.place(tiny_batch(config_of()))
        found[dtype] = training.train_step(
            training.state, training.frozen, batch, jax.random.key(3)
        )[1]
    for name, value in found["float32"].items():
        np.testing.assert_allclose(found["bfloat16"][name], value, rtol=2e-2, err_msg=name)
    assert found["bfloat16"]["loss"] != found["float32"]["loss"]


NAMES = ("slots", "attention", "decoder_attention")


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    config = config_of(initializer="gaussian")
    training = build_training(config)
    return Segmenter(config, {**training.state.params, **training.frozen})


def assert_near(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-2 * np.abs(expected).max())


@pytest.mark.slow
def test_segments_are_near_those_of_float32(segmenter):
    exact = segmenter.in_dtype("float32")
    assert exact.config.dtype == "float32" and segmenter.config.dtype == "bfloat16"
    with pytest.raises(UserError, match="dtype is 'float8', expected one of bfloat16, float32"):
        segmenter.in_dtype("float8")
    frames = tiny_batch(segmenter.config)["video"][0]
    found, near = (model.segment(frames, video=True) for model in (segmenter, exact))
    assert {str(x.dtype) for x in segmenter.params.values()} == {"float32"}
    for name in NAMES:
        value = getattr(found, name)
        assert value.dtype == np.float32 and not np.array_equal(getattr(near, name), value)
        assert_near(getattr(near, name), value)


@pytest.mark.slow
def test_a_stream_is_the_whole_video(segmenter):
    frames = tiny_batch(segmenter.config)["video"][0]
    whole, parts = segmenter.segment(frames, video=True), list(segmenter.stream(frames))
    for name in NAMES:
        value = getattr(whole, name)
        stacked = [getattr(part, name).reshape(1, *value.shape[1:]) for part in parts]
        assert_near(np.concatenate(stacked), value)
