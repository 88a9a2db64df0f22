"""The training step as `main.py` calls it: pure, compiled once, the same in parts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import tiny_batch, tiny_config

from smoothsa_jax.devices.compiling import CompiledOnce
from smoothsa_jax.models.build import build_slot_model
from smoothsa_jax.models.encoders.pixels import IMAGENET_MEAN, IMAGENET_STD
from smoothsa_jax.models.interfaces import Sizes
from smoothsa_jax.tasks.discovery import Discovery
from smoothsa_jax.tasks.task import run_task, sizes_of
from smoothsa_jax.training.optimizer import learning_rate_schedule
from smoothsa_jax.training.step import build_training

CONFIG = tiny_config(num_frames=2)
CONFIG.train.batch_size = 8


def make_batch(seed: int = 0) -> dict[str, np.ndarray]:
    """A batch in which some samples have fewer slots than others."""
    batch = tiny_batch(CONFIG, seed=seed)
    batch["slot_mask"][::3, -1] = False
    return batch


traces = []  # one entry each time the training step is traced (without draws of the caller)


@pytest.fixture(scope="module")
def setup():
    draw = Discovery.draw

    def counted(self, models, key, sizes, training):
        if training:
            traces.append("a trace")
        return draw(self, models, key, sizes, training)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Discovery, "draw", counted)
        yield build_training(CONFIG)


@pytest.fixture(scope="module")
def batch(setup):
    return setup.place(make_batch())


@jax.jit
def copy(tree):
    return jax.tree.map(jnp.copy, tree)


def fresh(setup):
    """A copy of the first state: a step gives its state away."""
    return copy(setup.state)


def run(setup, batch, keys):
    """The state after these steps, and their metrics."""
    state, metrics = fresh(setup), []
    for key in keys:
        state, found = setup.train_step(state, setup.frozen, batch, jax.random.key(key))
        metrics.append(jax.device_get(found))
    return state, metrics


def assert_identical(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def first_moment(state) -> dict:
    """Adam's; after one step a tenth of the clipped gradient."""
    is_adam = lambda x: isinstance(x, optax.ScaleByAdamState)  # noqa: E731
    found = next(x.mu for x in jax.tree.leaves(state.opt_state, is_leaf=is_adam) if is_adam(x))
    return jax.device_get(found)


@pytest.mark.slow
def test_the_same_key_gives_the_same_bits(setup, batch):
    """Repeat from the same state; a training built again begins with that state."""
    first, second = (run(setup, batch, [3, 4, 5]) for _ in range(2))
    assert_identical(first, second)
    assert_identical(build_training(CONFIG).state, setup.state)
    _, other = run(setup, batch, [6])
    assert other[0]["loss"] != first[1][0]["loss"]


def test_another_seed_is_another_model_on_the_same_features(setup):
    config = CONFIG.copy_and_resolve_references()
    config.seed = 1
    other = build_training(config)
    assert_identical(other.frozen, setup.frozen)
    kernel = "aggregator.key.kernel"
    assert np.any(other.state.params[kernel] != setup.state.params[kernel])


@pytest.mark.slow
def test_all_randomness_comes_from_the_key_unless_it_is_given(setup, batch):
    """The sampled draws, passed by hand, give the same step, and then the key has no effect."""
    key = jax.random.key(11)
    sizes = Sizes(CONFIG.train.batch_size, CONFIG.data.num_frames, CONFIG.model.num_slots)
    draws = setup.definitions["model"].skeleton().draw(key, sizes, True)
    sampled, _ = setup.train_step(fresh(setup), setup.frozen, batch, key)
    for other in (key, jax.random.key(12)):
        given, _ = setup.train_step(fresh(setup), setup.frozen, batch, other, draws)
        for x, y in zip(*map(jax.tree.leaves, (sampled, given)), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_metrics_of_a_step(setup, batch):
    _, metrics = run(setup, batch, range(3))
    schedule = learning_rate_schedule(CONFIG.optimizer, CONFIG.train.num_steps)
    for step, found in enumerate(metrics):
        terms = {name: x for name, x in found.items() if name.startswith("loss/")}
        assert set(terms) == {f"loss/{name}" for name in CONFIG.losses}
        np.testing.assert_allclose(found["loss"], sum(terms.values()), rtol=1e-6)
        np.testing.assert_allclose(found["learning_rate"], schedule(step))
        assert found["grad_norm"] > 0
    assert metrics[0]["learning_rate"] == 0 < metrics[1]["learning_rate"]


def test_clipping_keeps_direction_and_bounds_the_norm(setup, batch):
    state, (metrics,) = run(setup, batch, [0])
    assert metrics["grad_norm"] > CONFIG.optimizer.clip_norm  # so it acts
    clipped = sum(np.sum(x**2) for x in first_moment(state).values()) ** 0.5 / 0.1
    norm, bound = metrics["grad_norm"], CONFIG.optimizer.clip_norm
    np.testing.assert_allclose(clipped, bound * norm / (norm + 1e-6), rtol=1e-5)


def test_only_the_trained_parameters_change(setup, batch):
    frozen = jax.device_get(setup.frozen)
    assert frozen and all(name.startswith("encoder.") for name in frozen)
    state, _ = run(setup, batch, range(3))
    assert_identical(setup.frozen, frozen)
    assert not any(name.startswith("encoder.") for name in state.params)
    assert set(first_moment(state)) == set(
        state.params
    )  # the optimizer has no state of the encoder
    before = jax.device_get(setup.state.params)
    for name, array in jax.device_get(state.params).items():
        assert np.any(array != before[name]), f"{name} does not learn"
    assert int(state.step) == 3


def test_everything_is_float32(setup, batch):
    before, (after, metrics) = setup.state, run(setup, batch, [0])
    for tree in (before, after, setup.frozen, metrics):
        for leaf in jax.tree.leaves(tree):
            expected = jnp.float32 if jnp.issubdtype(leaf.dtype, jnp.floating) else jnp.int32
            assert leaf.dtype == expected
    types = [jax.tree.map(jax.typeof, tree) for tree in (before, after)]
    assert types[0] == types[1]  # weak types too: else the second step compiles again


def test_the_state_is_given_away(setup, batch):
    state = fresh(setup)
    setup.train_step(state, setup.frozen, batch, jax.random.key(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((setup.frozen, batch)))


def test_nothing_is_traced_twice(setup, batch):
    """The first step's state is new, a later one's comes from a step: one program for both.

    Of all tests of this module: none passes anything else than a newly made state or one from a
    step.
    """
    state = fresh(setup)
    for step in range(3):
        other = setup.place(make_batch(step))
        key = jax.random.fold_in(jax.random.key(0), step)
        state, _ = setup.train_step(state, setup.frozen, other, key)
    assert len(traces) == 1


def test_losses_fall_on_one_batch(setup, batch):
    _, metrics = run(setup, batch, [0] * CONFIG.train.num_steps)
    assert metrics[-1]["loss"] < 0.7 * metrics[0]["loss"]


@pytest.mark.slow
def test_pixels_and_normalised_floats_are_the_same(setup, batch):
    """`predict` on uint8 frames and on the same frames normalized agrees with the model itself."""
    frames = (np.asarray(batch["video"]) - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    key = jax.random.key(0)
    outputs = setup.predict(setup.state.params, setup.frozen, batch, key)
    floats = {**batch, "video": setup.place({"video": frames.astype("f")})["video"]}
    other = setup.predict(setup.state.params, setup.frozen, floats, key)
    for name, value in outputs.items():
        np.testing.assert_allclose(other[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
    again = setup.predict(setup.state.params, setup.frozen, batch, key)
    assert_identical(outputs, again)
    moved = setup.predict(setup.state.params, setup.frozen, batch, jax.random.key(1))
    assert np.any(outputs["masks"] != moved["masks"])  # the cold-start noise stays on


@pytest.mark.slow
def test_a_teacher_has_the_target_that_it_was_trained_with():
    """A teacher whose encoder was trained predicts the features of its own target encoder."""
    config = tiny_config(num_frames=1, initializer="gaussian")
    student = build_slot_model(config.model, (16, 16), 0)
    config.model.target_encoder = config.model.encoder.copy_and_resolve_references()
    config.model.target_encoder.bandwidth = 1.0
    teacher = build_slot_model(config.model, (16, 16), 1)
    task, batch, key = Discovery(config), tiny_batch(config), jax.random.key(0)
    models = {"model": student, "teacher": teacher}
    draws = task.draw(models, key, sizes_of(batch), False)
    found = task.constants(models, batch, draws, False)["teacher.masks"]
    alone = task.draw({"model": teacher}, key, sizes_of(batch), False)
    expected = run_task(task, {"model": teacher}, batch, alone)["masks"]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_frames_need_not_be_square():
    config = tiny_config(num_frames=1, initializer="gaussian", decoder="mlp_mixture").to_dict()
    config["data"]["image_size"] = (16, 24)
    built = build_training(type(CONFIG)(config))
    assert built.definitions["model"].skeleton().encoder.grid == (4, 6)


def assert_same_gradient(found, expected):
    moment = first_moment(found)
    for name, value in first_moment(expected).items():
        # This one shifts the logits of all slots alike: its gradient is rounding alone.
        if name != "aggregator.norm_slots.bias":
            assert np.abs(moment[name] - value).max() <= 1e-5 * np.abs(value).max(), name


@pytest.mark.slow
def test_images_in_parts_are_the_large_batch():
    """An image draws nothing for frames behind the first: arrays of no elements."""
    config, found = tiny_config(num_frames=1, initializer="gaussian"), []
    config.train.batch_size = 4
    for parts in (1, 2):
        config.train.accumulate = parts
        setup = build_training(config)
        inputs = setup.place(tiny_batch(config)), jax.random.key(2)
        found.append(setup.train_step(setup.state, setup.frozen, *inputs)[0])
    assert_same_gradient(*reversed(found))


@pytest.mark.more
def test_a_batch_in_parts_is_the_large_batch(setup, batch):
    """Samples with different numbers of slots, dropout: same draws and gradient, less memory."""
    config = CONFIG.copy_and_resolve_references()
    config.train.accumulate = 4
    said: list[str] = []
    whole, parts = (
        CompiledOnce(x.train_step, said.append) for x in (setup, build_training(config))
    )
    key = jax.random.key(2)
    expected, metrics = whole(fresh(setup), setup.frozen, batch, key)
    found, others = parts(fresh(setup), setup.frozen, batch, key)
    assert metrics["loss/slot_contrast"] > 0 and metrics["loss/distillation"] > 0
    for name, value in metrics.items():
        np.testing.assert_allclose(others[name], value, rtol=1e-5, err_msg=name)
    assert_same_gradient(found, expected)
    assert parts.memory.temporary < 0.6 * whole.memory.temporary
    assert str(parts.memory) in said[-1] and "on each device" in said[-1]
