"""Two-color textures and their colors.

A texture gives the share of its second color at each point. Its period is a few pixels, so every
small patch shows both colors. Objects differ in their pair of colors rather than in one color: all
objects of a clip and its background draw their pairs from one small palette.
"""

import functools
import itertools
from collections.abc import Callable

import numpy as np

# Far apart in RGB, so that any two contrast strongly.
COLOURS = np.array(
    [
        [28, 28, 36],
        [240, 238, 230],
        [214, 44, 40],
        [40, 158, 66],
        [44, 70, 208],
        [240, 206, 48],
        [206, 66, 196],
        [56, 196, 214],
    ],
    dtype=np.float32,
)
COLOUR_NAMES = ("black", "white", "red", "green", "blue", "yellow", "purple", "cyan")


def stripes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sin(x)


def checker(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 1.6 * np.sin(0.8 * x) * np.sin(0.8 * y)


def dots(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sin(x) + np.sin(y) - 0.4


def waves(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sin(x + 1.4 * np.sin(0.6 * y))


def blots(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Three waves with incommensurate directions and lengths make irregular spots.
    return np.sin(x) + np.sin(0.62 * y - 0.53 * x) + np.sin(0.9 * y + 0.31 * x)


TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "stripes": stripes,
    "checker": checker,
    "dots": dots,
    "waves": waves,
    "blots": blots,
}
SOFTNESS = 1.5


def paint(
    kind: str, x: np.ndarray, y: np.ndarray, light: np.ndarray, colours: np.ndarray
) -> np.ndarray:
    """Paint the points with texture coordinates `x`, `y` (...): colors (3, ...) in 0..255.

    Texture coordinates are in radians; the period of a texture is 2 pi. `light` (...) in 0..1 is
    the brightness. `colours` is (2, 3).
    """
    share = TEXTURES[kind](x, y)
    share *= SOFTNESS
    share += 0.5
    np.minimum(share, 1.0, out=share)  # two steps: np.clip is slow on small arrays
    np.maximum(share, 0.0, out=share)
    # Channels first, because NumPy is slow along a last axis of size three.
    low, high = colours
    painted = np.multiply.outer(high - low, share)
    painted += low.reshape(3, *[1] * share.ndim)
    painted *= light
    return painted


@functools.cache
def _pairs(palette_size: int) -> np.ndarray:
    return np.array(list(itertools.combinations(range(palette_size), 2)))


def draw_pairs(rng: np.random.Generator, palette_size: int, count: int) -> np.ndarray:
    """Draw pairs of colors (count, 2, 3) from one random palette.

    The first pair is the background's and is unique. The other pairs repeat only if `palette_size`
    colors have too few pairs.
    """
    palette = COLOURS[rng.permutation(len(COLOURS))[:palette_size]]
    pairs = _pairs(palette_size)
    pairs = pairs[rng.permutation(len(pairs))]
    return palette[np.concatenate([pairs[:1], np.resize(pairs[1:], (count - 1, 2))])]
