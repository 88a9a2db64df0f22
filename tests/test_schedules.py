"""Values that change with the training step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny import tiny_batch, tiny_config

from smoothsa_jax.errors import UserError
from smoothsa_jax.training.schedules import SCHEDULES, Schedules, schedule_of
from smoothsa_jax.training.step import build_training

STEPS = 20
STEP = {"schedule": "step", "begin": 1.0, "end": 0.25, "at": 0.15}
COSINE = {"schedule": "cosine", "begin": 2.0, "end": 1.0}
WARMUP = {"schedule": "warmup_cosine", "peak": 0.5, "warmup": 0.2, "end_ratio": 0.1}
EXAMPLES = {"step": STEP, "cosine": COSINE, "warmup_cosine": WARMUP}


def values(setting, steps=range(STEPS + 5)) -> np.ndarray:
    schedule = jax.jit(schedule_of("x", setting, STEPS))
    return np.array([schedule(jnp.int32(step)) for step in steps])


def test_a_step_ends_at_its_share_of_all_steps():
    np.testing.assert_allclose(values(STEP), [1.0] * 3 + [0.25] * (STEPS + 2))
    np.testing.assert_allclose(values({**STEP, "at": 0.0}), 0.25)
    np.testing.assert_allclose(values({**STEP, "at": 1.0})[:STEPS], 1.0)


def test_a_cosine_goes_from_begin_to_end():
    found = values(COSINE)
    expected = 1.5 + 0.5 * np.cos(np.pi * np.minimum(np.arange(STEPS + 5) / STEPS, 1.0))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(found[[0, 10, 20, 24]], [2.0, 1.5, 1.0, 1.0])


def test_a_warmup_rises_in_a_line_and_falls_as_a_cosine():
    found = values(WARMUP)
    np.testing.assert_allclose(found[:5], 0.5 * np.arange(5) / 4, rtol=1e-6)
    done = np.minimum(np.arange(STEPS + 1) / 16, 1.0)
    falling = 0.05 + 0.45 * 0.5 * (1 + np.cos(np.pi * done))
    np.testing.assert_allclose(found[4:], falling, rtol=1e-5)
    np.testing.assert_allclose(values({**WARMUP, "warmup": 0.0}, [0]), 0.5)


def test_a_number_stays():
    np.testing.assert_allclose(values(0.3), 0.3, rtol=1e-6)
    np.testing.assert_allclose(values(2), 2)


def test_every_schedule_has_an_example_and_takes_a_config():
    assert EXAMPLES.keys() == SCHEDULES.keys()
    for settings in EXAMPLES.values():
        np.testing.assert_array_equal(values(ConfigDict(settings)), values(settings))


def test_a_tree_of_schedules_is_evaluated_together():
    settings = ConfigDict(
        {"losses": {"a": {"weight": 0.5}, "b": {"weight": COSINE}}, "model": {"x": {"y": STEP}}}
    )
    schedules = Schedules(settings, STEPS)
    found = jax.jit(schedules.at)(jnp.int32(10))
    np.testing.assert_allclose(found["losses"]["b"]["weight"], 1.5)
    np.testing.assert_allclose(found["model"]["x"]["y"], 0.25)
    assert schedules.at(jnp.int32(0))["losses"]["a"]["weight"] == 0.5
    assert isinstance(schedules.at(jnp.int32(0))["losses"]["a"]["weight"], float)
    assert Schedules({"model": {}}, STEPS).at(jnp.int32(0)) == {"model": {}}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (True, "x is True; expected a number or a schedule"),
        ("0.1", "x is '0.1'; expected a number or a schedule"),
        (None, "x is None; expected a number or a schedule"),
        ({"begin": 1.0}, "expected a number, or a schedule with the key 'schedule'"),
        ({**COSINE, "schedule": "cosin"}, "x.schedule is 'cosin'; expected .*mean 'cosine'"),
        ({"schedule": "cosine", "begin": 0.0}, "'cosine' needs x.end"),
        ({**COSINE, "ent": 1.0}, "x.ent is no setting of .*mean 'end'"),
        ({**WARMUP, "warmup": 1.0}, "has warmup 1.0; expected a number of at least 0 and below 1"),
        ({**WARMUP, "warmup": 0.99}, "which leaves no step of 20 after the warm-up"),
        ({**WARMUP, "end_ratio": -1.0}, "has end_ratio -1.0; expected a number of at least 0"),
    ],
)
def test_what_is_no_schedule_is_refused(setting, words):
    with pytest.raises(UserError, match=words) as refused:
        schedule_of("x", setting, STEPS)
    assert "\n" not in str(refused.value)


def test_a_tree_names_what_is_wrong():
    with pytest.raises(UserError, match="losses.a.weight is 'x'; expected a number or a schedule"):
        Schedules({"losses": {"a": {"weight": "x"}}}, STEPS)


def test_a_loss_weight_follows_its_schedule():
    """The weighted term of a step is the schedule's value times the term."""
    terms = {}
    config = tiny_config(num_frames=1, decoder="mlp_mixture")
    config.losses = ConfigDict({"reconstruction": {"weight": 1.0}, "distillation": {"weight": 1.0}})
    for name, weight in (("plain", 1.0), ("scheduled", COSINE)):
        with config.ignore_type():
            config.losses.distillation.weight = weight
        training = build_training(config)
        for step in (0, 10):
            state = jax.tree.map(jnp.copy, training.state).replace(step=jnp.int32(step))
            batch = training.place(tiny_batch(config))
            _, metrics = training.train_step(state, training.frozen, batch, jax.random.key(0))
            terms[name, step] = metrics
    for step, factor in ((0, 2.0), (10, 1.5)):
        scheduled, plain = terms["scheduled", step], terms["plain", step]
        for name, share in (("distillation", factor), ("reconstruction", 1.0)):
            expected = share * plain[f"loss/{name}"]
            np.testing.assert_allclose(scheduled[f"loss/{name}"], expected, rtol=1e-6)


def test_a_constant_learning_rate():
    config = tiny_config(num_frames=1, decoder="mlp_mixture")
    with config.ignore_type():
        config.optimizer.learning_rate = 1e-3
    training = build_training(config)
    batch = training.place(tiny_batch(config))
    state, metrics = training.train_step(training.state, training.frozen, batch, jax.random.key(0))
    np.testing.assert_allclose(metrics["learning_rate"], 1e-3)
    for bad in (0.0, -1.0):
        config.optimizer.learning_rate = bad
        with pytest.raises(
            UserError, match="optimizer.learning_rate is .*; expected a number above"
        ):
            build_training(config)
