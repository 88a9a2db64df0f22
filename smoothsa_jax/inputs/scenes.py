"""Scenes: clips of textured solids on a ground plane, generated on the fly, in three dimensions.

Spheres, boxes and cylinders fall, roll, slide and collide (see scene_physics); a camera that stands
still or moves around them sees them (see scene_rendering). Labels, boxes, depth, flow and contacts
are exact. A clip depends only on (seed, split, index) and the options. With `views`, nothing moves
but the camera: the frames of a clip are views of one still scene from all around.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from smoothsa_jax.inputs.cameras import look_at
from smoothsa_jax.inputs.procedural import GeneratedClips, appearance
from smoothsa_jax.inputs.scene_physics import BOX, CYLINDER, KINDS, Bodies, simulate
from smoothsa_jax.inputs.scene_rendering import Look, Poses, render
from smoothsa_jax.inputs.sprite_textures import COLOURS, TEXTURES
from smoothsa_jax.parts import check_number

FRAMES_PER_SECOND = 12.0
CELL = 1.65  # m; objects start in cells of a square grid, of 2x2 or 3x3
MOST = 9  # objects

HALF_ANGLE = math.radians(17)  # of the picture, from its center to an edge
DISTANCE = (3.0, 3.3)  # m for each row of the grid, of the camera from the middle of the ground
ELEVATION = (30.0, 48.0)  # degrees above the ground; at these, the horizon is never seen
ORBIT = (1.0, 3.0)  # degrees per frame of a moving camera
FALLING = 0.5  # share of the objects that start in the air
# Of the two colors of a texture, for the ground and for objects: 0 would be plain. Each thing has a
# main color of its own, so that short trainings on statistics of color learn something.
CONTRAST = (0.25, 0.5)

ALSO = ("flow", "depth", "cameras", "contacts")
_TEXTURE_NAMES = tuple(TEXTURES)


class Scene(NamedTuple):
    """All random values of a clip."""

    bodies: Bodies
    look: Look
    camera: "Orbit"


class Orbit(NamedTuple):
    """A camera that looks at a point from a circle around it; angles in radians."""

    target: np.ndarray  # (3,)
    distance: float
    elevation: float
    azimuth: float
    turn: float  # per frame; 0: the camera stands still


def draw_scene(
    rng: np.random.Generator,
    min_objects: int,
    max_objects: int,
    palette_size: int,
    moving: float = 0.0,
    still: bool = False,
) -> Scene:
    """Draw a scene.

    Args:
        rng: the generator.
        min_objects: the smallest number of objects.
        max_objects: the largest.
        palette_size: number of colors.
        moving: the probability that the camera moves.
        still: whether all objects rest on the ground.
    """
    count = int(rng.integers(min_objects, max_objects + 1))
    side = max(2, math.ceil(math.sqrt(max_objects)))  # of the grid that objects start in
    bodies = _draw_bodies(rng, count, side, still)
    number = rng.random((4, count + 1))
    # The texture of the ground is coarser, since it reaches far.
    period = 0.5 + 0.3 * number[1]
    period[0] *= 2
    heading = 2 * np.pi * rng.random()
    axes = _rotations(rng, count + 1)[:, :2]
    turn = 2 * np.pi * number[0, 0]
    axes[0] = [[np.cos(turn), np.sin(turn), 0], [-np.sin(turn), np.cos(turn), 0]]
    look = Look(
        textures=[_TEXTURE_NAMES[int(x * len(_TEXTURE_NAMES))] for x in rng.random(count + 1)],
        frequencies=2 * np.pi / period,
        phases=2 * np.pi * number[2:].T,
        axes=axes,
        colours=_draw_colours(rng, palette_size, count + 1),
        light=np.array([0.6 * np.cos(heading), 0.6 * np.sin(heading), 0.8]),
    )
    camera = rng.random(6)
    turn = math.radians(ORBIT[0] + (ORBIT[1] - ORBIT[0]) * camera[3])
    return Scene(
        bodies,
        look,
        Orbit(
            target=np.array([0.0, 0.0, 0.45]),
            distance=side * _between(DISTANCE, camera[0]),
            elevation=math.radians(_between(ELEVATION, camera[1])),
            azimuth=2 * np.pi * camera[2],
            turn=(turn if camera[4] < moving else 0.0) * (1 if camera[5] < 0.5 else -1),
        ),
    )


def _draw_colours(rng: np.random.Generator, palette_size: int, count: int) -> np.ndarray:
    """Draw a main color for each thing, and one beside it (count, 2, 3), from one random palette.

    Main colors repeat only if there are more things than colors.
    """
    main = np.arange(count) % palette_size
    beside = (main + rng.integers(1, palette_size, count)) % palette_size
    palette = COLOURS[rng.permutation(len(COLOURS))[:palette_size]]
    contrast = np.where(np.arange(count) == 0, *CONTRAST)[:, None]
    first, second = palette[main], palette[beside]
    return np.stack([first, first + contrast * (second - first)], axis=1)


def _draw_bodies(rng: np.random.Generator, count: int, side: int, still: bool) -> Bodies:
    """Every object starts in its own cell of a grid, and moves towards the middle, more or less."""
    number = rng.random((11, count))
    kinds = [KINDS[int(x * len(KINDS))] for x in number[0]]
    half = 0.5 + 0.25 * number[1][:, None] * np.ones(3)
    for k, kind in enumerate(kinds):
        if kind == BOX:  # its footprint lies inside the circle of that radius
            diagonal = math.radians(35 + 20 * number[2, k])
            half[k, :2] *= math.cos(diagonal), math.sin(diagonal)
        if kind in (BOX, CYLINDER):
            half[k, 2] = 0.35 + 0.35 * number[3, k]
    cells = rng.permutation(side * side)[:count]
    room = CELL / 2 - 0.76  # around the middle of a cell, without leaving it
    place = np.stack([cells % side, cells // side], axis=1) - (side - 1) / 2
    place = CELL * place + room * (2 * number[4:6].T - 1)
    height = np.where(number[6] < FALLING, 0.3 + 1.5 * number[7], 0.0)
    speed, turn = 0.5 + 2.0 * number[8], np.pi * (number[9] - 0.5)
    heading = np.arctan2(-place[:, 1], -place[:, 0]) + 0.7 * turn
    spin = rng.normal(size=(count, 3)) * 1.5
    velocity = speed[:, None] * np.stack([np.cos(heading), np.sin(heading), 0 * heading], axis=1)
    resting = height == 0
    # On the ground, spheres start rolling: without slipping.
    spin[resting, 0] = -velocity[resting, 1] / half[resting, 0]
    spin[resting, 1] = velocity[resting, 0] / half[resting, 0]
    if still:
        velocity, spin, height = 0 * velocity, 0 * spin, 0 * height
    return Bodies(
        kinds=kinds,
        half_sizes=half,
        position=np.concatenate([place, (height + half[:, 2])[:, None]], axis=1),
        velocity=velocity,
        angle=2 * np.pi * number[10],
        spin=spin,
    )


def _between(ends: tuple[float, float], share: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * share


def _rotations(rng: np.random.Generator, count: int) -> np.ndarray:
    """Random rotations (count, 3, 3)."""
    return np.linalg.qr(rng.normal(size=(count, 3, 3)))[0]


def orbit_cameras(orbit: Orbit, frames: np.ndarray) -> np.ndarray:
    """Cameras (T, 4, 3) at the times `frames` (T,)."""
    azimuth = orbit.azimuth + orbit.turn * frames
    return _cameras(orbit.target, orbit.distance, np.full(len(frames), orbit.elevation), azimuth)


def _cameras(
    target: np.ndarray, distance: float, elevation: np.ndarray, azimuth: np.ndarray
) -> np.ndarray:
    flat = np.cos(elevation)
    away = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], axis=1)
    return look_at(target + distance * away, target, HALF_ANGLE)


class Scenes(GeneratedClips):
    """A random-access source of scenes.

    Args:
        image_size: height and width in pixels, one number or a pair.
        num_frames: frames per clip, T; with `views`, views of a scene. A longer clip of the same
            index continues a shorter one.
        max_objects: maximum number of objects.
        min_objects: minimum number of objects.
        split: "train", "validation" or "test"; no two share a clip, for any seeds.
        num_samples: length of the split. Clips need no storage, so "train" is long by default.
        seed: seed of the clips. Keep it fixed over training seeds.
        num_slots: number of slots N that boxes are given for; default: enough for every clip.
        boxes: false for models whose slots do not start from boxes: then every slot is valid.
        background_box: whether slot 0 starts from the whole frame, to represent the background.
        palette_size: colors per clip; with fewer colors, color is less informative.
        keep: whether to keep every generated clip in memory, so that later epochs are free.
        moving: share of the clips in which the camera moves around the scene.
        views: whether a clip shows one still scene from `num_frames` random sides.
        also: optional keys of the samples, of ALSO; see smoothsa_jax.inputs. The program gives it.

    Raises:
        UserError: an option is out of range.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 64,
        num_frames: int = 12,
        max_objects: int = 4,
        min_objects: int = 2,
        split: str = "train",
        num_samples: int | None = None,
        seed: int = 0,
        num_slots: int | None = None,
        boxes: bool = True,
        background_box: bool = True,
        palette_size: int = 6,
        keep: bool = False,
        moving: float = 0.0,
        views: bool = False,
        also: tuple[str, ...] = (),
    ):
        check_number("data.moving", moving)
        unknown = sorted(set(also) - set(ALSO))
        super().__init__(
            "scenes",
            image_size=image_size,
            num_frames=num_frames,
            max_objects=max_objects,
            min_objects=min_objects,
            split=split,
            num_samples=num_samples,
            seed=seed,
            num_slots=num_slots,
            boxes=boxes,
            background_box=background_box,
            palette_size=palette_size,
            keep=keep,
            checks=[
                (
                    1 <= min_objects <= max_objects <= MOST,
                    f"data.min_objects is {min_objects} and data.max_objects {max_objects}; choose "
                    f"1 <= min_objects <= max_objects <= {MOST}",
                ),
                (moving <= 1, f"data.moving is {moving}; expected a share, at most 1"),
                (
                    not unknown,
                    f"scenes have no {', '.join(unknown)}; choose some of {', '.join(ALSO)}",
                ),
                (
                    not views or "flow" not in also,
                    "views of a still scene are no video, so they have no flow, which a loss or "
                    "target reads; set data.views=False, or choose another target",
                ),
            ],
        )
        self._scene_options = (min_objects, max_objects, palette_size, moving, views)
        self._max_objects, self._views, self._also = max_objects, views, tuple(also)

    def generate(self, rng: np.random.Generator) -> dict[str, Any]:
        """See `GeneratedClips.generate`."""
        scene = draw_scene(rng, *self._scene_options)
        # One frame more at the start, so that the first one has a flow and contacts.
        paths = simulate(scene.bodies, 1 if self._views else self.num_frames + 1, FRAMES_PER_SECOND)
        if self._views:
            sides = rng.random((self.num_frames, 2))
            low, high = map(math.radians, ELEVATION)
            orbit = scene.camera
            cameras = _cameras(
                orbit.target,
                orbit.distance,
                low + (high - low) * sides[:, 0],
                2 * np.pi * sides[:, 1],
            )
            still = [np.repeat(x, self.num_frames, axis=1) for x in paths[:2]]
            poses, before = Poses(*still, cameras), None
        else:
            cameras = orbit_cameras(scene.camera, np.arange(self.num_frames + 1) - 1.0)
            everything = Poses(paths.position, paths.rotation, cameras)
            poses, before = everything.of_frames(slice(1, None)), None
            if "flow" in self._also:
                before = everything.of_frames(slice(None, -1))
        bodies = scene.bodies
        seen = render(
            bodies.kinds, bodies.half_sizes, scene.look, poses, before, self.height, self.width
        )
        count = len(bodies.kinds)
        optional = {
            "flow": lambda: seen.flow,
            "depth": lambda: seen.depth,
            "cameras": lambda: poses.cameras.astype(np.float32),
            "contacts": lambda: self._contacts(paths.contacts, seen.labels, count),
        }
        more = {name: optional[name]() for name in self._also}
        return {"video": seen.video, "labels": seen.labels, "count": count, **more}

    def _contacts(self, contacts: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
        """Contacts (T, K + 1, K + 1) between the numbers that objects have in the labels."""
        numbered = np.zeros((self.num_frames, *2 * [self._max_objects + 1]), bool)
        table, _ = appearance(labels, count)
        old = np.concatenate([[0], 1 + np.flatnonzero(table[1:])])
        new = table[old]
        if self._views:  # everything stands on the ground
            numbered[:, 0, new[1:]] = numbered[:, new[1:], 0] = True
        else:
            numbered[:, new[:, None], new] = contacts[1:, old[:, None], old]
        return numbered
