"""Where rays meet the shapes of the scenes, in the coordinates of the shape.

Every shape is convex and centered at the origin, and takes its half sizes (x, y, z). Rays start at
`origin`, three arrays that broadcast against the `direction`, three float32 arrays of one shape. A
shape returns how far along its direction each ray enters and leaves it, and a function that gives
the outward normal at the points of entry of chosen rays. A ray that enters behind where it leaves
misses the shape.
"""

from collections.abc import Callable

import numpy as np

Three = tuple[np.ndarray, np.ndarray, np.ndarray]
Normal = Callable[[np.ndarray], Three]  # indices of rays, flat -> the normal there
Hit = tuple[np.ndarray, np.ndarray, Normal]
_TINY = np.float32(1e-9)


def sphere(origin: Three, direction: Three, half: np.ndarray) -> Hit:
    near, far = _round(origin, direction, half[0])

    def normal(which: np.ndarray) -> Three:
        return tuple(p / half[0] for p in points_at(origin, direction, near, which))

    return near, far, normal


def box(origin: Three, direction: Three, half: np.ndarray) -> Hit:
    slabs = [_slab(*of_axis) for of_axis in zip(origin, direction, half, strict=True)]
    near = np.maximum(np.maximum(slabs[0][0], slabs[1][0]), slabs[2][0])
    far = np.minimum(np.minimum(slabs[0][1], slabs[1][1]), slabs[2][1])

    def normal(which: np.ndarray) -> Three:
        entered = near.take(which)
        sides = [(slab[0].take(which) == entered) for slab in slabs]
        sides[1] &= ~sides[0]
        sides[2] &= ~(sides[0] | sides[1])
        return tuple(
            -np.sign(d.take(which)) * side for d, side in zip(direction, sides, strict=True)
        )

    return near, far, normal


def cylinder(origin: Three, direction: Three, half: np.ndarray) -> Hit:
    flat_near, flat_far = _slab(origin[2], direction[2], half[2])
    side_near, side_far = _round(origin[:2], direction[:2], half[0])
    near, far = np.maximum(flat_near, side_near), np.minimum(flat_far, side_far)

    def normal(which: np.ndarray) -> Three:
        on_side = side_near.take(which) > flat_near.take(which)
        x, y, _ = points_at(origin, direction, near, which)
        up = -np.sign(direction[2].take(which))
        return on_side * x / half[0], on_side * y / half[0], ~on_side * up

    return near, far, normal


SHAPES: dict[str, Callable[[Three, Three, np.ndarray], Hit]] = {
    "sphere": sphere,
    "box": box,
    "cylinder": cylinder,
}


def points_at(origin: Three, direction: Three, distance: np.ndarray, which: np.ndarray) -> Three:
    """The points at a distance along the rays `which`, as flat indices."""
    far, shape = distance.take(which), distance.shape
    return tuple(
        np.broadcast_to(o, shape).take(which) + far * d.take(which)
        for o, d in zip(origin, direction, strict=True)
    )


def _round(
    origin: tuple[np.ndarray, ...], direction: tuple[np.ndarray, ...], radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """Entry and exit of all points within `radius` of the origin, in the given coordinates."""
    a = sum(d * d for d in direction) + _TINY
    b = sum(o * d for o, d in zip(origin, direction, strict=True))
    c = sum(o * o for o in origin) - radius * radius
    square = b * b - a * c
    misses = square < 0
    root = np.sqrt(np.where(misses, 0, square))
    near, far = (-b - root) / a, (-b + root) / a
    far[misses] = -np.inf
    return near, far


def _slab(origin: np.ndarray, direction: np.ndarray, half: float) -> tuple[np.ndarray, np.ndarray]:
    """Entry and exit of all points whose coordinate is within `half` of 0."""
    inverse = 1 / np.where(np.abs(direction) < _TINY, _TINY, direction)
    middle, width = -origin * inverse, np.abs(half * inverse)
    return middle - width, middle + width
