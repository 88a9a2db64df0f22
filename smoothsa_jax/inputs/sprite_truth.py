"""What is true of a clip of sprites: where each object is, what it looks like, what hides it."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from smoothsa_jax.inputs.sprite_motion import paths
from smoothsa_jax.inputs.sprite_shapes import SHAPES
from smoothsa_jax.inputs.sprite_textures import COLOURS, TEXTURES
from smoothsa_jax.inputs.sprites import Scene, camera_shift, silhouettes

SHOWN = 20  # pixels; an object that shows fewer is not seen, or is gone

_SHAPE_NAMES = list(SHAPES)
_TEXTURE_NAMES = list(TEXTURES)


class Truth(NamedTuple):
    """The truth of a clip of n objects; object i is in front of object i - 1.

    An amodal mask is what an object would show if no other were in front of it. It ends at the
    border of the frame.
    """

    shapes: Int[np.ndarray, " n"]  # places in SHAPES
    textures: Int[np.ndarray, " n"]  # places in TEXTURES
    colours: Int[np.ndarray, "n 2"]  # places in COLOURS
    centres: Float[np.ndarray, "n T 2"]  # x, y in pixels; the first pixel is at 0, 0
    radii: Float[np.ndarray, "n T"]  # in pixels
    amodal: Bool[np.ndarray, "n T H W"]
    labels: UInt8[np.ndarray, "T H W"]  # what is visible: 0 background, i + 1 object i

    def visible(self) -> Bool[np.ndarray, "n T H W"]:
        """Return the visible masks: what each object shows."""
        return self.labels == np.arange(1, len(self.shapes) + 1)[:, None, None, None]

    def visible_pixels(self) -> Int[np.ndarray, "n T"]:
        frames, count = len(self.labels), len(self.shapes) + 1
        cells = self.labels.reshape(frames, -1) + count * np.arange(frames)[:, None]
        found = np.bincount(cells.ravel(), minlength=frames * count)
        return found.reshape(frames, count).T[1:]

    def seen(self, num_frames: int) -> Bool[np.ndarray, " n"]:
        """Return which objects are seen: they show enough in each of the first frames."""
        return (self.visible_pixels()[:, :num_frames] >= SHOWN).all(axis=1)

    def named(self) -> Bool[np.ndarray, " n"]:
        """Return which objects can be named by their shape: no other object has it."""
        return np.bincount(self.shapes, minlength=len(SHAPES))[self.shapes] == 1

    def gone(self) -> Bool[np.ndarray, "n T"]:
        """Return where almost nothing of an object lies in the frame, hidden or not."""
        return self.amodal.sum(axis=(2, 3)) < SHOWN

    def touching(self) -> Bool[np.ndarray, "n n T"]:
        """Return where the amodal masks of two objects share a pixel; false with themselves."""
        count, frames = self.amodal.shape[:2]
        found = np.zeros((count, count, frames), bool)
        for i in range(count):
            for j in range(i):
                both = self.amodal[i] & self.amodal[j]
                found[i, j] = found[j, i] = both.reshape(frames, -1).any(axis=1)
        return found


def looks(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the shapes (n,), textures (n,) and colors (n, 2) of the objects, as in `Truth`."""
    same = (scene.colours[1:, :, None] == COLOURS).all(axis=-1)  # (n, 2, colors)
    return (
        np.array([_SHAPE_NAMES.index(name) for name in scene.shapes]),
        np.array([_TEXTURE_NAMES.index(name) for name in scene.textures[1:]]),
        same.argmax(axis=-1),
    )


def truth_of(scene: Scene, num_frames: int, height: int, width: int) -> Truth:
    """Compute the truth of the first frames of a clip, without its colors."""
    count = len(scene.shapes)
    centres, _, radii = paths(scene.motion, num_frames, height, width)
    centres = centres + camera_shift(scene, num_frames)
    amodal = np.zeros((count, num_frames * height * width), bool)
    labels = np.zeros(num_frames * height * width, np.uint8)
    for i, found in enumerate(silhouettes(scene, num_frames, height, width)):
        inside = found.pixels[0.5 - found.distance >= 0.5]  # as labels of the video have it
        amodal[i, inside] = True
        labels[inside] = i + 1
    return Truth(
        *looks(scene),
        centres=centres,
        radii=radii,
        amodal=amodal.reshape(count, num_frames, height, width),
        labels=labels.reshape(num_frames, height, width),
    )
