"""Rigid physics of the scenes: bodies fall, bounce, roll, slide, spin and collide on the ground.

Spheres turn freely. Boxes and cylinders stay upright and turn about the vertical axis only, as if
their moments of inertia about the horizontal axes were infinite; so nothing topples. The world has
meters, seconds and kilograms; the third coordinate is up, and the ground is at height 0.

Every substep integrates gravity, then applies one impulse per contact after the other, then moves.
An impulse has a normal part with restitution and a part of Coulomb friction, and neither can add
energy. A contact acts as soon as the next move would close its gap, so bodies do not sink into one
another.

The bodies are few and the substeps many, so plain numbers are faster here than NumPy's arrays.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

GRAVITY = 9.81  # m/s^2
SUBSTEPS = 8  # of a frame
ROUNDS = 3  # over all contacts of a substep
RESTITUTION = 0.5
FRICTION = 0.4
SLOW = 0.4  # m/s; bodies that meet more slowly do not bounce

SPHERE, BOX, CYLINDER = "sphere", "box", "cylinder"
KINDS = (SPHERE, BOX, CYLINDER)

Vector = tuple[float, float, float]


class Bodies(NamedTuple):
    """How n bodies start; lengths in meters, angles in radians."""

    kinds: list[str]  # n, of KINDS
    half_sizes: np.ndarray  # (n, 3); of a sphere (r, r, r), of a cylinder (r, r, half its height)
    position: np.ndarray  # (n, 3) of the center
    velocity: np.ndarray  # (n, 3) per second
    angle: np.ndarray  # (n,) about the vertical axis
    spin: np.ndarray  # (n, 3) angular velocity; of boxes and cylinders, only the third counts


class Paths(NamedTuple):
    """Where n bodies are in T frames."""

    position: Float[np.ndarray, "n T 3"]
    rotation: Float[np.ndarray, "n T 3 3"]  # body to world
    contacts: Bool[np.ndarray, "T n+1 n+1"]  # touched since the frame before; 0 is the ground
    energy: Float[np.ndarray, " T"]  # kinetic and potential, of all bodies together


class _Body:
    """One body, as plain numbers. The ground is a body without inverse mass."""

    __slots__ = ("extent", "half", "inverse_inertia", "inverse_mass", "kind", "p", "q", "v", "w")

    def __init__(self, kind: str, half: np.ndarray, p: Vector, v: Vector, angle: float, w: Vector):
        self.kind, self.half = kind, tuple(map(float, half))
        x, y, z = self.half
        self.p, self.v = p, v
        self.q = (math.cos(angle / 2), 0.0, 0.0, math.sin(angle / 2))
        if kind == SPHERE:
            mass, inertia = 4 / 3 * math.pi * x**3, 0.4 * x * x
            self.w, self.extent = w, x
            self.inverse_inertia = (1 / (mass * inertia),) * 3
        else:
            volume, inertia = (8 * x * y * z, (x * x + y * y) / 3)
            if kind == CYLINDER:
                volume, inertia = 2 * math.pi * x * x * z, x * x / 2
            mass = volume
            self.w, self.extent = (0.0, 0.0, w[2]), math.sqrt(x * x + y * y + z * z)
            self.inverse_inertia = (0.0, 0.0, 1 / (mass * inertia))
        self.inverse_mass = 1 / mass

    @property
    def yaw(self) -> tuple[float, float]:
        """Cosine and sine of the angle about the vertical axis, of a body that stays upright."""
        c, s = self.q[0], self.q[3]
        return c * c - s * s, 2 * c * s

    def energy(self) -> float:
        squared = sum(w * w / i for w, i in zip(self.w, self.inverse_inertia, strict=True) if i)
        speed = sum(v * v for v in self.v)
        return ((speed / 2) + GRAVITY * self.p[2]) / self.inverse_mass + squared / 2

    def move(self, step: float) -> None:
        (px, py, pz), (vx, vy, vz) = self.p, self.v
        self.p = (px + step * vx, py + step * vy, pz + step * vz)
        x, y, z = self.w
        speed = math.sqrt(x * x + y * y + z * z)
        if speed > 1e-9:
            c, s = math.cos(speed * step / 2), math.sin(speed * step / 2) / speed
            x, y, z, (a, b, e, f) = x * s, y * s, z * s, self.q
            self.q = (
                c * a - x * b - y * e - z * f,
                c * b + x * a + y * f - z * e,
                c * e + y * a + z * b - x * f,
                c * f + z * a + x * e - y * b,
            )


def simulate(bodies: Bodies, num_frames: int, frames_per_second: float) -> Paths:
    """Simulate `num_frames` frames; the first one is how the bodies start."""
    state = [
        _Body(kind, *values)
        for kind, *values in zip(
            bodies.kinds,
            bodies.half_sizes,
            map(tuple, bodies.position.tolist()),
            map(tuple, bodies.velocity.tolist()),
            bodies.angle.tolist(),
            map(tuple, bodies.spin.tolist()),
            strict=True,
        )
    ]
    count, step = len(state), 1 / (frames_per_second * SUBSTEPS)
    contacts = np.zeros((num_frames, count + 1, count + 1), bool)
    positions, turns, energy = [], [], []
    for frame in range(num_frames):
        if frame:
            for _ in range(SUBSTEPS):
                for a, b in _substep(state, step):
                    contacts[frame, a, b] = contacts[frame, b, a] = True
        positions.append([body.p for body in state])
        turns.append([body.q for body in state])
        energy.append(sum(body.energy() for body in state))
    position = np.array(positions).reshape(num_frames, count, 3).transpose(1, 0, 2)
    turn = np.array(turns).reshape(num_frames, count, 4).transpose(1, 0, 2)
    return Paths(position, _matrices(turn), contacts, np.array(energy))


def _substep(state: list[_Body], step: float) -> set[tuple[int, int]]:
    """Move all bodies by one substep; return the pairs that touched, with 0 for the ground."""
    for body in state:
        body.v = (body.v[0], body.v[1], body.v[2] - GRAVITY * step)
    near = _near(state, step)
    touched = set()
    for _ in range(ROUNDS):
        for k, body in enumerate(state):
            if _meet_ground(body, step):
                touched.add((0, k + 1))
        for a, b, gap, normal, point in near:
            if _meet(state[a], state[b], gap, normal, point, step):
                touched.add((a + 1, b + 1))
    for k, body in enumerate(state):
        if (0, k + 1) in touched and body.kind != SPHERE:
            _slow_spin(body, step)
        body.move(step)
        x, y, z = body.p
        if z < body.half[2]:  # rounding, or a push of several bodies at once
            body.p = (x, y, body.half[2])
    return touched


def _near(state: list[_Body], step: float) -> list[tuple[int, int, float, Vector, Vector]]:
    """The pairs that may touch in a substep, with gap, normal (towards the first) and point."""
    found = []
    for a, first in enumerate(state):
        for b in range(a + 1, len(state)):
            second = state[b]
            apart = math.dist(first.p, second.p) - first.extent - second.extent
            if apart < step * (math.hypot(*first.v) + math.hypot(*second.v)) + 1e-3:
                found.append((a, b, *_nearest(first, second)))
    return found


def _nearest(a: _Body, b: _Body) -> tuple[float, Vector, Vector]:
    """Gap between two bodies, the normal towards `a`, and the point of `b` that is nearest."""
    if a.kind == SPHERE and b.kind == SPHERE:
        away = _minus(a.p, b.p)
        distance = math.hypot(*away) or 1e-9
        normal = _times(1 / distance, away)
        return distance - a.half[0] - b.half[0], normal, _plus(b.p, _times(b.half[0], normal))
    if a.kind == SPHERE:
        return _sphere_and_upright(a, b)
    if b.kind == SPHERE:
        gap, normal, point = _sphere_and_upright(b, a)
        return gap, _times(-1.0, normal), point
    return _upright_and_upright(a, b)


def _sphere_and_upright(sphere: _Body, body: _Body) -> tuple[float, Vector, Vector]:
    (cos, sin), (hx, hy, hz) = body.yaw, body.half
    dx, dy, dz = _minus(sphere.p, body.p)
    x, y = cos * dx + sin * dy, cos * dy - sin * dx
    if body.kind == BOX:
        qx, qy = min(max(x, -hx), hx), min(max(y, -hy), hy)
    else:
        shrink = min(1.0, hx / (math.hypot(x, y) or 1e-9))
        qx, qy = x * shrink, y * shrink
    qz = min(max(dz, -hz), hz)
    ax, ay, az = x - qx, y - qy, dz - qz
    distance = math.sqrt(ax * ax + ay * ay + az * az)
    if distance > 1e-6:
        gap, ax, ay, az = distance - sphere.half[0], ax / distance, ay / distance, az / distance
    else:  # the center is inside: leave upwards
        gap, (ax, ay, az) = dz - hz - sphere.half[0], (0.0, 0.0, 1.0)
    normal = (cos * ax - sin * ay, sin * ax + cos * ay, az)
    return gap, normal, _plus(body.p, (cos * qx - sin * qy, sin * qx + cos * qy, qz))


def _upright_and_upright(a: _Body, b: _Body) -> tuple[float, Vector, Vector]:
    """Two bodies that stand upright touch with their sides, or one stands on the other."""
    above = a.p[2] - b.p[2]
    vertical = abs(above) - a.half[2] - b.half[2]
    horizontal, (nx, ny), (x, y) = _footprints(a, b)
    if horizontal > vertical:
        low = max(a.p[2] - a.half[2], b.p[2] - b.half[2])
        high = min(a.p[2] + a.half[2], b.p[2] + b.half[2])
        return horizontal, (nx, ny, 0.0), (x, y, (low + high) / 2)
    upper, lower = (a, b) if above > 0 else (b, a)
    point = (upper.p[0], upper.p[1], lower.p[2] + lower.half[2])
    return vertical, (0.0, 0.0, 1.0 if above > 0 else -1.0), point


Plane = tuple[float, float]


def _footprints(a: _Body, b: _Body) -> tuple[float, Plane, Plane]:
    """Gap, normal and point of two footprints, each a circle or a rectangle."""
    if a.kind == BOX and b.kind == BOX:
        return _rectangles(a, b)
    if a.kind == BOX:
        gap, (nx, ny), point = _footprints(b, a)
        return gap, (-nx, -ny), point
    dx, dy = a.p[0] - b.p[0], a.p[1] - b.p[1]
    if b.kind == CYLINDER:
        distance = math.hypot(dx, dy) or 1e-9
        nx, ny, r = dx / distance, dy / distance, b.half[0]
        return distance - a.half[0] - r, (nx, ny), (b.p[0] + r * nx, b.p[1] + r * ny)
    (cos, sin), (hx, hy, _) = b.yaw, b.half
    x, y = cos * dx + sin * dy, cos * dy - sin * dx
    qx, qy = min(max(x, -hx), hx), min(max(y, -hy), hy)
    distance = math.hypot(x - qx, y - qy)
    if distance > 1e-6:
        gap, nx, ny = distance - a.half[0], (x - qx) / distance, (y - qy) / distance
    else:  # the center is inside: leave by the nearest side
        if hx - abs(x) < hy - abs(y):
            gap, nx, ny, qx = abs(x) - hx - a.half[0], math.copysign(1.0, x), 0.0, hx
        else:
            gap, nx, ny, qy = abs(y) - hy - a.half[0], 0.0, math.copysign(1.0, y), hy
    normal = (cos * nx - sin * ny, sin * nx + cos * ny)
    return gap, normal, (b.p[0] + cos * qx - sin * qy, b.p[1] + sin * qx + cos * qy)


def _corners(body: _Body) -> list[Plane]:
    (cos, sin), (hx, hy, _), (px, py, _) = body.yaw, body.half, body.p
    signs = ((1, 1), (1, -1), (-1, 1), (-1, -1))
    return [(px + cos * hx * i - sin * hy * j, py + sin * hx * i + cos * hy * j) for i, j in signs]


def _rectangles(a: _Body, b: _Body) -> tuple[float, Plane, Plane]:
    """Two rectangles touch along the side whose direction separates them most."""
    best: tuple[float, Plane, Plane] = (-math.inf, (0.0, 0.0), (0.0, 0.0))
    for face, other, sign in ((b, a, 1.0), (a, b, -1.0)):
        cos, sin = face.yaw
        corners = _corners(other)
        for nx, ny, half in ((cos, sin, face.half[0]), (-sin, cos, face.half[1])):
            if (other.p[0] - face.p[0]) * nx + (other.p[1] - face.p[1]) * ny < 0:
                nx, ny = -nx, -ny
            heights = [(x - face.p[0]) * nx + (y - face.p[1]) * ny for x, y in corners]
            lowest = min(heights)
            if (gap := lowest - half) > best[0]:
                # Two corners touch where sides are parallel: their middle.
                at = [c for c, h in zip(corners, heights, strict=True) if h < lowest + 1e-3]
                point = (sum(x for x, _ in at) / len(at), sum(y for _, y in at) / len(at))
                best = (gap, (sign * nx, sign * ny), point)
    return best


# --------------------------------------------------------------------------------------- impulses


def _meet_ground(body: _Body, step: float) -> bool:
    bottom = body.p[2] - body.half[2]
    return _meet(body, None, bottom, (0.0, 0.0, 1.0), (body.p[0], body.p[1], 0.0), step)


def _meet(a: _Body, b: _Body | None, gap: float, n: Vector, p: Vector, step: float) -> bool:
    """Apply the impulse of one contact, if the next move would close its gap.

    Args:
        a: the body that the normal points to.
        b: the other one; None: the ground.
        gap: between them.
        n: the normal.
        p: the point of contact.
        step: the time to the next positions.
    """
    arm_a = _minus(p, a.p)
    arm_b = _minus(p, b.p) if b else (0.0, 0.0, 0.0)
    approach = _dot(_relative(a, b, arm_a, arm_b), n)
    allowed = -max(gap, 0.0) / step
    if approach >= allowed:
        return False
    wanted = allowed if approach > -SLOW else -RESTITUTION * approach
    normal = (wanted - approach) / _yielding(a, b, arm_a, arm_b, n)
    _push(a, b, arm_a, arm_b, _times(normal, n))
    velocity = _relative(a, b, arm_a, arm_b)
    along = _minus(velocity, _times(_dot(velocity, n), n))
    speed = math.hypot(*along)
    if speed > 1e-9:
        direction = _times(-1 / speed, along)
        stop = speed / _yielding(a, b, arm_a, arm_b, direction)
        _push(a, b, arm_a, arm_b, _times(min(stop, FRICTION * normal), direction))
    return True


def _relative(a: _Body, b: _Body | None, arm_a: Vector, arm_b: Vector) -> Vector:
    """The velocity of `a` at the point of contact, as `b` sees it."""
    velocity = _plus(a.v, _cross(a.w, arm_a))
    return velocity if b is None else _minus(velocity, _plus(b.v, _cross(b.w, arm_b)))


def _yielding(a: _Body, b: _Body | None, arm_a: Vector, arm_b: Vector, n: Vector) -> float:
    """The change of relative velocity along `n` by a unit impulse along `n`."""
    total = 0.0
    for body, arm in ((a, arm_a), (b, arm_b)):
        if body is not None:
            x, y, z = _cross(arm, n)
            i, j, k = body.inverse_inertia
            total += body.inverse_mass + i * x * x + j * y * y + k * z * z
    return total


def _push(a: _Body, b: _Body | None, arm_a: Vector, arm_b: Vector, impulse: Vector) -> None:
    for body, arm, sign in ((a, arm_a, 1.0), (b, arm_b, -1.0)):
        if body is not None:
            body.v = _plus(body.v, _times(sign * body.inverse_mass, impulse))
            x, y, z = _cross(arm, impulse)
            i, j, k = body.inverse_inertia
            u, v, w = body.w
            body.w = (u + sign * i * x, v + sign * j * y, w + sign * k * z)


def _slow_spin(body: _Body, step: float) -> None:
    """Friction of a base against the ground, for the spin: that of a disc of the same inertia."""
    radius = math.sqrt(2 * body.inverse_mass / body.inverse_inertia[2])
    loss = step * FRICTION * GRAVITY * 4 / (3 * radius)
    spin = body.w[2]
    body.w = (0.0, 0.0, math.copysign(max(abs(spin) - loss, 0.0), spin))


# ---------------------------------------------------------------------------------------- vectors


def _plus(a: Vector, b: Vector) -> Vector:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def _minus(a: Vector, b: Vector) -> Vector:
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


def _times(factor: float, a: Vector) -> Vector:
    return factor * a[0], factor * a[1], factor * a[2]


def _dot(a: Vector, b: Vector) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _cross(a: Vector, b: Vector) -> Vector:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def _matrices(turn: Float[np.ndarray, "n T 4"]) -> Float[np.ndarray, "n T 3 3"]:
    """Rotation matrices of quaternions."""
    turn = turn / np.linalg.norm(turn, axis=-1, keepdims=True)
    a, b, c, d = np.moveaxis(turn, -1, 0)
    rows = [
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a - b * b + c * c - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a - b * b - c * c + d * d],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)
