"""Pruning: which slots are redundant, and what a model makes of the rest."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_inference import assert_close, model_of
from tiny import tiny_batch, tiny_config

from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.masks import MaskEvaluator
from smoothsa_jax.evaluation.slots import num_slots
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.models.asked import as_scheduled
from smoothsa_jax.models.build import build_slot_model
from smoothsa_jax.models.interfaces import Sizes
from smoothsa_jax.models.pruning import (
    OF_MEDIAN,
    Prune,
    median_distance,
    owners,
    survivors,
    united,
)
from smoothsa_jax.schedules import schedule_of
from smoothsa_jax.tasks.checks import check

BATCH, SLOTS, SIZE, TOKENS = 6, 7, 4, 9
DISTANCES = (0.2, 0.5, 1.0)


@functools.cache
def sample():
    rng = np.random.default_rng(0)
    slots = rng.standard_normal((BATCH, SLOTS, SIZE)).astype("f")
    return slots, rng.random((BATCH, SLOTS, TOKENS)).astype("f")


def cosine_distances(slots):
    unit = slots / np.linalg.norm(slots, axis=-1, keepdims=True)
    return 1 - unit @ unit.swapaxes(-1, -2)


# ----------------------------------------------------------------------------------------- the rule


@pytest.mark.parametrize("distance", DISTANCES)
def test_clusters_are_complete(distance):
    """In a cluster, all pairs are close; two clusters have a pair that is not."""
    slots, attention = sample()
    owner, far = np.asarray(owners(slots, attention, distance)), cosine_distances(slots)
    for own, apart, mass in zip(owner, far, attention.sum(-1), strict=True):
        clusters = [np.flatnonzero(own == slot) for slot in np.unique(own)]
        for i, one in enumerate(clusters):
            assert apart[np.ix_(one, one)].max() <= distance + 1e-6
            assert own[one[0]] == one[mass[one].argmax()]
            for other in clusters[:i]:
                assert apart[np.ix_(one, other)].max() > distance


def test_order_of_slots_does_not_count():
    slots, attention = sample()
    order = np.random.default_rng(1).permuted(np.tile(np.arange(SLOTS), (BATCH, 1)), axis=1)
    pick = lambda x: np.take_along_axis(x, order.reshape(BATCH, -1, *(1,) * (x.ndim - 2)), 1)  # noqa: E731
    for distance in DISTANCES:
        expected = pick(np.asarray(survivors(slots, attention, distance)))
        np.testing.assert_array_equal(survivors(pick(slots), pick(attention), distance), expected)


def test_masked_slots_are_as_if_absent():
    slots, attention = sample()
    first = np.tile(np.arange(SLOTS) < 4, (BATCH, 1))
    valid = np.random.default_rng(2).permuted(first, axis=1)
    rest = [x[valid].reshape(BATCH, 4, -1) for x in (slots, attention)]
    filled = np.where(valid[..., None], slots, np.nan)  # whatever they hold
    for distance in (*DISTANCES, 2.0):
        found = np.asarray(survivors(filled, attention, distance, valid))
        np.testing.assert_array_equal(found[valid].reshape(BATCH, 4), survivors(*rest, distance))
        assert not found[~valid].any()


@pytest.mark.slow
def test_extreme_distances():
    slots, attention = sample()
    assert np.all(survivors(slots, attention, 0.0))
    copies = slots.copy()
    copies[:, 4], copies[:, 5] = 3 * slots[:, 1], slots[:, 1]  # the length does not count
    assert survivors(copies, attention, 0.0).sum(1).tolist() == [SLOTS - 2] * BATCH
    assert survivors(copies, attention, 0.0)[:, [1, 4, 5]].sum(1).tolist() == [1] * BATCH
    assert np.all(survivors(copies, attention, -1.0))  # off
    opposite = np.concatenate([slots, -slots], axis=1)
    both = np.concatenate([attention, attention], axis=1)
    last = np.asarray(survivors(opposite, both, 2.0))
    assert last.sum(1).tolist() == [1] * BATCH
    assert last.argmax(1).tolist() == attention.sum(-1).argmax(1).tolist()  # of equals the first
    assert np.all(survivors(slots[:, :1], attention[:, :1], 2.0))
    broken = np.asarray(survivors(np.full_like(slots, np.nan), attention, 0.5))
    assert np.all(broken)


def test_median_of_valid_pairs():
    slots, _ = sample()
    for count in (SLOTS, 4, 2):
        valid = np.broadcast_to(np.arange(SLOTS) < count, (BATCH, SLOTS))
        pairs = cosine_distances(slots[:, :count])[:, *np.triu_indices(count, 1)]
        found = median_distance(slots, valid)
        np.testing.assert_allclose(found, np.median(pairs, axis=1), atol=1e-6)
    assert not np.any(median_distance(slots, np.arange(SLOTS) < np.ones((BATCH, 1))))
    assert not np.any(median_distance(slots[:, :1]))


def test_united_masks_are_added_up():
    maps = np.random.default_rng(3).random((1, 2, 3, 2, 2)).astype("f")
    owner = np.array([[[0, 0, 2], [1, 1, 1]]])
    found = np.asarray(united(maps, owner))
    np.testing.assert_allclose(found[0, 0, 0], maps[0, 0, :2].sum(0), rtol=1e-6)
    np.testing.assert_allclose(found[0, 1, 1], maps[0, 1].sum(0), rtol=1e-6)
    np.testing.assert_allclose(found[0, 0, 2], maps[0, 0, 2])
    assert not found[0, 0, 1].any() and not found[0, 1, [0, 2]].any()


def test_the_distance_is_off_until_it_begins():
    settings = {"schedule": "step", "begin": 0.4, "end": 0.6, "at": 0.5}
    value = {"schedule": "from", "begin": 0.2, "value": settings}
    at = schedule_of("model.pruning.distance", value, 10)
    np.testing.assert_allclose([at(n) for n in (0, 1, 2, 4, 5, 9)], [-1, -1, 0.4, 0.4, 0.6, 0.6])


# --------------------------------------------------------------------------------------- in a model


def pruned_config(restart: str = "queries", iterations: int = 2):
    config = tiny_config(num_frames=1, initializer="gaussian", decoder="mlp_mixture")
    config.model.initializer = config.model.initializer.cold
    del config.losses["distillation"]
    part = {"name": "redundancy", "restart": restart, "iterations": iterations}
    config.model.pruning = part | {"begin": 0.2, "distance": 0.5}
    return config


def inputs(model):
    features = jax.random.normal(jax.random.key(1), (3, 1, 16, 12))
    return features, {"target": features}, model.draw(jax.random.key(2), Sizes(3, 1, 4), False)


def at(distance):
    return {"pruning": {"distance": distance}}


@pytest.mark.slow
def test_a_model_starts_again_with_the_slots_that_stay():
    model = build_slot_model(pruned_config().model, (16, 16), 0)
    features, given, draws = inputs(model)
    plain = build_slot_model(pruned_config().model, (16, 16), 0)
    plain.pruning = None
    run = lambda model: jax.jit(lambda **more: model(features, given, draws, **more))  # noqa: E731
    before, whole = run(plain)(), run(model)
    apart = np.sort(cosine_distances(before["slots"][:, 0])[:, *np.triu_indices(4, 1)], axis=1)
    distance = float(apart[:, 0].max() + 1e-4)  # at least two are merged in each sample

    found = whole(scheduled=at(distance))
    kept = np.asarray(found["slot_mask"])
    np.testing.assert_array_equal(
        kept,
        survivors(
            before["slots"][:, 0], before["first_attention"][:, -1].reshape(3, 4, -1), distance
        ),
    )
    assert (kept.sum(1) < 4).all() and kept.any(1).all()
    # From their queries and with as many iterations, they alone are a smaller problem.
    alone = run(plain)(slot_mask=kept)
    stays = kept[:, None, :, None]
    close = functools.partial(np.testing.assert_allclose, atol=1e-5)
    close(found["slots"], np.where(stays, alone["slots"], 0))
    close(found["masks"], alone["masks"])
    close(found["attention"], alone["attention"])
    close(found["extra_attention"], alone["first_attention"])
    assert found["extra_attention"].shape == (3, 2, 4, 4, 4)
    for name in ("first_attention", "first_states"):  # of the first aggregation
        close(found[name], before[name])

    for off in (at(-1.0), None):  # before `begin`, and at evaluation
        everything = whole(scheduled=off)
        assert everything["slot_mask"].all()
        close(everything["slots"], before["slots"])


@pytest.mark.slow
def test_gradient_flows_through_both_aggregations():
    config = pruned_config("slots", 1)
    config.model.aggregator.gradient = "full"
    model = build_slot_model(config.model, (16, 16), 0)
    features, given, draws = inputs(model)

    def total(noise, distance):
        found = model(features, given, {**draws, "initializer": noise}, scheduled=at(distance))
        return jnp.sum(jnp.cos(found["slots"]) * found["slot_mask"][:, None, :, None])

    reached = jax.jit(jax.grad(total))(draws["initializer"], -1.0)
    assert (np.abs(reached).max(axis=-1) > 0).all()
    # All slots but one are left out, but they took part in the first aggregation.
    assert np.isfinite(jax.jit(jax.grad(total))(draws["initializer"], 2.0)).all()


def test_a_model_of_your_own_that_cannot_repeat_is_refused():
    config = pruned_config()
    config.model.aggregator = {"name": "outside_parts:Narrowing", "first": 2, "later": 1}
    with pytest.raises(UserError, match="the argument `iterations`"):
        build_slot_model(config.model, (16, 16), 0)


# ------------------------------------------------------------------------------------- at inference


@pytest.fixture(scope="module")
def gaussian() -> Segmenter:
    return model_of(tiny_config(initializer="gaussian", decoder="mlp_mixture"))


@pytest.fixture(scope="module")
def video() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)


def distance_of(model: Segmenter, picture: np.ndarray, count: int = 5) -> float:
    """A distance at which some slots of a picture are redundant, and not all."""
    slots = model.segment(picture, num_slots=count).slots
    return float(np.quantile(cosine_distances(slots)[np.triu_indices(count, 1)], 0.4))


@pytest.mark.more
@pytest.mark.parametrize(
    "restart, mode",
    [
        ("slots", "fixed"),
        pytest.param("merge", "fixed", marks=pytest.mark.slow),
        pytest.param("none", "renewed", marks=pytest.mark.slow),
    ],
)
def test_streams_and_whole_videos_are_pruned_alike(gaussian, video, restart, mode):
    prune = distance_of(gaussian, video[0])
    asked = {"num_slots": 5, "prune": prune, "prune_restart": restart, "prune_video": mode}
    whole = gaussian.segment(video, video=True, **asked)
    frames = list(gaussian.stream(video, **asked))
    names = ("slots", "masks", "slot_mask", "attention", "decoder_attention", "cold")
    stacked = {name: np.stack([getattr(f, name) for f in frames]) for name in names}
    error = np.stack([f.reconstruction_error for f in frames])
    assert_close(type(whole)(**stacked, reconstruction_error=error), whole, rtol=1e-4)

    kept = whole.slot_mask
    assert 1 <= kept[0].sum() < 5 and kept.any(axis=1).all()
    if mode == "fixed":
        assert (kept == kept[0]).all()
    assert not whole.slots[~kept].any() and not whole.attention[~kept].any()
    for masks, mine, attention in zip(whole.masks, kept, whole.attention, strict=True):
        assert np.isin(masks, np.flatnonzero(mine)).all()
        np.testing.assert_allclose(attention.sum(0), 1, atol=1e-5)


@pytest.mark.slow
def test_merged_masks_are_those_of_the_clusters(gaussian, video):
    plain = gaussian.segment(video[0], num_slots=5)
    prune = distance_of(gaussian, video[0])
    merged = gaussian.segment(video[0], num_slots=5, prune=prune, prune_restart="merge")
    flat = plain.attention.reshape(1, 5, -1)
    owner = np.asarray(owners(plain.slots[None], flat, prune))[0]
    for slot in np.unique(owner):
        mine = plain.decoder_attention[owner == slot].sum(0)
        np.testing.assert_allclose(merged.decoder_attention[slot], mine, atol=1e-5)
        np.testing.assert_allclose(merged.slots[slot], plain.slots[slot], atol=1e-6)


@pytest.mark.slow
def test_automatic_distance_follows_the_picture(gaussian, video):
    plain = gaussian.segment(video, num_slots=5)
    auto = gaussian.segment(video, num_slots=5, prune="auto")
    distance = OF_MEDIAN * median_distance(plain.slots)
    owner = owners(plain.slots, plain.attention.reshape(3, 5, -1), distance)
    np.testing.assert_array_equal(auto.slot_mask, owner == np.arange(5))
    assert not auto.slot_mask.all()


def test_another_distance_compiles_nothing(gaussian, video):
    call = lambda prune: gaussian.segment(video[0], num_slots=5, prune=prune)  # noqa: E731
    call(0.5)
    before = gaussian._whole._cache_size()
    one, all_of_them = call(2), call(0.0)
    assert one.slot_mask.sum() == 1 and all_of_them.slot_mask.all()
    assert gaussian._whole._cache_size() == before


def test_the_evaluation_of_a_model_is_the_default(gaussian, video):
    config = gaussian.config.copy_and_resolve_references().unlock()
    config.eval.prune = 2
    model = Segmenter(config, gaussian.params)
    assert model.segment(video[0]).slot_mask.sum() == 1
    assert model.segment(video[0], prune=False).slot_mask.all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"prune": -0.1}, r"prune is -0.1; expected a cosine distance from 0 .* try 0.5"),
        ({"prune": 2.5}, "prune is 2.5"),
        ({"prune": float("nan")}, "prune is nan"),
        ({"prune": "much"}, "prune is 'much'"),
        ({"prune": True}, "prune is True"),
        ({"prune": 0.5, "prune_restart": "slot"}, "prune_restart is 'slot'; expected one of"),
        ({"prune": 0.5, "prune_iterations": 0}, "prune_iterations is 0"),
        ({"prune": 0.5, "prune_video": "both"}, "prune_video is 'both'"),
    ],
)
def test_settings_out_of_range_are_told(gaussian, video, options, message):
    with pytest.raises(UserError, match=message):
        gaussian.segment(video[0], **options)


def test_a_state_has_only_the_slots_that_stay(gaussian, video):
    state = {"slots": np.zeros((4, 8), "f"), "slot_mask": np.ones(4, bool)}
    for options in ({"prune_restart": "merge"}, {"prune_video": "renewed"}):
        with pytest.raises(UserError, match="a state holds only those that stayed"):
            next(iter(gaussian.stream(video, state=state, prune=0.5, **options)))


# ------------------------------------------------------------------------------------ at evaluation


def test_slots_that_stay_are_counted():
    """Against true segments; a baseline has none to count."""
    labels = np.zeros((3, 2, 4, 4), np.uint8)
    labels[:2, 0, 2:] = 3
    labels[2, 1, :1] = 255  # in no segment
    masks = jax.random.uniform(jax.random.key(0), (3, 2, 5, 4, 4))
    kept = np.arange(5) < np.array([[[2], [2]], [[5], [3]], [[1], [1]]])
    evaluator = MaskEvaluator(pruning={"prune": 0.5})
    batch = {"segmentations": labels, "num_frames": np.array([2, 1, 2])}
    found = evaluator.measure({"masks": masks, "slot_mask": jnp.asarray(kept)}, batch)
    used = [np.unique(x) for x in np.asarray(found.segments)]
    assert all(set(segments) <= set(range(5)) for segments in used) and used[2].tolist() == [0]
    rows = evaluator.per_sample(jax.device_get(found.tables), False)
    assert rows["slots"].tolist() == [2, 5, 1] and rows["segments"].tolist() == [2, 2, 1]
    assert rows["slots_error"].tolist() == [0, 3, 0] and rows["one_slot"].tolist() == [0, 0, 1]
    means = evaluator.means(rows)
    expected = np.corrcoef(rows["slots"], rows["segments"])[0, 1]
    np.testing.assert_allclose(means["slots_correlation"], expected)
    assert means["one_slot"] == pytest.approx(1 / 3) and evaluator.protocol["prune"] == 0.5
    assert np.isnan(evaluator.means({**rows, "slots": np.ones(3)})["slots_correlation"])
    assert num_slots(jnp.asarray(kept[:, 0]), None).tolist() == [2, 5, 1]


def test_evaluations_that_cannot_be_are_told():
    config = tiny_config(initializer="boxes")
    config.eval.num_slots = 9
    with pytest.raises(UserError, match=r"eval.num_slots is 9, .*has a query for each of 4 slots"):
        check(config)
    config = tiny_config(initializer="gaussian")
    config.eval.num_slots = 9
    check(config)
    config.eval.prune = "some"
    with pytest.raises(UserError, match=r"eval.prune is 'some'"):
        check(config)


@pytest.mark.slow
def test_asked_pruning_replaces_the_models_own():
    model = build_slot_model(pruned_config().model, (16, 16), 0)
    features, given, draws = inputs(model)
    asked = as_scheduled(Prune(2.0, "none"))
    found = model(features, given, draws, scheduled=asked)
    assert found["slot_mask"].sum(1).tolist() == [1] * 3 and "extra_attention" not in found


@pytest.mark.slow
def test_batches_have_what_a_model_reads():
    """A training step of a model with pruning, in its first steps and later."""
    from smoothsa_jax.training.step import build_training

    config = pruned_config("slots", 1)
    config.losses.attention_distillation = {"weight": 1.0, "of": "extra"}
    config.model.aggregator.dropout_rate = 0.5
    config.model.pruning.distance = 2.0
    training = build_training(config)
    batch, state, key = training.place(tiny_batch(config)), training.state, jax.random.key(0)
    losses = []
    for step in (0, 10):
        state = state.replace(step=jnp.asarray(step))
        state, metrics = training.train_step(state, training.frozen, batch, key)
        losses.append(float(metrics["loss/attention_distillation"]))
    assert losses[0] > 1 and losses[1] == pytest.approx(0, abs=1e-6)  # one slot: nothing to learn
