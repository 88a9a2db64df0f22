"""MetaSlot beyond its program's numbers: duplicates as a set, the update, training on parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from tiny import tiny_batch, tiny_config

from smoothsa_jax.devices.host_arrays import copied
from smoothsa_jax.errors import UserError
from smoothsa_jax.models.aggregators.metaslot import DECAY, MetaSlot
from smoothsa_jax.models.aggregators.slot_attention import SlotAttention
from smoothsa_jax.models.interfaces import Sizes
from smoothsa_jax.models.parameters import split
from smoothsa_jax.training.optimizer import ConditionalState
from smoothsa_jax.training.step import build_training

BATCH, SLOTS, TOKENS, WIDTH, SIZE = 3, 6, 7, 5, 4
CODES = 3
CODEBOOK = "aggregator.codebook"


def make(**settings) -> MetaSlot:
    """An aggregator whose codes are as far apart as its slots, so that each is used."""
    settings = {"first": 2, "later": 1, "codes": CODES, "capacity": 16, **settings}
    module = MetaSlot(WIDTH, SIZE, rngs=nnx.Rngs(0), **settings)
    module.codebook[...] = 0.3 * jax.random.normal(jax.random.key(1), module.codebook.shape)
    return module


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype("f")


def look(module: MetaSlot, queries, slot_mask=None, training: bool = False):
    """What it makes of a first frame."""
    graphdef, state = nnx.split(module)

    @jax.jit
    def run(state, tokens, queries, slot_mask):
        module, sizes = nnx.merge(graphdef, state), Sizes(BATCH, 1, SLOTS)
        draws = module.draw([jax.random.key(2)], sizes, training)
        of_frame = jax.tree.map(lambda x: x[:, 0], draws)
        return module(module.prepare(tokens), queries, slot_mask, of_frame)

    return jax.device_get(run(state, normal(0, BATCH, TOKENS, WIDTH), queries, slot_mask))


def test_removed_slots_are_duplicates_and_the_order_does_not_matter():
    module, queries = make(), 2 * normal(3, BATCH, SLOTS, SIZE)
    found = look(module, queries)
    kept = np.asarray(found.slot_mask)
    assert (kept.sum(1) <= CODES).all() and kept.any(1).all() and (kept.sum(1) > 1).any()
    np.testing.assert_array_equal(found.extras["slots_kept"], kept.sum(1))
    assert not np.any(np.asarray(found.attention[2:])[:, ~kept])
    order = np.array([5, 2, 0, 3, 1, 4])
    moved = look(module, queries[:, order])
    again = np.asarray(moved.slot_mask)
    for b in range(BATCH):
        # What is left is the same set: each slot starts stage 2 from its prototype.
        sets = [np.asarray(x.slots)[b][m[b]] for x, m in ((found, kept), (moved, again))]
        first, second = (x[np.lexsort(x.T)] for x in sets)
        np.testing.assert_allclose(first, second, atol=1e-5)


def test_a_given_mask_holds_and_its_slots_take_no_code():
    module, queries = make(), 2 * normal(3, BATCH, SLOTS, SIZE)
    mask = np.ones((BATCH, SLOTS), bool)
    mask[:, :2] = False
    found = look(module, queries, mask)
    assert not np.asarray(found.slot_mask)[:, :2].any()
    small = look(module, queries[:, 2:])
    np.testing.assert_array_equal(found.slot_mask[:, 2:], small.slot_mask)
    np.testing.assert_allclose(found.slots[:, 2:], small.slots, atol=1e-5)


@pytest.mark.parametrize("mask", ["evaluation", "always"])
def test_slots_are_removed_in_training_if_asked_for(mask):
    found = look(make(mask=mask, slots_share=0.0), normal(3, BATCH, SLOTS, SIZE), training=True)
    if mask == "evaluation":
        assert found.slot_mask is None
    else:
        np.testing.assert_array_equal(found.slot_mask.sum(1), found.extras["slots_kept"])
        assert not found.slot_mask.all()
    assert (found.extras["codebook_gradient"] == 1).all()


def test_later_frames_are_plain_slot_attention():
    module, queries = make(), normal(3, BATCH, SLOTS, SIZE)
    mask = np.array([[True] * 4 + [False] * 2] * BATCH)
    prepared = module.prepare(normal(0, BATCH, TOKENS, WIDTH))
    found = module(prepared, queries, mask, None, first=False)
    expected = SlotAttention.__call__(module, prepared[1:], queries, mask, None, first=False)
    np.testing.assert_array_equal(found.slots, expected.slots)
    np.testing.assert_array_equal(found.slot_mask, mask)
    assert found.attention.shape[0] == 1


@pytest.mark.more
def test_the_paper_lets_the_last_iteration_alone_have_a_gradient():
    for gradient in ("last_and_queries", "full"):
        definition, params, _ = split(make(gradient=gradient))

        def total(params, queries, definition=definition):
            module = definition.merge(params)
            prepared = module.prepare(normal(0, 1, TOKENS, WIDTH))
            return jnp.sum(jnp.cos(module(prepared, queries).slots))

        run = jax.jit(jax.grad(total, (0, 1)))
        of_params, of_queries = run(params, normal(3, 1, SLOTS, SIZE))
        assert np.any(of_queries)
        assert np.any(of_params["codebook"]) == (gradient == "full")


# -------------------------------------------------------------------------------------- the update


def update(module: MetaSlot, slots, mask=None) -> dict:
    draws = module.draw_update(jax.random.key(4), Sizes(*slots.shape[:1], 1, slots.shape[1]))
    outputs = {"slots": slots[:, None], "slots_kept": jnp.ones(len(slots))}
    outputs |= {} if mask is None else {"slot_mask": mask}
    graphdef, state = nnx.split(module)
    run = jax.jit(lambda state, *inputs: nnx.merge(graphdef, state).update(*inputs))
    written, numbers = run(state, outputs, draws)
    for name, x in written.items():
        getattr(module, name)[...] = x
    return {name: float(x) for name, x in numbers.items()}


def test_the_queue_takes_valid_slots_in_turn():
    module, slots = make(capacity=5), normal(5, 2, 4, SIZE)
    mask = np.array([[True, False, True, False], [False, True, False, False]])
    before = np.asarray(module.queue[...])
    update(module, slots, mask)
    np.testing.assert_array_equal(module.queue[...], [*slots[mask], *before[3:]])
    assert module.pointer[...] == 3
    update(
        module, slots
    )  # 8 slots for 5 rows: the last five stay, the first of them in row (3 + 3) % 5
    np.testing.assert_array_equal(module.queue[...], slots.reshape(-1, SIZE)[[7, 3, 4, 5, 6]])
    assert module.pointer[...] == (3 + 8) % 5


def test_a_moving_average_follows_the_means_of_the_nearest_rows():
    module = make(codebook="moving_average", timeout=10**6)
    module.calls[...] = jnp.int32(2)
    module.counters[...] = jnp.full((CODES,), 9, jnp.int32)
    before, slots = np.asarray(module.codebook[...]), normal(5, BATCH, SLOTS, SIZE)
    update(module, slots)
    queue = np.asarray(module.queue[...])
    nearest = np.square(queue[:, None] - before).sum(-1).argmin(1)
    means = np.stack([queue[nearest == k].mean(0) for k in range(CODES)])
    np.testing.assert_allclose(module.codebook[...], before + DECAY * (means - before), atol=1e-6)


def test_a_dead_code_is_replaced_by_the_row_least_like_the_codes_in_use():
    module = make(codebook="moving_average", replace="cosine", capacity=4)
    module.codebook[...] = jnp.asarray([[4.0, 0, 0, 0], [0, 40, 0, 0], [0, -40, 0, 0]])
    slots = np.array([[[3.0, 0, 0, 0], [3, 1, 0, 0], [-1, 0, 0, 1], [3, 0, 0, 1]]], "f")
    numbers = update(module, slots)
    assert numbers["codes_used"] == pytest.approx(1 / 3)
    np.testing.assert_allclose(module.codebook[1], slots[0, 2])  # the farthest for the first
    assert np.any(module.codebook[2] != slots[0, 2])
    assert (module.counters[...] == module.lifetime).all()


def test_k_means_runs_once_more_if_the_first_update_replaced_nothing():
    slots = np.array([[[9.0, 0, 0, 0], [0, 9, 0, 0], [0, 0, 9, 0]]], "f")
    results = []
    for tied in (0, 1):
        module = make(capacity=3)
        module.codebook[...] = jnp.asarray(slots[0] * 0.7)
        update(module, slots)
        assert module.tied[...] == 1  # every code was used
        np.testing.assert_allclose(module.codebook[...], slots[0])
        module.tied[...] = jnp.int32(tied)
        update(module, slots + 1)
        results.append(np.asarray(module.codebook[...]))
    np.testing.assert_array_equal(results[0], slots[0])
    np.testing.assert_allclose(results[1], slots[0] + 1)


def test_few_rows_are_refused():
    with pytest.raises(UserError, match=r"capacity is 2, less than model.aggregator.codes=3"):
        make(capacity=2)


# ---------------------------------------------------------------------------------------- training


def config_of(accumulate: int = 1, **settings) -> ConfigDict:
    config = tiny_config(num_frames=1, initializer="gaussian", decoder="mlp_mixture")
    settings = {"name": "metaslot", "first": 2, "later": 1, "codes": 6, "capacity": 20, **settings}
    config.model.aggregator = ConfigDict(settings)
    config.train.update(batch_size=4, accumulate=accumulate)
    return config


def steps(training, config, coins):
    """States and metrics of steps whose uniform numbers decide where stage 2 starts."""
    state, found = copied(training.state), []
    sizes = Sizes(config.train.batch_size, 1, config.model.num_slots)
    skeleton = training.definitions["model"].skeleton()
    for number, coin in enumerate(coins):
        draws = skeleton.draw(jax.random.key(number), sizes, True)
        draws["aggregator"]["coin"] = jnp.full((sizes.batch, 1), coin)
        batch = training.place(tiny_batch(config, seed=number))
        key = jax.random.key(number)
        state, metrics = training.train_step(state, training.frozen, batch, key, draws)
        found.append(jax.device_get((copied(state), metrics)))
    return found


def own_adam(state):
    is_state = lambda x: isinstance(x, ConditionalState)  # noqa: E731
    leaves = jax.tree.leaves(state.opt_state, is_leaf=is_state)
    return next(x for x in leaves if is_state(x))


def test_a_frozen_codebook_is_left_alone():
    config = config_of()
    entry = {"into": "aggregator", "source": "random", "seed": 0, "frozen": ("codebook",)}
    config.weights.aggregator = ConfigDict(entry)
    training = build_training(config, shapes_only=True)
    assert "aggregator.codebook" in training.frozen
    assert "aggregator.codebook" not in training.state.params
    state, _ = jax.eval_shape(
        training.train_step, training.state, training.frozen, tiny_batch(config), jax.random.key(0)
    )
    assert jax.tree.structure(state) == jax.tree.structure(training.state)


@pytest.mark.slow
def test_training_in_parts_and_a_codebook_without_gradient():
    """The update sees the whole batch; Adam leaves the codebook alone where no prototype is used.

    `calls` are advanced first: k-means does not move the codebook then, and no code is dead.
    """
    results = []
    for accumulate in (1, 2):
        config = config_of(accumulate)
        training = build_training(config)
        late = {"aggregator.calls": 2, "aggregator.counters": np.full(6, 99)}
        buffers = {**training.state.buffers}
        buffers |= {name: jnp.asarray(x, jnp.int32) for name, x in late.items()}
        training.__dict__["state"] = training.state.replace(buffers=buffers)
        results.append(steps(training, config, (0.9, 0.9, 0.001)))
    for (one, metrics), (two, others) in zip(*results, strict=True):
        assert metrics["slots_kept"] <= 4 and 0 < metrics["codes_used"] <= 1
        for name in metrics:
            np.testing.assert_allclose(others[name], metrics[name], rtol=1e-5)
        for name, x in one.buffers.items():
            np.testing.assert_allclose(two.buffers[name], x, atol=1e-5, err_msg=name)
    states = [state for state, _ in results[0]]
    before, after = states[1], states[2]
    assert np.any(before.params[CODEBOOK] != states[0].params[CODEBOOK])
    np.testing.assert_array_equal(after.params[CODEBOOK], before.params[CODEBOOK])
    pair = (own_adam(x).own[CODEBOOK] for x in (before, after))
    for old, new in zip(*map(jax.tree.leaves, pair), strict=True):
        np.testing.assert_array_equal(new, old)
    assert own_adam(after).own[CODEBOOK].count == 2 and own_adam(after).others.count == 3
    assert after.buffers["aggregator.pointer"] == 3 * 4 * 4 % 20
