"""Two-colour textures, and the colours they are made of.

A texture says how much of its second colour a point shows. Its period is a few pixels, so every
small patch shows both colours and an object is told from its neighbours by the pair, not by a
colour: all objects of a clip and its background draw their pairs from one small palette.
"""

import functools
import itertools
from collections.abc import Callable

import numpy as np

# Far apart in RGB, so that any two make a strong contrast.
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


def stripes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sin(x)


def checker(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 1.6 * np.sin(0.8 * x) * np.sin(0.8 * y)


def dots(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sin(x) + np.sin(y) - 0.4


def waves(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sin(x + 1.4 * np.sin(0.6 * y))


def blots(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Three waves whose directions and lengths do not fit together: irregular spots.
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
    """Colours (3, ...) in 0..255 of the points with texture coordinates `x`, `y` (...).

    Texture coordinates are radians: one period of the texture is 2 pi. `light` (...) in 0..1 is the
    brightness. `colours` is (2, 3).
    """
    share = TEXTURES[kind](x, y)
    share *= SOFTNESS
    share += 0.5
    np.minimum(share, 1.0, out=share)  # two steps: np.clip is slow on small arrays
    np.maximum(share, 0.0, out=share)
    # Channels come first: arithmetic along a last axis of three is slow in NumPy.
    low, high = colours
    painted = np.multiply.outer(high - low, share)
    painted += low.reshape(3, *[1] * share.ndim)
    painted *= light
    return painted


@functools.cache
def _pairs(palette_size: int) -> np.ndarray:
    return np.array(list(itertools.combinations(range(palette_size), 2)))


def draw_pairs(rng: np.random.Generator, palette_size: int, count: int) -> np.ndarray:
    """Pairs of colours (count, 2, 3) out of one random palette.

    The first pair, the background's, is no other's; the others repeat only where `palette_size`
    colours have too few pairs.
    """
    palette = COLOURS[rng.permutation(len(COLOURS))[:palette_size]]
    pairs = _pairs(palette_size)
    pairs = pairs[rng.permutation(len(pairs))]
    return palette[np.concatenate([pairs[:1], np.resize(pairs[1:], (count - 1, 2))])]
