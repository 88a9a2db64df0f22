"""Sprites are reproducible, exactly labeled, varied, and not solved by color."""

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs.boxes import boxes_from_segmentation, pad_boxes, whole_frame_box
from smoothsa_jax.inputs.build import build_dataset
from smoothsa_jax.inputs.procedural import SPLITS, number_by_appearance
from smoothsa_jax.inputs.sprite_motion import Motion, paths
from smoothsa_jax.inputs.sprite_shapes import SHAPES
from smoothsa_jax.inputs.sprites import (
    Scene,
    Sprites,
    camera_shift,
    draw_scene,
    render,
)


def _assert_same(first, second):
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)


def _scene(split, index, seed=0, **options):
    rng = np.random.default_rng([seed, SPLITS[split], index])
    return draw_scene(rng, 64, 64, 3, 5, 4, **options)


HARD = {"crowding": 0.4, "shared_colours": 0.4, "jitter": 2.0, "lighting": 0.5}


def _one_disc(**changes):
    """A scene of one disc that stands still over a background that stands still."""
    motion = dict(
        start=np.array([[30.0, 30.0]]),
        velocity=np.zeros((1, 2)),
        sway=np.zeros((1, 2)),
        sway_rate=np.zeros(1),
        leaves=np.array([True]),
        angle=np.zeros(1),
        spin=np.zeros(1),
        radius=np.array([10.0]),
        growth=np.zeros(1),
        growth_rate=np.zeros(1),
    )
    return Scene(
        motion=Motion(**{**motion, **changes}),
        shapes=["disc"],
        textures=["stripes", "blots"],
        frequencies=np.array([1.0, 1.1], np.float32),
        phases=np.array([[0.3, 0.1], [0.5, 0.9]], np.float32),
        colours=np.array([[[0, 0, 0], [255, 0, 0]], [[0, 0, 255], [0, 255, 0]]], np.float32),
        shade=np.array([0.0, 0.3], np.float32),
        drift=np.zeros(2),
        tilt=0.4,
    )


def test_shapes_and_types():
    sample = Sprites(num_frames=3, num_slots=8)[5]
    assert {k: (v.shape, v.dtype.name) for k, v in sample.items()} == {
        "video": ((3, 64, 64, 3), "uint8"),
        "segmentations": ((3, 64, 64), "uint8"),
        "boxes": ((3, 8, 4), "float32"),
        "slot_mask": ((8,), "bool"),
    }


def test_sample_depends_on_the_index_only_and_not_on_the_order():
    forwards, backwards = Sprites(seed=4), Sprites(seed=4)
    first = [forwards[i] for i in range(6)]
    second = [backwards[i] for i in reversed(range(6))][::-1]
    for a, b in zip(first, second, strict=True):
        _assert_same(a, b)


def test_seeds_splits_and_indices_differ():
    sources = [Sprites(split=split, seed=seed) for split in SPLITS for seed in (0, 1, 2)]
    clips = {source[index]["video"].tobytes() for source in sources for index in range(20)}
    assert len(clips) == 9 * 20


def test_a_longer_clip_goes_on_from_a_shorter_one():
    short, long = Sprites(num_frames=2), Sprites(num_frames=15)
    for index in range(20):
        a, b = short[index], long[index]
        for key in ("video", "segmentations"):
            np.testing.assert_array_equal(a[key], b[key][:2])
        given = a["slot_mask"]
        np.testing.assert_array_equal(a["boxes"][:, given], b["boxes"][:2, given])


@pytest.mark.parametrize(("index", "options"), [(0, {}), (1, {}), (2, HARD)])
def test_labels_equal_a_loop_over_pixels_and_sprites(index, options):
    scene = _scene("test", index, **options)
    _, labels = render(scene, 3, 64, 64)
    centres, angles, radii = paths(scene.motion, 3, 64, 64)
    centres = centres + camera_shift(scene, 3)
    for t in range(3):
        for y in range(64):
            for x in range(64):
                want, nearest = 0, np.inf
                for i, shape in enumerate(scene.shapes):  # a later sprite is in front
                    across, down = np.array([x, y]) - centres[i, t]
                    cos, sin = np.cos(angles[i, t]), np.sin(angles[i, t])
                    u = np.array([cos * across + sin * down]) / radii[i, t]
                    v = np.array([cos * down - sin * across]) / radii[i, t]
                    distance = float(SHAPES[shape](u, v)[0])
                    nearest = min(nearest, abs(distance))
                    if distance <= 0:
                        want = i + 1
                assert labels[t, y, x] == want or nearest < 1e-5, (t, y, x)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_stay_inside_the_window_that_is_drawn(shape):
    angle = np.linspace(0, 2 * np.pi, 1000)
    assert (SHAPES[shape](1.01 * np.cos(angle), 1.01 * np.sin(angle)) > 0).all()
    u, v = np.meshgrid(*2 * [np.linspace(-1, 1, 201)])
    assert 0.2 < (SHAPES[shape](u, v) <= 0).mean() < 0.8


def test_boxes_equal_a_loop_over_pixels():
    rng = np.random.default_rng(0)
    # Rare labels and an absent one, more than the eight that fit one pass.
    segmentation = rng.choice(14, size=(3, 9, 13), p=[0.74] + 13 * [0.02]).astype(np.uint8)
    segmentation[1][segmentation[1] == 3] = 255
    ids = [3, 1, *range(4, 14), 200]
    boxes = boxes_from_segmentation(segmentation, ids)
    assert boxes.shape == (3, len(ids), 4) and boxes.dtype == np.float32
    for t in range(3):
        for k, segment in enumerate(ids):
            pixels = [
                (x, y) for y in range(9) for x in range(13) if segmentation[t, y, x] == segment
            ]
            want = [0.0] * 4
            if pixels:
                xs, ys = zip(*pixels, strict=True)
                want = [min(xs) / 13, min(ys) / 9, max(xs) / 13, max(ys) / 9]
            np.testing.assert_allclose(boxes[t, k], want, rtol=1e-6)


def test_boxes_of_a_sample_follow_its_labels():
    height, width = 48, 80
    source = Sprites(image_size=(height, width), num_frames=30, num_slots=9)
    absent = 0
    for index in range(10):
        sample = source[index]
        ids = np.unique(sample["segmentations"])
        np.testing.assert_array_equal(ids, np.arange(len(ids)))  # no number is left out
        count = len(ids) - 1
        np.testing.assert_array_equal(sample["slot_mask"], np.arange(9) <= count)
        boxes = sample["boxes"]
        np.testing.assert_array_equal(boxes[:, count + 1 :], -1.0)
        np.testing.assert_allclose(boxes[:, 0], [[0, 0, 79 / 80, 47 / 48]] * 30, rtol=1e-6)
        for t in range(30):
            for segment in range(1, count + 1):
                y, x = np.nonzero(sample["segmentations"][t] == segment)
                want = np.zeros(4)
                if len(x):
                    want = np.array([x.min() / 80, y.min() / 48, x.max() / 80, y.max() / 48])
                absent += not len(x)
                np.testing.assert_allclose(boxes[t, segment], want, rtol=1e-6)
    assert absent > 0


def test_without_a_background_box_objects_come_first():
    plain, default = Sprites(background_box=False)[3], Sprites()[3]
    np.testing.assert_array_equal(plain["boxes"], default["boxes"][:, 1:])
    np.testing.assert_array_equal(plain["slot_mask"], default["slot_mask"][1:])


def test_without_boxes_every_slot_is_valid_and_may_be_too_few():
    sample = Sprites(boxes=False, num_slots=3)[0]
    assert sample["slot_mask"].all() and sample["boxes"].shape == (4, 3, 4)


def test_unseen_objects_are_dropped_and_the_others_numbered_by_appearance():
    labels = np.zeros((2, 4, 4), np.uint8)
    labels[0, 0], labels[1, 1], labels[1, 2] = 4, 1, 3  # 2 is never seen, 4 is seen first
    numbered, count = number_by_appearance(labels, 4)
    assert count == 3
    assert numbered[0, 0, 0] == 1 and numbered[1, 1, 0] == 2 and numbered[1, 2, 0] == 3
    assert ((numbered == 0) == (labels == 0)).all()


def test_texture_moves_with_the_sprite_and_the_background_stays():
    scene = _one_disc(velocity=np.array([[3.0, 2.0]]))
    video, labels = render(scene, 4, 64, 64)
    for t in range(1, 4):
        y, x = np.nonzero(labels[0])
        np.testing.assert_array_equal(labels[t, y + 2 * t, x + 3 * t], 1)
        # Rounding of coordinates may move a value by one level.
        inner = (y - 30) ** 2 + (x - 30) ** 2 < 81
        moved = video[t, y + 2 * t, x + 3 * t][inner].astype(int)
        assert np.abs(moved - video[0, y, x][inner]).max() <= 1
        free = (labels[0] == 0) & (labels[t] == 0)
        outside = free & ~_touched(labels[0]) & ~_touched(labels[t])
        np.testing.assert_array_equal(video[t][outside], video[0][outside])


def _touched(labels):
    grown = labels > 0
    for axis in (0, 1):
        for step in (-1, 1):
            grown = grown | np.roll(grown, step, axis)
    return grown


def test_background_drifts():
    scene = _one_disc()._replace(drift=np.array([2.0, 1.0]))
    video, _ = render(scene, 2, 64, 64)
    moved = np.abs(video[1, 1:20, 2:].astype(int) - video[0, :19, :-2])
    assert moved.max() <= 1
    assert np.abs(video[1, :20].astype(int) - video[0, :20]).max() > 100


def test_sprite_grows_and_turns():
    grows = _one_disc(growth=np.array([0.2]), growth_rate=np.array([np.pi / 2]))
    _, labels = render(grows, 4, 64, 64)
    area = (labels == 1).sum(axis=(1, 2))
    np.testing.assert_allclose(area / (np.pi * 100), [1.0, 1.44, 1.0, 0.64], rtol=0.05)
    turns = _one_disc(spin=np.array([np.pi / 2]))._replace(shapes=["triangle"])
    video, labels = render(turns, 2, 64, 64)
    window = np.s_[18:43, 18:43]  # around the centre, pixel (30, 30)
    turned = np.rot90(labels[0][window], k=-1)
    assert (labels[1][window] != turned).mean() < 0.01
    inside = (labels[1][window] == 1) & (turned == 1)
    change = np.abs(video[1][window].astype(int) - np.rot90(video[0][window], k=-1))[inside]
    assert np.median(change) <= 1


def test_sprites_are_lively():
    """Over many clips objects move, turn, scale, bounce, leave and hide each other."""
    counts, speeds, spins, scales, left, hidden = set(), [], [], [], 0, 0
    scenes = [_scene("train", index) for index in range(200)]
    for scene in scenes:
        counts.add(len(scene.shapes))
        centres, angles, radii = paths(scene.motion, 12, 64, 64)
        speeds.append(np.linalg.norm(np.diff(centres, axis=1), axis=-1).mean(axis=1))
        spins.append(np.abs(angles[:, -1] - angles[:, 0]))
        scales.append(radii.max(axis=1) / radii.min(axis=1))
    assert counts == {3, 4, 5}
    speeds, spins, scales = map(np.concatenate, (speeds, spins, scales))
    assert 0.9 < speeds.mean() < 2.2 and speeds.min() > 0.2
    assert np.mean(spins > 0.5) > 0.4
    assert np.mean(scales > 1.15) > 0.4
    total = 0
    for scene in scenes[:60]:
        _, labels = render(
            scene, 24, 64, 64
        )  # in twelve frames few of the large shapes leave wholly
        total += len(scene.shapes)
        for i in range(len(scene.shapes)):
            area = (labels == i + 1).sum(axis=(1, 2))
            left += area[0] > 0 and area[-1] == 0
            alone = (render(_alone(scene, i), 24, 64, 64)[1] == 1).sum(axis=(1, 2))
            hidden += (area < 0.7 * alone)[:12].any()
    assert 0.02 < left / total < 0.4
    assert 0.1 < hidden / total < 0.8


def _alone(scene, i):
    motion = Motion(*(values[i : i + 1] for values in scene.motion))
    pick = [0, i + 1]
    return scene._replace(
        motion=motion,
        shapes=[scene.shapes[i]],
        textures=[scene.textures[j] for j in pick],
        **{name: getattr(scene, name)[pick] for name in ("frequencies", "phases", "shade")},
        colours=scene.colours[pick],
    )


def test_at_least_two_objects_are_visible_in_the_first_frame():
    source = Sprites(num_frames=1, min_objects=2)
    for index in range(300):
        areas = np.bincount(source[index]["segmentations"].ravel())
        assert (areas[1:] >= 20).sum() >= 2


def test_pairs_of_colours_differ_and_share_a_small_palette():
    for index in range(100):
        colours = _scene("train", index).colours
        pairs = {tuple(sorted(map(tuple, pair))) for pair in colours}
        assert len(pairs) == len(colours)
        assert len(np.unique(colours.reshape(-1, 3), axis=0)) <= 4
        assert (np.linalg.norm(colours[:, 0] - colours[:, 1], axis=-1) > 100).all()


# ------------------------------------------------------------------------------------- harder clips


def test_what_makes_clips_harder_is_drawn_last():
    """So clips without it stay as they are."""
    for index in range(20):
        plain, hard = _scene("train", index), _scene("train", index, **HARD)
        lit = _scene("train", index, jitter=2.0, lighting=0.5)
        assert plain.hardship is None and hard.hardship is not None
        changed = ("motion", "hardship", "textures", "colours")
        same = [name for name in plain._fields if name not in changed]
        motion = plain.motion._replace(start=hard.motion.start)
        np.testing.assert_equal(hard.motion, motion)
        for other, names in ((hard, same), (lit, [*same, "motion", "textures", "colours"])):
            for name in names:
                np.testing.assert_equal(getattr(other, name), getattr(plain, name))


def test_harder_clips_are_reproducible_and_go_on():
    options = {"max_objects": 7, "min_objects": 4, **HARD}
    short, long = Sprites(num_frames=2, **options), Sprites(num_frames=9, **options)
    plain = Sprites(num_frames=2, max_objects=7, min_objects=4)
    for index in range(8):
        _assert_same(short[index], Sprites(num_frames=2, **options)[index])
        for key in ("video", "segmentations"):
            np.testing.assert_array_equal(short[index][key], long[index][key][:2])
        assert (short[index]["video"] != plain[index]["video"]).any()
    clips = {Sprites(seed=s, **options)[i]["video"].tobytes() for s in range(2) for i in range(8)}
    assert len(clips) == 16


def test_crowded_objects_start_closer_together_anywhere_in_the_frame():
    for index in range(20):
        apart, crowd = _scene("train", index), _scene("train", index, crowding=0.4)
        between = [x.motion.start[:, None] - x.motion.start for x in (apart, crowd)]
        np.testing.assert_allclose(between[1], 0.6 * between[0], atol=1e-9)
        assert (crowd.motion.start > 0).all() and (crowd.motion.start < 64).all()
    middles = [_scene("train", i, crowding=0.4).motion.start.mean(axis=0) for i in range(200)]
    assert np.ptp(middles, axis=0).min() > 20


def test_objects_have_the_colours_of_something_behind_them_but_another_texture():
    shared = total = 0
    for index in range(200):
        scene = _scene("train", index, shared_colours=0.4)
        for i in range(1, len(scene.textures)):
            behind = [j for j in range(i) if (scene.colours[j] == scene.colours[i]).all()]
            shared, total = shared + bool(behind), total + 1
            if len(behind) == 1:
                assert scene.textures[behind[0]] != scene.textures[i]
    assert 0.33 < shared / total < 0.5  # besides, 0.4 may meet what has taken colors itself


def test_the_camera_shakes_everything_by_what_is_told():
    still = _one_disc()
    hardship = _scene("train", 0, jitter=4.0).hardship
    scene = still._replace(hardship=hardship._replace(dark=0.0, tint=np.zeros(3)))
    shift = camera_shift(scene, 8)
    assert 0.5 < np.abs(shift).max() <= 4 and np.linalg.norm(shift, axis=1).max() <= 4
    _, labels = render(scene, 8, 64, 64)
    for t in range(8):
        y, x = np.nonzero(labels[t])
        np.testing.assert_allclose([x.mean() - 30, y.mean() - 30], shift[t], atol=0.15)
    # The background as well: shaken by whole pixels, it is the same elsewhere.
    whole = np.array([[3.0, 2.0], [0.0, 0.0]])
    moved = scene._replace(
        hardship=scene.hardship._replace(
            shake=whole, shake_rate=np.full(2, np.pi / 2), shake_phase=np.zeros(2)
        )
    )
    video, labels = render(moved, 2, 64, 64)
    np.testing.assert_array_equal(labels[1, 2:, 3:], labels[0, :-2, :-3])
    change = np.abs(video[1, 2:, 3:].astype(int) - video[0, :-2, :-3])
    assert change.max() <= 1 and np.abs(video[1].astype(int) - video[0]).max() > 100


def test_light_changes_colours_alone():
    for index in range(10):
        plain, lit = _scene("test", index), _scene("test", index, lighting=0.5)
        (video, labels), (dark, same) = (render(scene, 6, 64, 64) for scene in (plain, lit))
        np.testing.assert_array_equal(labels, same)
        assert (dark <= video).all() and (dark >= 0.5 * 0.75 * video - 1).all()
        share = dark.mean(axis=-1) / np.maximum(video.mean(axis=-1), 1)
        assert share.std(axis=(1, 2)).min() > 0.03  # it differs over each frame


@pytest.mark.slow
def test_colour_alone_does_not_solve_it():
    """RGB k-means with the true number of segments stays at or below 0.4 FG-ARI; so says the mean
    over test clips. Clustered on every seventh pixel, scored on all."""
    source, scores = Sprites(num_frames=12, split="test"), []
    for index in range(24):
        sample = source[index]
        pixels = sample["video"].reshape(-1, 3).astype(np.float32)
        labels = sample["segmentations"].ravel()
        clusters = KMeans(len(np.unique(labels)), n_init=1, random_state=0).fit(pixels[::7])
        objects = labels > 0
        scores.append(adjusted_rand_score(labels[objects], clusters.predict(pixels[objects])))
    assert np.mean(scores) <= 0.35


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "data.num_frames is 0"),
        ({"num_samples": 0}, "data.num_samples is 0"),
        ({"image_size": 8}, "at least 16 pixels"),
        ({"split": "dev"}, "'dev' is unknown"),
        ({"seed": -1}, "seed"),
        ({"min_objects": 1}, "min_objects"),
        ({"min_objects": 6}, "min_objects"),
        ({"palette_size": 2}, "palette_size"),
        ({"crowding": 1.1}, "data.crowding is 1.1; choose a share"),
        ({"shared_colours": 1.5}, "data.shared_colours is 1.5; choose a share"),
        ({"lighting": -0.1}, "data.lighting is -0.1"),
        ({"jitter": 17}, "data.jitter is 17"),
        ({"num_slots": 5}, "6 boxes, but the model has 5 slots"),
    ],
)
def test_options_outside_their_range(options, message):
    with pytest.raises(UserError, match=message) as error:
        Sprites(**options)
    assert "\n" not in str(error.value)


def test_more_boxes_than_slots():
    boxes = np.zeros((2, 3, 4), np.float32)
    assert pad_boxes(boxes, 3).shape == (2, 3, 4)
    with pytest.raises(UserError, match="num_slots to at least 4"):
        pad_boxes(boxes, 3, whole_frame=whole_frame_box(64, 64))


def test_index_outside_the_split():
    source = Sprites(num_samples=3)
    assert len(source) == 3
    for index in (3, -1):
        with pytest.raises(IndexError):
            source[index]


def test_data_set_by_name():
    config = {"name": "sprites", "num_frames": 2, "max_objects": 4}
    source = build_dataset(config, "test", num_frames=5, num_slots=6)
    _assert_same(source[2], Sprites(num_frames=5, max_objects=4, num_slots=6, split="test")[2])
    with pytest.raises(UserError, match="'sprtes'.*mean 'sprites'"):
        build_dataset({"name": "sprtes"}, "train")
    with pytest.raises(UserError, match="data.num_frame .*mean 'num_frames'"):
        build_dataset({"name": "sprites", "num_frame": 2}, "train")
