"""A tokenizer that is trained along with the slots, and learning rates by the names of arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from test_reconstruct import config_of
from tiny import tiny_batch

from smoothsa_jax.errors import UserError
from smoothsa_jax.schedules import schedule_of
from smoothsa_jax.tasks.checks import check
from smoothsa_jax.training.optimizer import build_optimizer
from smoothsa_jax.training.step import build_training

TERMS = {
    "token": {"weight": 1.0, "reduction": "sum"},
    "tokenizer": {
        "name": "reconstruction",
        "of": "tokenizer",
        "reduction": "frame",
        "weight": 1.0,
    },
}


def along(**settings) -> ConfigDict:
    """A tiny model with a discrete VAE, both of whose losses count."""
    config = config_of("along").unlock()
    config.losses = ConfigDict(TERMS)
    config.model.decoder.dropout_rate = 0.1
    with config.ignore_type():
        config.optimizer.learning_rate = 1e-3
    config.train.batch_size = 4
    config.update_from_flattened_dict(settings)
    return config


def step_of(config: ConfigDict):
    """What one training step gives: metrics, and how far each array moved."""
    setup = build_training(config)
    before = jax.device_get(setup.state.params)
    batch, key = setup.place(tiny_batch(config)), jax.random.key(0)
    state, metrics = setup.train_step(setup.state, setup.frozen, batch, key)
    after = jax.device_get(state.params)
    return jax.device_get(metrics), {name: after[name] - x for name, x in before.items()}


@pytest.mark.slow
def test_parts_of_a_batch_and_remat_change_nothing():
    metrics, moved = step_of(along())
    assert metrics["loss/token"] > 0 and metrics["loss/tokenizer"] > 0
    others, too = step_of(along(**{"train.accumulate": 2, "train.remat": "all"}))
    for name, value in metrics.items():
        np.testing.assert_allclose(value, others[name], rtol=1e-5, err_msg=name)
    of_tokenizer = [name for name in moved if name.startswith("tokenizer.")]
    assert of_tokenizer and all(np.any(moved[name]) for name in of_tokenizer)
    for name in of_tokenizer:  # Adam makes the first steps of all gradients alike
        assert np.mean(np.abs(moved[name] - too[name]) > 1e-5) < 0.05, name


@pytest.mark.slow
def test_tokens_are_constants_for_the_slots():
    """The decoder's loss trains no tokenizer, and the tokenizer's loss nothing else."""
    _, moved = step_of(along(**{"losses.tokenizer.weight": 0.0}))
    assert not any(np.any(x) for name, x in moved.items() if name.startswith("tokenizer."))
    _, moved = step_of(along(**{"losses.token.weight": 0.0}))
    moving = {name.split(".")[0] for name, x in moved.items() if np.any(x)}
    assert moving == {"tokenizer"}


def test_an_update_has_the_rate_of_its_array():
    """As a schedule has it at that step; Adam's steps are as long as the rate."""
    slow = {"schedule": "step", "begin": 5e-4, "end": 1e-4, "at": 0.5}
    rates = {"slots": {"of": ("a.*", "b.kernel"), "learning_rate": slow}}
    settings = {"learning_rate": 1e-3, "rates": rates, "clip_norm": 0.0, "clip_by": "norm"}
    params = {name: jnp.ones(3) for name in ("a.kernel", "a.bias", "b.kernel", "b.bias")}
    optimizer = build_optimizer(settings, 2, names=params)
    state, lengths = optimizer.init(params), []
    for _ in range(2):
        updates, state = optimizer.update(params, state, params)
        lengths.append({name: float(-x[0]) for name, x in updates.items()})
    for name in params:
        expected = (1e-3, 1e-3) if name == "b.bias" else (5e-4, 1e-4)
        np.testing.assert_allclose([x[name] for x in lengths], expected, rtol=1e-4, err_msg=name)


@pytest.mark.slow
def test_arrays_have_their_own_learning_rates():
    config = along()
    cosine = {"schedule": "cosine", "begin": 5e-4, "end": 1e-4}
    config.optimizer.rates = ConfigDict(
        {
            "slots": {"of": ("aggregator.*", "initializer.*"), "learning_rate": cosine},
            "tokenizer": {"of": ("tokenizer.decoder.*",), "learning_rate": 2e-3},
        }
    )
    metrics, moved = step_of(config)
    assert np.isclose(metrics["learning_rate/slots"], 5e-4)
    assert np.isclose(metrics["learning_rate/tokenizer"], 2e-3)
    # Adam's first step is as long as the learning rate.
    largest = {name: np.abs(x).max() for name, x in moved.items()}
    np.testing.assert_allclose(largest["aggregator.query.kernel"], 5e-4, rtol=1e-2)
    np.testing.assert_allclose(largest["tokenizer.decoder.0.layers.0.bias"], 2e-3, rtol=1e-2)
    np.testing.assert_allclose(largest["tokenizer.encoder.layers.0.bias"], 1e-3, rtol=1e-2)


@pytest.mark.parametrize(
    "patterns, message",
    [
        ({"a": ("agregator.*",)}, "rates.a.of has 'agregator.*', which matches no trained array"),
        ({"a": ("aggregator.*",), "b": ("*.query.*",)}, "as optimizer.rates.a.of does"),
    ],
)
def test_patterns_that_do_not_fit(patterns, message):
    config = along()
    entries = {name: {"of": of, "learning_rate": 1e-3} for name, of in patterns.items()}
    config.optimizer.rates = ConfigDict(entries)
    with pytest.raises(UserError, match=message.replace("*", r"\*")):
        build_training(config)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"vocabulary": 7}, "model.tokenizer has vocabulary 6, but model.target.vocabulary is 7"),
        ({"width": 8}, "model.tokenizer has width 6, but model.target.width is 8"),
        ({"grid": (2, 2)}, "has a grid of 4x4 tokens, but the decoder has one of 2x2"),
    ],
)
def test_a_target_of_other_tokens(changes, message):
    """Otherwise tokens beyond the decoder's logits would have a loss that says nothing."""
    config = along()
    config.model.target.update(changes)
    with pytest.raises(UserError, match=message):
        check(config)


def test_schedules_of_the_original():
    """tau: a cosine that ends before the training; rates: (n + 1) of the steps of the warm-up."""
    cosine = {"schedule": "cosine", "begin": 1.0, "end": 0.1, "until": 0.25}
    found = [float(schedule_of("tau", cosine, 40)(n)) for n in (0, 5, 10, 39)]
    np.testing.assert_allclose(found, [1.0, 0.55, 0.1, 0.1], atol=1e-6)
    rate = {"schedule": "warmup_halving", "peak": 1.0, "warmup": 0.1, "half_life": 0.5}
    rate |= {"from_zero": True, "starts_above_zero": True}
    found = np.array([schedule_of("rate", rate, 40)(jnp.asarray(n)) for n in (0, 3, 20)])
    np.testing.assert_allclose(found, [0.25, 0.5 ** (3 / 20), 0.5], rtol=1e-6)
