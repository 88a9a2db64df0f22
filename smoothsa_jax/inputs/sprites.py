"""Sprites: clips of textured shapes over a textured background, generated on the fly.

A clip depends only on (seed, split, index) and the options. Shapes move, bounce or leave, sway,
rotate, change size and occlude each other; the background drifts. Labels and boxes are exact. Color
alone does not separate the objects (see sprite_textures). Nothing is downloaded.

Four options make clips harder: objects that crowd together, objects in the colors of what they
hide, a camera that shakes, and light that moves. Without them, clips are the same bit for bit as
before there were such options.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from smoothsa_jax.inputs.procedural import GeneratedClips
from smoothsa_jax.inputs.sprite_motion import Motion, crowded, draw_motion, paths
from smoothsa_jax.inputs.sprite_shapes import SHAPES
from smoothsa_jax.inputs.sprite_textures import TEXTURES, draw_pairs, paint

# The far side of an object or the background is darker by up to this fraction.
SHADE = 0.1

_SHAPE_NAMES = tuple(SHAPES)
_TEXTURE_NAMES = tuple(TEXTURES)


class Hardship(NamedTuple):
    """What makes a clip harder, in closed form, so that a longer clip continues a shorter one."""

    shake: np.ndarray  # (2, 2) amplitudes of two swings of the camera, as x, y in pixels
    shake_rate: np.ndarray  # (2,) radians per frame
    shake_phase: np.ndarray  # (2,) radians
    dark: float  # share of the light that is missing where it is darkest, 0..1
    wave: np.ndarray  # (3,) of the light: radians per column, row and frame
    wave_phase: float  # radians
    tint: np.ndarray  # (3,) share of the light that each color channel lacks


class Scene(NamedTuple):
    """All random values of a clip; sprite i is in front of sprite i - 1."""

    motion: Motion  # of n sprites
    shapes: list[str]  # n
    textures: list[str]  # 1 + n, the background first
    frequencies: np.ndarray  # (1 + n,) radians per pixel
    phases: np.ndarray  # (1 + n, 2) radians
    colours: np.ndarray  # (1 + n, 2, 3)
    shade: np.ndarray  # (1 + n,) how much darker the far side is, 0..1
    drift: np.ndarray  # (2,) of the background, pixels per frame
    tilt: float  # of the background's texture, radians
    hardship: Hardship | None = None


def camera_shift(scene: Scene, num_frames: int) -> np.ndarray:
    """Return how far the picture is shifted in each frame: (T, 2), x and y in pixels."""
    if (hard := scene.hardship) is None:
        return np.zeros((num_frames, 2))
    time = np.arange(num_frames)[:, None]
    return np.sin(hard.shake_rate * time + hard.shake_phase) @ hard.shake


def draw_scene(
    rng: np.random.Generator,
    height: int,
    width: int,
    min_objects: int,
    max_objects: int,
    palette_size: int,
    crowding: float = 0.0,
    shared_colours: float = 0.0,
    jitter: float = 0.0,
    lighting: float = 0.0,
) -> Scene:
    """Draw all random values of a clip; see `Sprites` for the options."""
    count = int(rng.integers(min_objects, max_objects + 1))
    number = rng.random((6, count + 1))
    kinds = (number[:2] * [[len(_TEXTURE_NAMES)], [len(_SHAPE_NAMES)]]).astype(int)
    heading, tilt = 2 * np.pi * rng.random(2)
    speed = (0.2 + 0.6 * rng.random()) * min(height, width) / 64
    scene = Scene(
        motion=draw_motion(rng, count, height, width),
        shapes=[_SHAPE_NAMES[i] for i in kinds[1, 1:]],
        textures=[_TEXTURE_NAMES[i] for i in kinds[0]],
        frequencies=(2 * np.pi / (4.5 + 3.0 * number[2])).astype(np.float32),
        phases=(2 * np.pi * number[3:5].T).astype(np.float32),
        colours=draw_pairs(rng, palette_size, count + 1),
        shade=(SHADE * number[5]).astype(np.float32),
        drift=speed * np.array([np.cos(heading), np.sin(heading)]),
        tilt=tilt,
    )
    if crowding:
        scene = scene._replace(motion=crowded(rng, scene.motion, crowding, height, width))
    if shared_colours:
        scene = _share_colours(rng, scene, shared_colours)
    if jitter or lighting:
        hardship = _draw_hardship(rng, jitter * min(height, width) / 64, lighting, height, width)
        scene = scene._replace(hardship=hardship)
    return scene


def _share_colours(rng: np.random.Generator, scene: Scene, share: float) -> Scene:
    """Give some sprites the colors of something behind them, and another texture than that has."""
    textures, colours = list(scene.textures), scene.colours.copy()
    for i in range(1, len(textures)):
        takes, which, step = rng.random(3)
        if takes >= share:
            continue
        behind = int(which * i)  # 0: the background
        colours[i] = colours[behind]
        if textures[i] == textures[behind]:
            place = _TEXTURE_NAMES.index(textures[i]) + 1 + int(step * (len(_TEXTURE_NAMES) - 1))
            textures[i] = _TEXTURE_NAMES[place % len(_TEXTURE_NAMES)]
    return scene._replace(textures=textures, colours=colours)


def _draw_hardship(
    rng: np.random.Generator, jitter: float, lighting: float, height: int, width: int
) -> Hardship:
    number = rng.random(14)
    heading, light_heading = 2 * np.pi * number[:2], 2 * np.pi * number[2]
    length = 2 * np.pi * (0.5 + number[3])  # of the light's wave: half to one and a half frames
    return Hardship(
        shake=jitter / 2 * np.stack([np.cos(heading), np.sin(heading)], axis=1),
        # Periods of two to six frames: nobody holds a camera so badly, but few frames show it.
        shake_rate=2 * np.pi / (2 + 4 * number[4:6]),
        shake_phase=2 * np.pi * number[6:8],
        dark=lighting,
        wave=np.array(
            [
                length * np.cos(light_heading) / width,
                length * np.sin(light_heading) / height,
                0.6 * (2 * number[8] - 1),
            ]
        ),
        wave_phase=2 * np.pi * number[9],
        tint=lighting / 2 * number[10:13],
    )


def _lit(hard: Hardship, canvas: np.ndarray, num_frames: int, height: int, width: int) -> None:
    """Light the colors (3, T * H * W) of a clip, in place."""
    columns, rows, frames = (
        rate * np.arange(count)
        for rate, count in zip(hard.wave, (width, height, num_frames), strict=True)
    )
    angle = columns + rows[:, None] + frames[:, None, None] + hard.wave_phase  # (T, h, w)
    light = (1 - hard.dark * (0.5 + 0.5 * np.sin(angle))).astype(np.float32).ravel()
    canvas *= light
    canvas *= (1 - hard.tint).astype(np.float32)[:, None]


def _turn(
    x: np.ndarray, y: np.ndarray, cos: np.ndarray, sin: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rotated coordinates, each (T, h, w), of the grid with columns x (T, w) and rows y (T, h).

    `cos` and `sin` are (T, 1) and may include a scale.
    """
    x, y, cos, sin = (array.astype(np.float32) for array in (x, y, cos, sin))
    # A rotated coordinate is a sum of terms in x and y, so it needs one addition per pixel.
    along = (cos * x)[:, None, :] + (sin * y)[:, :, None]
    across = (cos * y)[:, :, None] - (sin * x)[:, None, :]
    return along, across


def _background(scene: Scene, num_frames: int, height: int, width: int) -> np.ndarray:
    """Paint the background: colors (3, T * H * W)."""
    shift = scene.drift * np.arange(num_frames)[:, None]
    if scene.hardship is not None:
        shift = shift + camera_shift(scene, num_frames)
    x, y = np.arange(width) - shift[:, :1], np.arange(height) - shift[:, 1:]
    cos = np.full((num_frames, 1), scene.frequencies[0] * np.cos(scene.tilt))
    sin = np.full((num_frames, 1), scene.frequencies[0] * np.sin(scene.tilt))
    along, across = _turn(x, y, cos, sin)
    along += scene.phases[0, 0]
    across += scene.phases[0, 1]
    # The light is fixed to the frame; the texture drifts under it.
    light = 1 - scene.shade[0] * np.linspace(0, 1, width, dtype=np.float32)
    return paint(scene.textures[0], along, across, light, scene.colours[0]).reshape(3, -1)


class Silhouette(NamedTuple):
    """The pixels of a sprite that lie in the frame, up to half a pixel beyond its outline.

    What other sprites hide counts as well. K pixels of all frames.
    """

    pixels: np.ndarray  # (K,) indices into the T * H * W pixels of the clip
    u: np.ndarray  # (K,) local coordinates, in units of the radius
    v: np.ndarray  # (K,)
    distance: np.ndarray  # (K,) to the outline, in pixels; negative inside


def silhouettes(scene: Scene, num_frames: int, height: int, width: int) -> Iterator[Silhouette]:
    """Yield the silhouette of each sprite, from back to front."""
    centres, angles, radii = paths(scene.motion, num_frames, height, width)
    if scene.hardship is not None:
        centres = centres + camera_shift(scene, num_frames)
    corners = np.floor(centres).astype(np.intp)
    cos, sin = np.cos(angles) / radii, np.sin(angles) / radii
    radii = radii.astype(np.float32)
    frame_start = np.arange(num_frames) * (height * width)
    for i, shape in enumerate(scene.shapes):
        # Work in a window around the sprite, of the same size in every frame.
        reach = math.ceil(radii[i].max()) + 2
        window = np.arange(-reach, reach + 1)
        columns, rows = corners[i, :, :1] + window, corners[i, :, 1:] + window
        x, y = columns - centres[i, :, :1], rows - centres[i, :, 1:]
        u, v = _turn(x, y, cos[i, :, None], sin[i, :, None])
        distance = SHAPES[shape](u, v)
        distance *= radii[i, :, None, None]  # in pixels
        covered = distance < 0.5
        covered &= ((columns >= 0) & (columns < width))[:, None, :]
        covered &= ((rows >= 0) & (rows < height))[:, :, None]
        covered = np.flatnonzero(covered)
        pixels = ((frame_start[:, None] + rows * width)[:, :, None] + columns[:, None, :]).take(
            covered
        )
        yield Silhouette(pixels, u.take(covered), v.take(covered), distance.take(covered))


def render(scene: Scene, num_frames: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Render video (T, H, W, 3) uint8 and labels (T, H, W) uint8: 0 background, i + 1 sprite i."""
    canvas = _background(scene, num_frames, height, width)
    labels = np.zeros(num_frames * height * width, dtype=np.uint8)
    for i, (pixels, u, v, distance) in enumerate(silhouettes(scene, num_frames, height, width)):
        # The texture is fixed to the sprite: it rotates and grows with it.
        grain = scene.frequencies[i + 1] * np.float32(scene.motion.radius[i])
        colours = paint(
            scene.textures[i + 1],
            grain * u + scene.phases[i + 1, 0],
            grain * v + scene.phases[i + 1, 1],
            1 - scene.shade[i + 1] * (0.5 + 0.5 * u),
            scene.colours[i + 1],
        )
        # Pixels at the outline are blended in proportion to their coverage.
        cover = np.minimum(0.5 - distance, 1.0)
        under = canvas.take(pixels, axis=1)
        colours -= under
        colours *= cover
        colours += under
        for channel, colour in zip(canvas, colours, strict=True):
            channel[pixels] = colour
        labels[pixels[cover >= 0.5]] = i + 1
    if scene.hardship is not None:
        _lit(scene.hardship, canvas, num_frames, height, width)
    canvas += 0.5
    video = np.empty((canvas.shape[1], 3), dtype=np.uint8)
    for channel, values in enumerate(canvas):
        video[:, channel] = values
    return (
        video.reshape(num_frames, height, width, 3),
        labels.reshape(num_frames, height, width),
    )


class Sprites(GeneratedClips):
    """A random-access source of sprite clips.

    Args:
        image_size: height and width in pixels, one number or a pair.
        num_frames: frames per clip, T. A longer clip of the same index continues a shorter one.
        max_objects: maximum number of objects.
        min_objects: minimum number of objects.
        split: "train", "validation" or "test"; no two share a clip, for any seeds.
        num_samples: length of the split. Clips need no storage, so "train" is long by default.
        seed: seed of the clips. Keep it fixed over training seeds, so that the test clips stay the
            same.
        num_slots: number of slots N that boxes are given for; default: enough for every clip.
        boxes: false for models that start from Gaussian queries: then every slot is valid.
        background_box: whether slot 0 starts from the whole frame, to represent the background.
        palette_size: colors per clip; with fewer colors, color is less informative.
        crowding: 0: objects start apart, in cells of a grid over the frame; above: that grid is
            smaller by this share and lies anywhere in the frame, so that objects hide each other;
            1: all start at one place.
        shared_colours: share of the objects that have the colors of something behind them, and
            another texture; 0 to 1.
        jitter: how far a shaking camera shifts the picture at most, in pixels of a frame of 64.
        lighting: share of the light that is missing where it is darkest, 0 to 1; it moves over the
            frame, and has a color.
        keep: whether to keep every generated clip in memory, so that later epochs are free.

    Raises:
        UserError: an option is out of range.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 64,
        num_frames: int = 4,
        max_objects: int = 5,
        min_objects: int = 3,
        split: str = "train",
        num_samples: int | None = None,
        seed: int = 0,
        num_slots: int | None = None,
        boxes: bool = True,
        background_box: bool = True,
        palette_size: int = 4,
        crowding: float = 0.0,
        shared_colours: float = 0.0,
        jitter: float = 0.0,
        lighting: float = 0.0,
        keep: bool = False,
    ):
        super().__init__(
            "sprites",
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
                    2 <= min_objects <= max_objects <= 254,
                    f"data.min_objects is {min_objects} and data.max_objects {max_objects}; choose "
                    "2 <= min_objects <= max_objects <= 254",
                ),
                *(
                    (0 <= value <= 1, f"data.{name} is {value}; choose a share from 0 to 1")
                    for name, value in (
                        ("crowding", crowding),
                        ("shared_colours", shared_colours),
                        ("lighting", lighting),
                    )
                ),
                (0 <= jitter <= 16, f"data.jitter is {jitter}; choose 0 to 16 pixels"),
            ],
        )
        self._scene_options = (
            *(min_objects, max_objects, palette_size),
            *(crowding, shared_colours, jitter, lighting),
        )

    def generate(self, rng: np.random.Generator) -> dict[str, Any]:
        scene = self._draw(rng)
        video, labels = render(scene, self.num_frames, self.height, self.width)
        return {"video": video, "labels": labels, "count": len(scene.shapes)}

    def scene(self, index: int) -> Scene:
        """Return the random values of clip `index`."""
        return self._draw(self.random_numbers(index))

    def _draw(self, rng: np.random.Generator) -> Scene:
        return draw_scene(rng, self.height, self.width, *self._scene_options)
