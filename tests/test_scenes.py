"""Scenes are reproducible; labels, depth, flow, cameras and contacts agree; physics is sound."""

import math

import numpy as np
import pytest

from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs import cameras as pinhole
from smoothsa_jax.inputs.build import build_dataset
from smoothsa_jax.inputs.scene_physics import BOX, CYLINDER, SPHERE, Bodies, simulate
from smoothsa_jax.inputs.scenes import ALSO, FRAMES_PER_SECOND, Scenes, draw_scene

VIEWS_ALSO = ("depth", "cameras", "contacts")


def _paths(index: int, num_frames: int = 25):
    most = (4, 6)[index % 2]  # in a grid of 2x2, or 3x3
    scene = draw_scene(np.random.default_rng(index), 4, most, 4)
    return scene.bodies, simulate(scene.bodies, num_frames, FRAMES_PER_SECOND)


def _one(kind: str, half, position, velocity=(0.0, 0.0, 0.0), spin=(0.0, 0.0, 0.0)) -> Bodies:
    arrays = [np.array([x], float) for x in (half, position, velocity)]
    return Bodies([kind], *arrays, angle=np.zeros(1), spin=np.array([spin], float))


def _join(*bodies: Bodies) -> Bodies:
    return Bodies(
        [b.kinds[0] for b in bodies],
        *[np.concatenate(x) for x in zip(*(b[1:] for b in bodies), strict=True)],
    )


# ----------------------------------------------------------------------------------------- samples


def test_shapes_and_types():
    sample = Scenes(num_frames=3, num_slots=7, image_size=(32, 48), also=ALSO)[5]
    assert {k: (v.shape, v.dtype.name) for k, v in sample.items()} == {
        "video": ((3, 32, 48, 3), "uint8"),
        "segmentations": ((3, 32, 48), "uint8"),
        "boxes": ((3, 7, 4), "float32"),
        "slot_mask": ((7,), "bool"),
        "flow": ((3, 32, 48, 2), "float32"),
        "depth": ((3, 32, 48), "float32"),
        "cameras": ((3, 4, 3), "float32"),
        "contacts": ((3, 5, 5), "bool"),
    }
    assert set(Scenes()[5]) == {"video", "segmentations", "boxes", "slot_mask"}


@pytest.mark.parametrize("views", [False, True])
def test_a_sample_depends_on_seed_split_and_index_only(views):
    options = {"num_frames": 3, "views": views, "also": VIEWS_ALSO, "moving": 0.5}
    forwards, backwards = Scenes(seed=4, **options), Scenes(seed=4, **options)
    first = [forwards[i] for i in range(5)]
    second = [backwards[i] for i in reversed(range(5))][::-1]
    longer = [Scenes(seed=4, **{**options, "num_frames": 6})[i] for i in range(5)]
    for a, b, c in zip(first, second, longer, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)
        for key in ("video", "segmentations", "depth", "cameras"):
            np.testing.assert_array_equal(a[key], c[key][:3], err_msg=key)
    others = [
        Scenes(seed=s, split=split, **options)[i]["video"].tobytes()
        for s in (4, 5)
        for split in ("train", "validation", "test")
        for i in range(5)
    ]
    assert len(set(others)) == len(others)


def test_scenes_vary_and_show_most_objects():
    counts, shown = [], []
    for index in range(30):
        labels = Scenes(num_frames=1, min_objects=3, max_objects=3)[index]["segmentations"]
        pixels = np.bincount(labels.ravel(), minlength=4)[1:]
        counts.append((pixels > 0).sum())
        shown.append(pixels.sum() / labels.size)
    assert np.mean(counts) > 2.7 and 0.05 < np.mean(shown) < 0.4


def test_objects_are_large_enough_to_learn():
    """Of 64 pixels, most objects that are whole have 18 to 32; more objects are smaller."""
    for most, low, high in ((4, 18, 32), (9, 11, 24)):
        source = Scenes(num_frames=1, min_objects=2, max_objects=most)
        boxes = np.concatenate([source[k]["boxes"][0, 1:] for k in range(30)])
        whole = boxes[(boxes[:, :2] > 0).all(axis=1) & (boxes[:, 2:] < 63 / 64).all(axis=1)]
        sizes = 64 * (whole[:, 2:] - whole[:, :2]).max(axis=1) + 1
        assert len(sizes) > 40 and ((sizes >= low) & (sizes <= high)).mean() > 0.8, most


def test_main_colours_differ():
    for index in range(10):
        look = draw_scene(np.random.default_rng(index), 5, 5, 6).look
        assert len(np.unique(look.colours[:, 0], axis=0)) == 6
        spans = np.abs(look.colours[:, 1] - look.colours[:, 0]).max(axis=1)
        assert (spans > 0).all() and (spans <= 255 * np.array([0.25, *5 * [0.5]]) + 1e-3).all()


def test_bad_options_are_refused_in_one_line():
    for options, text in (
        ({"max_objects": 10}, r"1 <= min_objects <= max_objects <= 9"),
        ({"moving": 1.5}, r"data\.moving is 1\.5"),
        ({"also": ("normals",)}, r"scenes have no normals"),
        ({"views": True, "also": ("flow",)}, r"views of a still scene are no video"),
        ({"keep": True}, r"set data\.num_samples"),
        ({"num_slots": 3}, r"set model\.num_slots to at least 5"),
    ):
        with pytest.raises(UserError, match=text) as error:
            Scenes(**options)
        assert "\n" not in str(error.value)


def test_a_data_set_gets_the_keys_that_are_read_and_no_others():
    reads = ("video", "boxes", "depth")
    sample = build_dataset({"name": "scenes", "num_frames": 2}, "test", reads=reads)[0]
    assert "depth" in sample and "flow" not in sample
    with pytest.raises(UserError, match=r"data\.also is not a setting"):
        build_dataset({"name": "scenes", "also": ("flow",)}, "test")


# ---------------------------------------------------------------------------------------- geometry


def _world(sample, t: int) -> np.ndarray:
    """The point (H, W, 3) that every pixel of frame t shows, from depth and camera alone."""
    rays = pinhole.ray_directions(sample["cameras"][t].astype(np.float64), *_size(sample))
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    return sample["cameras"][t, 0] + sample["depth"][t][..., None] * rays


def _size(sample) -> tuple[int, int]:
    return sample["video"].shape[1:3]


def _at(values: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Values at the nearest pixels of places (P, 2) inside the picture."""
    rows, columns = np.rint(place).astype(int).T
    return values[rows, columns]


def _inside(place: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return ((place > -0.5) & (place < np.array(size) - 0.5)).all(axis=-1)


def _interior(labels: np.ndarray) -> np.ndarray:
    """Pixels whose eight neighbors have the same label."""
    padded = np.pad(labels, 1, mode="edge")
    height, width = labels.shape
    around = [padded[i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return np.all([x == labels for x in around], axis=0)


def test_views_agree_through_depth_and_cameras():
    """A pixel of view A, moved to its point and into view B, lands on the same object there."""
    checked, unoccluded = 0, []
    for index in range(4):
        sample = Scenes(views=True, num_frames=3, also=VIEWS_ALSO)[index]
        size, labels = _size(sample), sample["segmentations"]
        points = [_world(sample, t) for t in range(3)]
        for a, b in ((0, 1), (1, 2), (2, 0)):
            place, forward = pinhole.project(
                sample["cameras"][b : b + 1].astype(np.float64), points[a].reshape(1, -1, 3), *size
            )
            place, kept = place[0], _inside(place[0], size) & (forward[0] > 0)
            distance = np.linalg.norm(points[a].reshape(-1, 3) - sample["cameras"][b, 0], axis=-1)
            place, mine = place[kept], labels[a].ravel()[kept]
            there, seen = _at(labels[b], place), _at(sample["depth"][b], place)
            # Depth changes by several cm within a pixel of a slanted surface.
            visible = np.abs(seen - distance[kept]) < 0.05
            visible &= _at(_interior(labels[b]), place)
            np.testing.assert_array_equal(there[visible], mine[visible])
            # Half a pixel: the point of the nearest pixel is that near, seen from B.
            other = _at(points[b], place[visible])
            back, _ = pinhole.project(
                sample["cameras"][b : b + 1].astype(np.float64), other[None], *size
            )
            assert np.abs(back[0] - place[visible]).max() <= 0.5 + 1e-3
            hidden = seen - distance[kept] > 0.3  # nothing is seen through a surface
            assert (hidden & _at(_interior(labels[b]), place)).mean() < 0.002
            checked += (mine[visible] > 0).sum()
            unoccluded.append(visible.mean())
    assert checked > 300 and np.mean(unoccluded) > 0.5


@pytest.mark.parametrize("moving", [0.0, 1.0])
def test_flow_moves_pixels_onto_the_frame_before(moving):
    """The point of the material that a pixel shows is found there, within half a pixel."""
    num_objects = 0
    for index in range(4):
        source = Scenes(num_frames=5, moving=moving, also=ALSO, min_objects=3)
        sample = source[index]
        size, labels = _size(sample), sample["segmentations"]
        grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1)
        for t in range(1, 5):
            flow, video = sample["flow"][t], sample["video"].astype(float)
            place = (grid + flow).reshape(-1, 2)
            kept = _inside(place, size) & _interior(labels[t]).ravel()
            mine = labels[t].ravel()[kept]
            there = _at(labels[t - 1], place[kept])
            solid = _at(_interior(labels[t - 1]), place[kept])
            # What an object hid before, it uncovers: so others may be there, but rarely.
            assert (there == mine)[solid].mean() > 0.93
            num_objects += ((there == mine) & (mine > 0)).sum()
            # Textures travel with the flow: colors differ less than without it.
            same = (there == mine) & solid
            moved = np.linalg.norm(flow.reshape(-1, 2)[kept], axis=-1) > 1.0
            chosen = same & moved
            if chosen.sum() > 50:
                now = video[t].reshape(-1, 3)[kept][chosen]
                before = _bilinear(video[t - 1], place[kept][chosen])
                unmoved = video[t - 1].reshape(-1, 3)[kept][chosen]
                assert np.abs(now - before).mean() < 0.75 * np.abs(now - unmoved).mean()
        # The ground does not move: its flow is the camera's alone.
        for t in range(1, 5):
            ground = labels[t] == 0
            old, _ = pinhole.project(
                sample["cameras"][t - 1 : t].astype(np.float64),
                _world(sample, t)[ground][None],
                *size,
            )
            near = sample["depth"][t][ground] < 15
            np.testing.assert_allclose(
                old[0][near], (grid + sample["flow"][t])[ground][near], atol=0.01
            )
            if not moving:
                np.testing.assert_allclose(sample["flow"][t][ground], 0, atol=1e-3)
    assert num_objects > 1000


def _bilinear(picture: np.ndarray, place: np.ndarray) -> np.ndarray:
    low = np.clip(np.floor(place).astype(int), 0, np.array(picture.shape[:2]) - 2)
    y, x = (place - low).T[..., None]
    (i, j) = low.T
    return (1 - y) * ((1 - x) * picture[i, j] + x * picture[i, j + 1]) + y * (
        (1 - x) * picture[i + 1, j] + x * picture[i + 1, j + 1]
    )


def test_flow_is_exact_for_the_points_of_a_moving_object():
    """The rigid motion of a sphere, from its path, predicts the flow of its pixels."""
    body = _one(SPHERE, (0.6,) * 3, (-1.0, 0.0, 0.6), (1.8, 0.4, 0.0), (-0.6, 3.0, 0.0))
    from smoothsa_jax.inputs.scene_rendering import Poses, render

    paths = simulate(body, 4, FRAMES_PER_SECOND)
    camera = pinhole.look_at(np.array([[0.0, -8.0, 4.0]]), np.array([[0.0, 0.0, 0.5]]), 0.3)
    poses = Poses(paths.position, paths.rotation, np.repeat(camera, 4, axis=0))
    look = draw_scene(np.random.default_rng(0), 1, 1, 4).look
    now, before = poses.of_frames(slice(1, None)), poses.of_frames(slice(None, -1))
    seen = render(body.kinds, body.half_sizes, look, now, before, 64, 64)
    for t in range(3):
        rows, columns = np.nonzero(seen.labels[t] == 1)
        assert len(rows) > 100
        rays = pinhole.ray_directions(camera[0], 64, 64)[rows, columns]
        rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
        points = camera[0, 0] + seen.depth[t, rows, columns, None] * rays
        offset = points - paths.position[0, t + 1]
        np.testing.assert_allclose(np.linalg.norm(offset, axis=-1), 0.6, atol=1e-4)
        turn = paths.rotation[0, t] @ paths.rotation[0, t + 1].T
        old, _ = pinhole.project(camera, (offset @ turn.T + paths.position[0, t])[None], 64, 64)
        expected = old[0] - np.stack([rows, columns], axis=-1)
        np.testing.assert_allclose(seen.flow[t, rows, columns], expected, atol=2e-3)


def test_labels_equal_a_search_along_each_ray():
    """Points along a ray, tested against the solids one by one, find what the pixel shows."""
    scene = draw_scene(np.random.default_rng(11), 4, 4, 4)
    from smoothsa_jax.inputs.scene_rendering import Poses, render

    paths = simulate(scene.bodies, 6, FRAMES_PER_SECOND)
    last = [x[:, -1:] for x in paths[:2]]
    camera = pinhole.look_at(np.array([[3.0, -7.5, 4.5]]), np.array([[0.0, 0.0, 0.5]]), 0.3)
    seen = render(
        scene.bodies.kinds, scene.bodies.half_sizes, scene.look, Poses(*last, camera), None, 20, 20
    )
    rays = pinhole.ray_directions(camera[0], 20, 20)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    steps = np.linspace(4, 20, 2001)
    points = camera[0, 0] + steps[:, None, None, None] * rays
    first = np.full((20, 20), np.inf)
    labels = np.zeros((20, 20), int)
    below = points[..., 2] < 0
    first = np.where(below.any(axis=0), steps[below.argmax(axis=0)], np.inf)
    for k, kind in enumerate(scene.bodies.kinds):
        local = (points - last[0][k, 0]) @ last[1][k, 0]
        x, y, z = np.moveaxis(np.abs(local), -1, 0)
        half = scene.bodies.half_sizes[k]
        within = {
            SPHERE: x * x + y * y + z * z < half[0] ** 2,
            BOX: (x < half[0]) & (y < half[1]) & (z < half[2]),
            CYLINDER: (x * x + y * y < half[0] ** 2) & (z < half[2]),
        }[kind]
        entered = np.where(within.any(axis=0), steps[within.argmax(axis=0)], np.inf)
        labels[entered < first] = k + 1
        first = np.minimum(first, entered)
    agree = labels == seen.labels[0]
    assert agree.mean() > 0.99 and len(np.unique(labels)) == 5  # steps are 8 mm
    found = np.isfinite(first) & agree
    np.testing.assert_allclose(seen.depth[0][found], first[found], atol=0.04)


# ----------------------------------------------------------------------------------------- physics


def test_nothing_sinks_explodes_or_gains_energy():
    touched = 0
    for index in range(25):
        bodies, paths = _paths(index)
        assert (np.diff(paths.energy) <= 1e-6 * paths.energy[0]).all(), index
        assert (paths.position[:, :, 2] >= bodies.half_sizes[:, None, 2] - 1e-9).all()
        speed = np.linalg.norm(np.diff(paths.position, axis=1), axis=-1) * FRAMES_PER_SECOND
        mass = 4.0  # of the heaviest body, in units of the lightest, generously
        assert speed.max() < math.sqrt(2 * mass * paths.energy[0] / 0.2)
        turns = paths.rotation @ paths.rotation.swapaxes(-1, -2)
        np.testing.assert_allclose(turns, np.broadcast_to(np.eye(3), turns.shape), atol=1e-9)
        touched += paths.contacts[:, 1:, 1:].any()
    assert touched >= 6


def test_objects_do_not_overlap():
    """Points inside one body are outside of all others, but for a thin skin."""
    for index in range(12):
        bodies, paths = _paths(index, 13)
        for t in range(13):
            for a in range(len(bodies.kinds)):
                mine = _points_of(bodies, paths, a, t)
                for b in range(len(bodies.kinds)):
                    if a != b:
                        depth = _depth_inside(bodies, paths, b, t, mine)
                        assert depth.max() < 0.04, (index, t, a, b)


def _points_of(bodies: Bodies, paths, k: int, t: int) -> np.ndarray:
    """Points on the surface of a body, in world coordinates."""
    grid = np.stack(np.meshgrid(*3 * [np.linspace(-1, 1, 5)]), axis=-1).reshape(-1, 3)
    grid = grid[np.abs(grid).max(axis=1) == 1]
    if bodies.kinds[k] == SPHERE:
        grid = grid / np.linalg.norm(grid, axis=1, keepdims=True)
    elif bodies.kinds[k] == CYLINDER:
        grid[:, :2] /= np.maximum(np.linalg.norm(grid[:, :2], axis=1, keepdims=True), 1)
    local = grid * bodies.half_sizes[k]
    return local @ paths.rotation[k, t].T + paths.position[k, t]


def _depth_inside(bodies: Bodies, paths, k: int, t: int, points: np.ndarray) -> np.ndarray:
    """How deep points are inside a body; negative outside."""
    x, y, z = np.abs((points - paths.position[k, t]) @ paths.rotation[k, t]).T
    half = bodies.half_sizes[k]
    if bodies.kinds[k] == SPHERE:
        return half[0] - np.sqrt(x * x + y * y + z * z)
    if bodies.kinds[k] == CYLINDER:
        return np.minimum(half[0] - np.hypot(x, y), half[2] - z)
    return np.minimum.reduce([half[0] - x, half[1] - y, half[2] - z])


def test_a_body_falls_as_galileo_says_and_its_contact_is_recorded():
    paths = simulate(_one(BOX, (0.4, 0.4, 0.4), (0, 0, 1.6)), 13, FRAMES_PER_SECOND)
    time = np.arange(13) / FRAMES_PER_SECOND
    falling = time < math.sqrt(2 * 1.2 / 9.81) - 1 / FRAMES_PER_SECOND
    expected = 1.6 - 9.81 / 2 * time**2
    np.testing.assert_allclose(paths.position[0, falling, 2], expected[falling], atol=0.03)
    first = int(np.argmax(paths.contacts[:, 0, 1]))
    assert first == math.ceil(math.sqrt(2 * 1.2 / 9.81) * FRAMES_PER_SECOND)
    assert paths.position[0, first + 1, 2] > paths.position[0, first, 2] or (
        paths.position[0, first, 2] > 0.4
    )  # it bounces


def test_a_sphere_rolls_without_slipping_and_a_box_comes_to_rest():
    rolling = simulate(
        _one(SPHERE, (0.5,) * 3, (0, 0, 0.5), (1.0, 0, 0), (0, 2.0, 0)), 13, FRAMES_PER_SECOND
    )
    np.testing.assert_allclose(rolling.position[0, :, 0], np.arange(13) / 12, atol=1e-6)
    angle = np.arccos(np.clip((np.trace(rolling.rotation[0, 3]) - 1) / 2, -1, 1))
    np.testing.assert_allclose(angle, 0.25 / 0.5, atol=1e-6)
    assert rolling.contacts[1:, 0, 1].all()
    sliding = simulate(
        _one(BOX, (0.5,) * 3, (0, 0, 0.5), (1.0, 0, 0), (0, 0, 1.0)), 25, FRAMES_PER_SECOND
    )
    stop = 1 / (2 * 0.4 * 9.81)  # v^2 / (2 mu g)
    np.testing.assert_allclose(sliding.position[0, -1, 0], stop, rtol=0.1)
    np.testing.assert_array_equal(sliding.rotation[0, -1], sliding.rotation[0, -2])


@pytest.mark.parametrize("kinds", [(a, b) for a in (SPHERE, BOX, CYLINDER) for b in (SPHERE, BOX)])
def test_bodies_that_meet_push_each_other_and_are_recorded(kinds):
    left = _one(kinds[0], (0.5,) * 3, (-1.2, 0, 0.5), (2.5, 0, 0))
    right = _one(kinds[1], (0.5,) * 3, (0.4, 0, 0.5))
    paths = simulate(_join(left, right), 13, FRAMES_PER_SECOND)
    first = int(np.argmax(paths.contacts[:, 1, 2]))
    assert first > 0 and (paths.contacts == paths.contacts.swapaxes(1, 2)).all()
    gap = paths.position[1, :, 0] - paths.position[0, :, 0] - 1.0
    assert gap.min() > -0.03 and gap[first - 1] > 0
    assert paths.position[1, -1, 0] > 0.46  # it was pushed
    np.testing.assert_allclose(paths.position[1, :first, 0], 0.4, atol=1e-6)


def test_a_body_that_lands_on_another_stays_above_it():
    low = _one(CYLINDER, (0.6, 0.6, 0.4), (0, 0, 0.4))
    high = _one(BOX, (0.3, 0.3, 0.3), (0.1, 0, 2.0))
    paths = simulate(_join(low, high), 25, FRAMES_PER_SECOND)
    assert paths.contacts[:, 1, 2].any() and not paths.contacts[:, 0, 2].any()
    np.testing.assert_allclose(paths.position[1, -1], [0.1, 0, 1.1], atol=0.02)


def test_contacts_of_a_sample_carry_the_numbers_of_its_labels():
    for index in range(10):
        sample = Scenes(num_frames=6, also=("contacts",))[index]
        contacts, present = sample["contacts"], np.unique(sample["segmentations"])
        assert (contacts == contacts.swapaxes(1, 2)).all()
        others = np.setdiff1d(np.arange(5), present)
        assert not contacts[:, others].any()
    # The lowest pixel of what stands on the ground shows the ground below it.
    still = Scenes(views=True, num_frames=2, also=("contacts",))[0]
    numbers = np.unique(still["segmentations"])[1:]
    assert still["contacts"][:, 0, numbers].all()
