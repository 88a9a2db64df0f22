"""Outlines of the sprites, as signed distances.

Every function takes local coordinates `u`, `v`: float32 arrays of one shape, in units of the
object's radius, with the origin at its center. It returns the distance to the outline in the same
units, negative inside and positive outside. Away from the outline, only the sign must be correct.
No shape extends further than 1 from its center.
"""

import math
from collections.abc import Callable

import numpy as np


def disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.sqrt(u * u + v * v) - 1.0


def ellipse(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    minor = 0.62
    stretched = v / minor
    return (np.sqrt(u * u + stretched * stretched) - 1.0) * minor


def square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - 0.7


def triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.maximum(0.8660254 * u + 0.5 * v, -0.8660254 * u + 0.5 * v), -v) - 0.5


_STAR_NORMALS = [(math.cos(k * 0.4 * math.pi), math.sin(k * 0.4 * math.pi)) for k in range(5)]


def star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    # A point is in a pentagram if at least four of five half-planes contain it, so the second
    # largest distance counts. The arms are wide; blunt tips keep them within the radius.
    largest = second = np.full_like(u, -np.inf)
    for x, y in _STAR_NORMALS:
        plane = x * u + y * v
        second = np.maximum(second, np.minimum(largest, plane))
        largest = np.maximum(largest, plane)
    return np.maximum(second - 0.36, np.sqrt(u * u + v * v) - 1.0)


def ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.abs(np.sqrt(u * u + v * v) - 0.68) - 0.32


def cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    across, along = np.abs(u), np.abs(v)
    length, breadth = 0.92, 0.38
    return np.minimum(
        np.maximum(across - length, along - breadth), np.maximum(across - breadth, along - length)
    )


SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": disc,
    "ellipse": ellipse,
    "square": square,
    "triangle": triangle,
    "star": star,
    "ring": ring,
    "cross": cross,
}
