"""`weights` and `companions` of a config: what is frozen, what comes from elsewhere, averages."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from tiny import tiny_batch, tiny_config

from smoothsa_jax.checkpoints import sources
from smoothsa_jax.checkpoints.model_files import save_model
from smoothsa_jax.checkpoints.read import read_checkpoint, restore_state
from smoothsa_jax.checkpoints.write import CheckpointWriter
from smoothsa_jax.config.values import canonical
from smoothsa_jax.devices.host_arrays import on_host
from smoothsa_jax.errors import UserError
from smoothsa_jax.models.parameters import frozen_patterns, matching
from smoothsa_jax.tasks.checks import check
from smoothsa_jax.training.step import Training, build_training

DECAY = 0.75


def config_with(weights: dict | None = None, companions: dict | None = None) -> ConfigDict:
    """The smallest model of images, with a decoder of two layers."""
    config = tiny_config(num_frames=1).unlock()
    config.model.decoder.num_layers = 2
    config.optimizer.learning_rate.warmup = 0.0  # so that the first step changes something
    if weights is not None:
        config.weights = ConfigDict(weights)
    config.companions = ConfigDict(companions or {})
    return canonical(config)


@functools.cache
def plain() -> Training:
    """Of a frozen encoder alone, and no companion."""
    return build_training(config_with())


@functools.cache
def with_average() -> tuple[ConfigDict, Training]:
    config = config_with(companions=TEACHER)
    check(config)
    return config, build_training(config)


TEACHER = {"teacher": {"average_of": "model", "decay": DECAY}}
RANDOM = {"into": "", "source": "random"}
ENCODER = {"into": "encoder", "source": "random", "seed": 0, "frozen": ("*",)}


def one_step(training: Training, config: ConfigDict, frozen=None, params=None):
    """The state and the metrics after a step; the first state stays."""
    state = jax.tree.map(jnp.copy, training.state)
    state = state if params is None else state.replace(params=jax.tree.map(jnp.copy, params))
    frozen = training.frozen if frozen is None else frozen
    return training.train_step(state, frozen, training.place(tiny_batch(config)), jax.random.key(0))


def adam_state(state) -> optax.ScaleByAdamState:
    is_adam = lambda x: isinstance(x, optax.ScaleByAdamState)  # noqa: E731
    return next(x for x in jax.tree.leaves(state.opt_state, is_leaf=is_adam) if is_adam(x))


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


# ----------------------------------------------------------------------------------------- patterns


def test_patterns_name_arrays():
    names = ("encoder.blocks.0.kernel", "encoder.blocks.9.kernel", "decoder.position", "decoder")
    assert matching(names, ("encoder.*",)) == {*names[:2]}
    assert matching(names, ("encoder.blocks.[0-7].*", "*position")) == {names[0], names[2]}
    assert matching(names, ()) == frozenset()
    assert matching(names, ("decoder",)) == {"decoder"}  # the whole name, nothing below it
    weights = {
        "a": {"into": "encoder", "frozen": ("*", "x.y")},
        "b": {"into": "", "frozen": ("z",)},
    }
    assert set(frozen_patterns(weights)) == {"encoder.*", "encoder.x.y", "z"}
    assert frozen_patterns({"a": {"into": "encoder"}}) == ()


@pytest.mark.parametrize(
    ("weights", "patterns"),
    [
        (
            {"all": {**RANDOM, "frozen": ("encoder.*", "decoder.layers.0.*")}},
            ("decoder.layers.0.*",),
        ),
        (
            {
                "encoder": ENCODER,
                "top": {**RANDOM, "into": "decoder", "frozen": ("layers.[0-0].*",)},
            },
            ("decoder.layers.0.*",),
        ),
        (
            {"encoder": ENCODER, "rest": {**RANDOM, "frozen": ("aggregator.*", "*.log_std")}},
            ("aggregator.*", "*.log_std"),
        ),
    ],
)
def test_what_is_frozen_gets_no_gradient_and_no_moments(weights, patterns):
    config = config_with(weights)
    check(config)
    training = build_training(config)
    still = matching({*training.state.params, *training.frozen}, ("encoder.*", *patterns))
    assert still == training.frozen.keys() and len(still) > 3
    assert training.definitions["model"].frozen == still
    before, frozen = on_host(training.state.params), on_host(training.frozen)
    state, metrics = one_step(training, config)
    moments = adam_state(state)
    assert moments.mu.keys() == moments.nu.keys() == state.params.keys() == before.keys()
    assert not still & state.params.keys()
    assert_same(training.frozen, frozen)
    for name, array in before.items():
        assert np.any(state.params[name] != array), f"{name} does not learn"
    # The gradient of what is trained is the one of the whole model: only the norm is smaller.
    whole = plain()
    given = {**before, **{n: x for n, x in frozen.items() if n in whole.state.params}}
    given = {name: jnp.asarray(given[name]) for name in whole.state.params}
    fixed = {name: jnp.asarray(frozen[name]) for name in whole.frozen}
    reference, expected = one_step(whole, config, fixed, given)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-6)
    assert metrics["grad_norm"] < expected["grad_norm"]


def test_a_target_of_features_needs_a_frozen_encoder():
    """An encoder that is trained, in whole or in part, may not choose its own target."""
    config = tiny_config(num_frames=1).unlock()
    config.data.image_size = 8
    vit = {"width": 12, "depth": 2, "num_heads": 2, "patch": 4, "registers": 1, "swiglu": False}
    config.model.encoder = ConfigDict({"name": "vit", "resize": 1.0, **vit})
    for frozen in ((), ("blocks.0.*",)):
        config.weights = ConfigDict({"encoder": {**ENCODER, "frozen": frozen}})
        training = build_training(canonical(config))
        with pytest.raises(UserError, match="the encoder is trained"):
            one_step(training, config)


# -------------------------------------------------------------------------------- from another run


@pytest.fixture
def other(tmp_path) -> tuple[str, dict[str, np.ndarray]]:
    """A saved model of other values, and its arrays."""
    config = config_with()
    config = ConfigDict({**config.to_dict(), "seed": 5})
    training = build_training(config)
    arrays = on_host({**training.state.params, **training.frozen})
    save_model(tmp_path / "other", config, arrays, step=3)
    return str(tmp_path / "other"), arrays


def begun(weights: dict) -> tuple[Training, dict, dict, str]:
    config = config_with(weights)
    check(config)
    training = build_training(config)
    return training, *sources.begin(config, training, warn=pytest.fail)


def test_a_run_starts_from_anothers_weights(other):
    source, arrays = other
    training, params, frozen, words = begun(
        {"all": {"into": "", "source": source, "frozen": ("encoder.*",)}}
    )
    assert_same({**params, **frozen}, arrays)
    assert params.keys() == training.state.params.keys() and words == source
    state, _ = one_step(training, config_with(), frozen, params)
    assert state.params.keys() == params.keys()


def test_a_part_starts_from_anothers_weights(other):
    source, arrays = other
    training, params, frozen, _ = begun(
        {"encoder": ENCODER, "decoder": {"into": "decoder", "source": source}}
    )
    first = on_host(plain().state.params)
    for name, array in params.items():
        expected = arrays if name.startswith("decoder.") else first
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    assert_same(frozen, on_host(training.frozen))
    state, _ = one_step(training, config_with(), frozen, params)
    assert int(state.step) == 1


@pytest.mark.parametrize(
    ("into", "without", "left_out"),
    [
        ("", ("decoder.layers.*", "*.position"), ("decoder.layers.*", "*.position")),
        ("decoder", ("layers.*", "position"), ("decoder.layers.*", "decoder.position")),
    ],
)
def test_arrays_can_be_left_out(other, into, without, left_out):
    """What is left out keeps the first values of this run."""
    source, arrays = other
    entry = {"into": into, "source": source, "without": without}
    training, params, frozen, _ = begun({"encoder": ENCODER, "some": entry})
    first = on_host(plain().state.params)
    outside = matching(params, left_out)
    assert outside
    for name, array in params.items():
        mine = name in outside or not name.startswith(into)
        np.testing.assert_array_equal(array, (first if mine else arrays)[name], err_msg=name)
    state, _ = one_step(training, config_with(), frozen, params)
    assert int(state.step) == 1


def test_what_does_not_fit_is_refused(other, tmp_path):
    source, arrays = other
    whole = {"into": "", "source": source}
    for change, words in (
        ({"decoder.new": np.ones(3, "f")}, "has decoder.new, which this model does not have"),
        (
            {"decoder.position": np.ones(3, "f")},
            r"decoder.position has shape \[3\], this model has",
        ),
    ):
        folder = tmp_path / words[:8].strip()
        save_model(folder, config_with(), {**arrays, **change}, step=3)
        with pytest.raises(UserError, match=f"weights.all: .*{words}") as refused:
            begun({"encoder": ENCODER, "all": {**whole, "source": str(folder)}})
        assert "\n" not in str(refused.value)
    # Left out, it does not matter.
    begun({"encoder": ENCODER, "all": {**whole, "source": str(folder), "without": ("*.position",)}})
    with pytest.raises(UserError, match="expected one of these for into='decoder'"):
        begun({"encoder": ENCODER, "x": {"into": "decoder", "source": str(tmp_path / "nothing")}})


# ----------------------------------------------------------------------------------------- averages


def test_an_average_follows_the_parameters():
    config, training = with_average()
    first = on_host(training.state.params)
    assert_same(on_host(training.state.averages), {f"teacher.{n}": x for n, x in first.items()})
    state, _ = one_step(training, config)
    assert state.averages.keys() == training.state.averages.keys()
    for name, new in state.params.items():
        expected = DECAY * first[name] + (1 - DECAY) * np.asarray(new)
        found = state.averages[f"teacher.{name}"]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7, err_msg=name)
    # And the next one goes on from there.
    before = jax.device_get((state.params, state.averages))
    batch = training.place(tiny_batch(config))
    state, _ = training.train_step(state, training.frozen, batch, jax.random.key(1))
    for name, new in state.params.items():
        expected = DECAY * before[1][f"teacher.{name}"] + (1 - DECAY) * np.asarray(new)
        found = state.averages[f"teacher.{name}"]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7, err_msg=name)


def test_an_average_changes_no_training():
    """Nothing reads it here: losses and parameters are those of a run without."""
    config, training = with_average()
    expected, metrics = jax.device_get(one_step(plain(), config))
    state, others = jax.device_get(one_step(training, config))
    assert_same(others, metrics)
    assert_same(state.params, expected.params)


def test_a_run_with_an_average_can_be_evaluated():
    config, training = with_average()
    batch, key = training.place(tiny_batch(config)), jax.random.key(0)
    outputs, expected = (
        on_host(x.predict(x.state.params, x.frozen, batch, key)) for x in (training, plain())
    )
    assert_same(outputs, expected)


def test_an_average_comes_back_from_a_checkpoint(tmp_path):
    config, training = with_average()
    state, _ = one_step(training, config)
    writer = CheckpointWriter(tmp_path, config)
    writer.save(1, {"state": state}, {}, {}, {"frozen": training.frozen})
    writer.wait()
    writer.close()
    template = {"state": training.state, "frozen": training.frozen}
    checkpoint = read_checkpoint(tmp_path, 1)
    restored = restore_state(template, checkpoint)["state"]
    for found, expected in zip(*map(jax.tree.leaves, (restored, state)), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert checkpoint.config.companions == config.companions
    assert not any(name.startswith("teacher.") for name in checkpoint.weights)
    # Another run without the average refuses the checkpoint, naming an array.
    plain = dataclasses.replace(training, state=training.state.replace(averages={}))
    with pytest.raises(UserError, match="state/averages/teacher"):
        restore_state({"state": plain.state, "frozen": plain.frozen}, checkpoint)


def test_an_average_is_of_the_trained_model():
    config = config_with(companions={"teacher": {"average_of": "other", "decay": DECAY}})
    with pytest.raises(UserError, match="teacher.average_of is 'other'; expected 'model'"):
        one_step(build_training(config), config)
