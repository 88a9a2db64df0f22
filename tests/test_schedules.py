"""Values that change with the training step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from tiny import tiny_batch, tiny_config

from smoothsa_jax.errors import UserError
from smoothsa_jax.schedules import SCHEDULES, Schedules, schedule_of
from smoothsa_jax.tasks.checks import check
from smoothsa_jax.training.step import build_training

STEPS = 20
STEP = {"schedule": "step", "begin": 1.0, "end": 0.25, "at": 0.15}
COSINE = {"schedule": "cosine", "begin": 2.0, "end": 1.0}
WARMUP = {"schedule": "warmup_cosine", "peak": 0.5, "warmup": 0.2, "end_ratio": 0.1}
TO_ZERO = {"schedule": "cosine_to_zero", "begin": 1.0, "until": 0.5}
LOG_COSINE = {"schedule": "log_cosine", "begin": 1.0, "end": 2.5}
HALVING = {"schedule": "warmup_halving", "peak": 0.5, "warmup": 0.2, "half_life": 0.3}
LINEAR = {"schedule": "linear", "begin": 0.01, "end": 1.0, "until": 0.8}
FROM = {"schedule": "from", "begin": 0.2, "value": COSINE}
EXAMPLES = {
    "step": STEP,
    "linear": LINEAR,
    "cosine": COSINE,
    "cosine_to_zero": TO_ZERO,
    "log_cosine": LOG_COSINE,
    "warmup_cosine": WARMUP,
    "warmup_halving": HALVING,
    "from": FROM,
}


def values(setting, steps=range(STEPS + 5)) -> np.ndarray:
    schedule = jax.jit(schedule_of("x", setting, STEPS))
    return np.array([schedule(jnp.int32(step)) for step in steps])


def test_a_line_reaches_its_end_and_stays():
    """The weights of later frames, of SlotFormer's option."""
    found, last = values(LINEAR), 0.8 * STEPS
    expected = 0.01 + 0.99 * np.minimum(np.arange(len(found)) / last, 1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_warm_up_may_begin_above_zero():
    found = values({**WARMUP, "begin_ratio": 0.01})
    np.testing.assert_allclose(found[0], 0.01 * WARMUP["peak"], rtol=1e-6)
    np.testing.assert_allclose(found.max(), values(WARMUP).max(), rtol=1e-6)


def test_a_step_ends_at_its_share_of_all_steps():
    np.testing.assert_allclose(values(STEP), [1.0] * 3 + [0.25] * (STEPS + 2))
    np.testing.assert_allclose(values({**STEP, "at": 0.0}), 0.25)
    np.testing.assert_allclose(values({**STEP, "at": 1.0})[:STEPS], 1.0)


def test_a_cosine_goes_from_begin_to_end():
    found = values(COSINE)
    expected = 1.5 + 0.5 * np.cos(np.pi * np.minimum(np.arange(STEPS + 5) / STEPS, 1.0))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(found[[0, 10, 20, 24]], [2.0, 1.5, 1.0, 1.0])


def test_a_log_cosine_is_a_cosine_of_logarithms():
    expected = np.exp(values({**COSINE, "begin": 0.0, "end": np.log(2.5)}))
    np.testing.assert_allclose(values(LOG_COSINE), expected, rtol=1e-5)


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
        ({"begin": 1.0}, "expected a number or a schedule, a dictionary with the key 'schedule'"),
        ({**COSINE, "schedule": "cosin"}, "x.schedule is 'cosin'; expected .*mean 'cosine'"),
        ({"schedule": "cosine", "begin": 0.0}, "x.schedule='cosine' needs x.end"),
        ({**COSINE, "ent": 1.0}, "x.ent is not a setting of .*mean 'end'"),
        ({**WARMUP, "warmup": 1.0}, "x.warmup is 1.0; expected a number of at least 0 and below 1"),
        ({**WARMUP, "warmup": 0.99}, "which leaves no step of 20 after the warm-up"),
        ({**WARMUP, "end_ratio": -1.0}, "x.end_ratio is -1.0; expected a number of at least 0"),
        ({**WARMUP, "peak": float("nan")}, "x.peak is nan; expected a number above 0"),
        ({**WARMUP, "peak": "high"}, "x.peak is 'high'; expected a number above 0"),
        ({**COSINE, "begin": -1.0}, "x.begin is -1.0; expected a number of at least 0"),
        ({**STEP, "at": -1.0}, "x.at is -1.0; expected a number of at least 0"),
        ({"schedule": "from", "begin": 0.1, "value": -0.5}, "x is -0.5; expected a number of at"),
        ({**COSINE, "path": "y"}, "x.path is not a setting of x.schedule='cosine'"),
        ({"schedule": "no_module:wave"}, "x.schedule is 'no_module:wave', which cannot be"),
        ({"schedule": "math:tau"}, "x.schedule is 'math:tau', which is no"),
        (
            {"schedule": f"{__name__}:wave", "hieght": 1.0},
            "x.hieght is not a setting of .*mean 'height'",
        ),
    ],
)
def test_what_is_no_schedule_is_refused(setting, words):
    with pytest.raises(UserError, match=words) as refused:
        schedule_of("x", setting, STEPS)
    assert "\n" not in str(refused.value)


def test_a_tree_names_what_is_wrong():
    with pytest.raises(UserError, match="losses.a.weight is 'x'; expected a number or a schedule"):
        Schedules({"losses": {"a": {"weight": "x"}}}, STEPS)


@pytest.mark.slow
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


@pytest.mark.slow
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
            check(config)


def wave(num_steps: int, *, height: float, negative: bool = False) -> optax.Schedule:
    """A schedule from outside the package."""
    sign = -1.0 if negative else 1.0
    return lambda count: sign * height * (1.0 + jnp.sin(count / num_steps))


@pytest.mark.slow
def test_a_schedule_from_outside_trains():
    """As a loss weight, a part's setting and the learning rate, and it may be negative."""
    config = tiny_config(num_frames=1, decoder="mlp_mixture")
    own = {"schedule": f"{__name__}:wave", "height": 0.5}
    config.losses = ConfigDict({"reconstruction": {"weight": own}, "distillation": {"weight": 1.0}})
    config.model.initializer.detach = ConfigDict({**own, "negative": True})
    config.optimizer.learning_rate = ConfigDict({**own, "height": 1e-3})
    check(config)
    training = build_training(config)
    batch, found = training.place(tiny_batch(config)), {}
    for step in (0, 10):
        state = jax.tree.map(jnp.copy, training.state).replace(step=jnp.int32(step))
        _, found[step] = training.train_step(state, training.frozen, batch, jax.random.key(0))
    height = 1.0 + np.sin(10 / config.train.num_steps)
    for name, at_first in (("learning_rate", 1e-3), ("loss/reconstruction", None)):
        if at_first is not None:
            np.testing.assert_allclose(found[0][name], at_first, rtol=1e-6)
        np.testing.assert_allclose(found[10][name], height * found[0][name], rtol=1e-5)
    np.testing.assert_allclose(found[10]["loss/distillation"], found[0]["loss/distillation"])


@pytest.mark.parametrize(
    ("key", "setting", "words"),
    [
        ("losses.reconstruction.weight", {"begin": 1.0}, "is {'begin': 1.0}; expected a number or"),
        ("losses.reconstruction.weight", {**COSINE, "ent": 1.0}, "weight.ent is not a setting of"),
        ("losses.reconstruction.weight", {**COSINE, "end": -1.0}, "weight.end is -1.0; expected"),
        ("model.initializer.detach", {**STEP, "until": 1}, "model.initializer.detach.until is no"),
        ("model.initializer.log_std", COSINE, "log_std is a schedule, but it cannot change with"),
        (
            "optimizer.learning_rate",
            {**WARMUP, "peek": 1.0},
            "learning_rate.peek is not a setting of",
        ),
        ("optimizer.learning_rate", {**WARMUP, "warmup": 0.99}, "leaves no step of 20"),
        ("optimizer.learning_rate", {"schedule": "cosin"}, "did you mean 'cosine'"),
    ],
)
def test_a_bad_schedule_in_a_config_is_refused_before_anything_is_built(key, setting, words):
    config = tiny_config(num_frames=1, decoder="mlp_mixture")
    group, _, name = key.rpartition(".")
    part = config
    for step in group.split("."):
        part = part[step]
    with part.ignore_type():
        part[name] = ConfigDict(setting)
    with pytest.raises(UserError) as refused:
        check(config)
    assert words in str(refused.value) and "\n" not in str(refused.value)
