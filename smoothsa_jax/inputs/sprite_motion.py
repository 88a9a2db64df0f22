"""Paths of the sprites: their centers, rotation angles and radii.

All are closed-form functions of the frame number, so the first frames of a clip do not depend on
its length.
"""

import math
from typing import NamedTuple

import numpy as np


class Motion(NamedTuple):
    """Motion of n sprites; lengths in pixels, times in frames, angles in radians."""

    start: np.ndarray  # (n, 2) center in frame 0, as x, y
    velocity: np.ndarray  # (n, 2)
    sway: np.ndarray  # (n, 2) amplitude of the center's swing about its straight path
    sway_rate: np.ndarray  # (n,)
    leaves: np.ndarray  # (n,) true: leaves the frame; false: bounces at its border
    angle: np.ndarray  # (n,)
    spin: np.ndarray  # (n,)
    radius: np.ndarray  # (n,)
    growth: np.ndarray  # (n,) largest relative change of the radius
    growth_rate: np.ndarray  # (n,)


def bounce(position: np.ndarray, low: float, high: np.ndarray) -> np.ndarray:
    """Fold positions on a line into [low, high], like a ball bouncing between two walls."""
    width = high - low
    return high - np.abs(np.mod(position - low, 2 * width) - width)


def paths(
    motion: Motion, num_frames: int, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centers (n, T, 2) as x, y, angles (n, T) and radii (n, T) in frames 0..num_frames - 1."""
    time = np.arange(num_frames)
    swing = np.sin(motion.sway_rate[:, None] * time)[..., None]
    centre = motion.start[:, None] + motion.velocity[:, None] * time[:, None]
    centre = centre + motion.sway[:, None] * swing
    margin = 0.08 * min(height, width)
    size = np.array([width, height])
    centre = np.where(motion.leaves[:, None, None], centre, bounce(centre, margin, size - margin))
    angle = motion.angle[:, None] + motion.spin[:, None] * time
    radius = motion.radius[:, None] * (
        1 + motion.growth[:, None] * np.sin(motion.growth_rate[:, None] * time)
    )
    return centre, angle, radius


# The ranges of uniformly drawn values, one row of numbers each. Lengths are in pixels of a frame of
# 64 and scale with the frame; directions and angles are in full turns.
RANGES = {
    "column": (0.2, 0.8),  # place inside the sprite's cell
    "row": (0.2, 0.8),
    "speed": (0.5, 2.5),
    "heading": (0, 1),
    "sway": (0, 3),
    "sway_heading": (0, 1),
    "sway_rate": (0.05, 0.1),
    "leaves": (0, 1),
    "angle": (0, 1),
    "spin": (-0.02, 0.02),
    "radius": (10, 16),
    "growth": (-0.2, 0.2),
    "growth_rate": (0.04, 0.08),
}
LEAVING = 0.3  # share of the sprites that do not bounce
_LOW = np.array([[low] for low, _ in RANGES.values()])
_WIDTH = np.array([[high - low] for low, high in RANGES.values()])


def draw_motion(rng: np.random.Generator, count: int, height: int, width: int) -> Motion:
    """Draw random motions of `count` sprites in a frame of `height` x `width` pixels.

    Every sprite starts in its own cell of a regular grid, so that none hides another in frame 0.
    """
    drawn = dict(zip(RANGES, _LOW + _WIDTH * rng.random((len(RANGES), count)), strict=True))
    side = max(3, math.ceil(math.sqrt(count)))
    cells = rng.permutation(side * side)[:count]
    unit = min(height, width) / 64
    turn = 2 * np.pi
    start = (cells % side + drawn["column"], cells // side + drawn["row"])
    return Motion(
        start=np.stack(start, axis=1) * (np.array([width, height]) / side),
        velocity=unit * _vectors(drawn["speed"], drawn["heading"]),
        sway=unit * _vectors(drawn["sway"], drawn["sway_heading"]),
        sway_rate=turn * drawn["sway_rate"],
        leaves=drawn["leaves"] < LEAVING,
        angle=turn * drawn["angle"],
        spin=turn * drawn["spin"],
        radius=unit * drawn["radius"],
        growth=drawn["growth"],
        growth_rate=turn * drawn["growth_rate"],
    )


def crowded(
    rng: np.random.Generator, motion: Motion, share: float, height: int, width: int
) -> Motion:
    """Shrink the grid in which sprites start by a share, and move it anywhere in the frame."""
    size = np.array([width, height])
    corner = share * size * rng.random(2)
    return motion._replace(start=corner + (1 - share) * motion.start)


def _vectors(length: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Vectors (n, 2) with the given lengths and directions (in full turns)."""
    angle = 2 * np.pi * turns
    return np.stack([length * np.cos(angle), length * np.sin(angle)], axis=1)
