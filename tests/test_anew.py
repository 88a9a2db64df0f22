"""Slots that start anew in the middle of a video: all of them at a cut, or single ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_inference import assert_close, model_of
from tiny import tiny_config

from smoothsa_jax.errors import UserError
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.models.anew import anew_of, feature_distance, first_errors, of_memory, remembered
from smoothsa_jax.models.asked import as_scheduled
from smoothsa_jax.models.interfaces import Sizes
from smoothsa_jax.models.pruning import Prune, admitted

BATCH, FRAMES = 3, 5
CUTS = (2, None, 4)  # the frame behind the cut, of each video


@pytest.fixture(scope="module")
def gaussian() -> Segmenter:
    return model_of(tiny_config(initializer="gaussian", decoder="mlp_mixture"))


@pytest.fixture(scope="module")
def videos() -> np.ndarray:
    """Scenes that hardly move, (B,T,H,W,3); two of them cut to another one."""
    rng = np.random.default_rng(0)
    scenes = rng.integers(0, 256, (BATCH, 2, 1, 16, 16, 3))
    noise = rng.integers(-3, 4, (BATCH, FRAMES, 16, 16, 3))
    frames = [
        np.repeat(scenes[i, :1], FRAMES, axis=1)[0]
        if cut is None
        else np.concatenate([scenes[i, 0].repeat(cut, 0), scenes[i, 1].repeat(FRAMES - cut, 0)])
        for i, cut in enumerate(CUTS)
    ]
    return np.clip(np.stack(frames) + noise, 0, 255).astype(np.uint8)


def stacked(frames) -> dict[str, np.ndarray]:
    names = ("slots", "masks", "slot_mask", "attention", "decoder_attention", "cold")
    return {name: np.stack([getattr(f, name) for f in frames]) for name in names}


def behind_cuts() -> np.ndarray:
    expected = np.zeros((BATCH, FRAMES), bool)
    expected[:, 0] = True
    for row, cut in zip(expected, CUTS, strict=True):
        row[cut or 0] = True
    return expected


WAYS = {
    "features": {"shot_cuts": 0.5},
    "error": {"shot_cuts": 1.05, "cut_signal": "error"},
    "requery": {"requery": 0.45},
    "pruned": {"shot_cuts": 0.5, "requery": 0.2, "prune": "auto", "num_slots": 6},
}


@functools.cache
def whole_batch(model: Segmenter):
    """A function of features and draws, compiled once for each way."""

    @jax.jit
    def run(params, features, draws, asked):
        whole = model.definition.merge(params, differentiated=False)
        mask = jnp.ones((len(features), draws["initializer"]["cold"].shape[1]), bool)
        return whole(features, {"target": features}, draws, None, mask, asked)

    return run


def slow(*ways: str) -> list:
    return [pytest.param(way, marks=pytest.mark.slow) for way in ways]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["error", *slow("features", "pruned")])
def test_a_batch_is_its_videos_one_by_one(gaussian, videos, way):
    """Which samples of a batch start anew changes nothing for the others; as a stream has it."""
    options = dict(WAYS[way])
    number = options.pop("num_slots", 4)
    prune = Prune(0.7, of_median=True) if options.pop("prune", None) else None
    asked = as_scheduled(prune, None, anew_of(**options))
    model = gaussian.definition.merge(gaussian.params, differentiated=False)
    features = jax.jit(lambda video: model.encode(video)["features"])(videos)
    draws = model.draw(jax.random.key(0), Sizes(BATCH, FRAMES, number), False)
    run = whole_batch(gaussian)
    found = run(gaussian.params, features, draws, asked)
    if way == "error":  # that of a decoder without training is not good at it
        assert found["cold"][:, 1:].any(axis=1).tolist() == [True, False, False]
    else:
        np.testing.assert_array_equal(found["cold"], behind_cuts())
    if way == "pruned":  # slots that were left out come in, and a new scene is pruned anew
        number_kept = np.asarray(found["slot_mask"]).sum(axis=-1)
        assert number_kept[1, 0] < number_kept[1, -1]
        assert number_kept[2, 4] < number_kept[2, 3]
    for index in range(BATCH):
        mine = slice(index, index + 1)
        of_sample = jax.tree.map(lambda x, mine=mine: x[mine], draws)
        alone = run(gaussian.params, features[mine], of_sample, asked)
        for name in ("slots", "masks", "attention", "slot_mask", "cold"):
            np.testing.assert_allclose(alone[name][0], found[name][index], atol=2e-5, err_msg=name)


@pytest.mark.more
@pytest.mark.parametrize("way", ["requery", *slow("features", "error", "pruned")])
def test_a_stream_finds_what_the_whole_video_gives(gaussian, videos, way):
    """One finds cuts by features before a frame is processed, the other within the step."""
    whole = gaussian.segment(videos[0], video=True, **WAYS[way])
    frames = list(gaussian.stream(videos[0], **WAYS[way]))
    for name, x in stacked(frames).items():
        np.testing.assert_allclose(x, getattr(whole, name), atol=2e-5, err_msg=name)
    plain = gaussian.segment(videos[0], video=True, num_slots=WAYS[way].get("num_slots"))
    assert np.abs(whole.slots - plain.slots).max() > 1e-4


@pytest.mark.slow
def test_each_shot_is_decoded_with_its_own_slots(videos):
    """MetaSlot leaves out other slots in another shot, and the masks of the rest are united."""
    config = tiny_config(initializer="gaussian", decoder="mlp_mixture")
    of_metaslot = {"name": "metaslot", "codes": 12, "capacity": 20, "mask": "always"}
    config.model.aggregator.update(of_metaslot)
    config.seed = 1  # of weights with which the shots differ
    model, options = model_of(config), {"shot_cuts": 0.5, "num_slots": 6}
    options |= {"prune": 0.003, "prune_restart": "merge"}
    narrowed = False
    for video in videos:
        whole = model.segment(video, video=True, **options)
        for name, x in stacked(list(model.stream(video, **options))).items():
            np.testing.assert_allclose(x, getattr(whole, name), atol=2e-5, err_msg=name)
        narrowed |= (whole.slot_mask[0] != whole.slot_mask[-1]).any()
    assert narrowed


@pytest.mark.slow
def test_behind_a_cut_slots_are_those_of_the_new_scene_alone(gaussian, videos):
    for way in ("features", "error"):
        found = gaussian.segment(videos[0], video=True, **WAYS[way])
        alone = gaussian.segment(videos[0, CUTS[0] :], video=True)
        np.testing.assert_allclose(found.slots[CUTS[0] :], alone.slots, atol=2e-5)


@pytest.mark.slow
def test_thresholds_that_nothing_exceeds_change_nothing(gaussian, videos):
    plain = gaussian.segment(videos[0], video=True)
    for options in (
        {"shot_cuts": 1e6},
        {"shot_cuts": 1e6, "cut_signal": "error", "requery": 1e-6},
    ):
        found = gaussian.segment(videos[0], video=True, **options)
        assert_close(found, plain)
        assert found.cold.tolist() == [True] + [False] * (FRAMES - 1)


@pytest.mark.slow
def test_a_weak_slot_starts_anew_after_two_frames(gaussian, videos):
    """All slots are weak here: the third frame has the queries of a first one."""
    model = gaussian.definition.merge(gaussian.params, differentiated=False)
    features = jax.jit(lambda video: model.encode(video)["features"])(videos)
    draws = model.draw(jax.random.key(0), Sizes(BATCH, FRAMES, 4), False)
    run = whole_batch(gaussian)
    asked = as_scheduled(None, None, anew_of(None, requery=0.999999))
    never = run(gaussian.params, features, draws, {})
    found = run(gaussian.params, features, draws, asked)
    np.testing.assert_allclose(found["slots"][:, :2], never["slots"][:, :2], atol=1e-5)

    @jax.jit
    def third(features):
        tokens = model.projection(features[:, 2])
        queries, _ = model.initializer(tokens, None, None, draws["initializer"], {})
        return model.aggregator(model.aggregator.prepare(tokens), queries, None, first=False).slots

    np.testing.assert_allclose(found["slots"][:, 2], third(features), atol=1e-5)
    assert not found["cold"][:, 1:].any()


@pytest.mark.slow
def test_free_slots_are_given_to_what_is_new():
    """Slots 2 and 3 were left out: 2 is a copy of slot 0, 3 is like nothing that stays."""
    slots = np.eye(5, 8, dtype="f")[None].repeat(2, 0)
    slots[:, 2] = 2 * slots[:, 0]
    slots[1, 4] = slots[1, 3]  # in the second sample, a copy of 3 with more attention
    attention = np.full((2, 5, 3), 0.2, "f")
    attention[1, 4] = 0.4
    stays = np.array([[True, True, False, False, False]] * 2)
    valid = np.ones((2, 5), bool)
    found = np.asarray(admitted(Prune(0.5), slots, attention, stays, valid))
    assert found.tolist() == [[False] * 3 + [True, True], [False] * 4 + [True]]
    valid[:, 3:] = False
    assert not np.any(admitted(Prune(0.5), slots, attention, stays, valid))


def test_errors_of_a_new_shot_are_its_own():
    errors = first_errors(jnp.array([1.0, 2.0]))
    errors = remembered(errors, jnp.array([3.0, 4.0]), jnp.array([False, True]))
    assert np.nanmean(errors, axis=1).tolist() == [2.0, 4.0]
    for _ in range(10):
        errors = remembered(errors, jnp.array([5.0, 5.0]), jnp.zeros(2, bool))
    assert np.all(np.asarray(errors) == 5.0)


def test_memories_are_chosen_along_the_axis_of_the_samples():
    start = lambda slots: {"a": jnp.zeros((4, len(slots), 2)), "b": jnp.zeros(len(slots))}  # noqa: E731
    one, two = ({"a": jnp.full((4, 3, 2), x), "b": jnp.full(3, x)} for x in (1.0, 2.0))
    chosen = jnp.array([True, False, True])
    found = of_memory(chosen, one, two, start, jnp.zeros((3, 4, 8)))
    assert found["b"].tolist() == [1, 2, 1] and found["a"][0, :, 0].tolist() == [1, 2, 1]
    assert of_memory(chosen, None, None, lambda slots: None, jnp.zeros((3, 4, 8))) is None


def test_the_distance_has_no_unit():
    rng = np.random.default_rng(0)
    one, two = rng.standard_normal((2, 4, 50, 8)).astype("f")
    assert not np.any(feature_distance(one, one))
    np.testing.assert_allclose(
        feature_distance(7 * one, 7 * two), feature_distance(one, two), rtol=1e-5
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"shot_cuts": 0.5, "cut_signal": "colour"}, "cut_signal is 'colour'; expected one of"),
        ({"cut_signal": "error"}, "cut_signal='error' was given without shot_cuts"),
        ({"shot_cuts": 0}, "shot_cuts is 0; expected a number above 0"),
        ({"requery": 1.0}, "requery is 1.0; expected a number above 0 and below 1"),
    ],
)
def test_settings_out_of_range_are_told(gaussian, videos, options, message):
    with pytest.raises(UserError, match=message):
        next(gaussian.stream(videos[0], **options))


def test_what_cannot_start_anew_is_told(gaussian, videos):
    boxes = model_of(tiny_config(decoder="mlp_mixture"))
    with pytest.raises(UserError, match="starts its slots from boxes; leave them out"):
        next(boxes.stream(videos[0], requery=0.2))
    state = {"slots": np.zeros((4, 8), "f"), "slot_mask": np.ones(4, bool)}
    with pytest.raises(UserError, match="a state tells nothing"):
        next(gaussian.stream(videos[0], requery=0.2, state=state))
