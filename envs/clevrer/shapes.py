"""Outlines of the three solids seen from above, and where two of them touch.

Spheres and cylinders are discs, cubes are squares; all are equally large. Each function looks at two objects alone,
so nothing that happens elsewhere can change its result in the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RADIUS = 0.2  # of spheres and cylinders, half the side of cubes, and height of every centre above the floor
INSIDE = 1e-9  # by this much a corner may lie outside and still count as touching

Vector = tuple[float, float]


class Pose(NamedTuple):
    """Where one object is; numbers, or arrays (K,) of them over time."""

    cube: bool
    x: float | NDArray[np.float64]
    y: float | NDArray[np.float64]
    angle: float | NDArray[np.float64]


def gap(a: Pose, b: Pose) -> NDArray[np.float64]:
    """Separation (...) of two outlines, negative where they overlap.

    It is a distance except between two cubes, and for those the largest separation along a side of either, which
    has the sign of the distance.
    """
    if a.cube and b.cube:
        turn = np.subtract(b.angle, a.angle)
        reach = RADIUS * (1 + np.abs(np.cos(turn)) + np.abs(np.sin(turn)))
        sides = np.stack([*_seen_from(a, b), *_seen_from(b, a)])
        return np.asarray(np.abs(sides).max(axis=0) - reach)
    if a.cube or b.cube:
        cube, disc = (a, b) if a.cube else (b, a)
        across, along = (np.abs(side) - RADIUS for side in _seen_from(cube, disc))
        outside = np.sqrt(np.maximum(across, 0) ** 2 + np.maximum(along, 0) ** 2)
        return np.asarray(outside + np.minimum(np.maximum(across, along), 0) - RADIUS)
    return np.asarray(np.sqrt(np.square(np.subtract(b.x, a.x)) + np.square(np.subtract(b.y, a.y))) - 2 * RADIUS)


def touch(a: Pose, b: Pose) -> tuple[Vector, Vector]:
    """Unit normal from ``a`` to ``b`` and the point of contact (x, y) of two outlines that overlap slightly.

    The poses must hold numbers, not arrays.
    """
    if a.cube and b.cube:
        return _touch_of_cubes(a, b)
    if b.cube:
        (nx, ny), point = touch(b, a)
        return (-nx, -ny), point
    if a.cube:
        u, v = (float(side) for side in _seen_from(a, b))
        point = _to_world(a, min(max(u, -RADIUS), RADIUS), min(max(v, -RADIUS), RADIUS))
    else:
        point = (float(a.x), float(a.y))
    nx, ny = float(b.x) - point[0], float(b.y) - point[1]
    length = math.sqrt(nx * nx + ny * ny)
    normal = (nx / length, ny / length)
    return normal, point if a.cube else (point[0] + RADIUS * normal[0], point[1] + RADIUS * normal[1])


def _touch_of_cubes(a: Pose, b: Pose) -> tuple[Vector, Vector]:
    # The side that separates the two most is the one that touches.
    sides = [
        (abs(float(side)), float(cube.angle) + axis * math.pi / 2)
        for cube, other in ((a, b), (b, a))
        for axis, side in enumerate(_seen_from(cube, other))
    ]
    angle = max(sides)[1]
    nx, ny = math.cos(angle), math.sin(angle)
    if nx * (float(b.x) - float(a.x)) + ny * (float(b.y) - float(a.y)) < 0:
        nx, ny = -nx, -ny
    corners = [*_corners_inside(a, b), *_corners_inside(b, a)]
    if not corners:  # two crossed bars, which equal squares form only when deep inside each other
        corners = [(float(a.x), float(a.y)), (float(b.x), float(b.y))]
    return (nx, ny), (sum(x for x, _ in corners) / len(corners), sum(y for _, y in corners) / len(corners))


def _seen_from(a: Pose, b: Pose) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre of ``b`` in the frame of ``a``."""
    c, s = np.cos(a.angle), np.sin(a.angle)
    dx, dy = np.subtract(b.x, a.x), np.subtract(b.y, a.y)
    return c * dx + s * dy, c * dy - s * dx


def _to_world(a: Pose, u: float, v: float) -> Vector:
    c, s = math.cos(float(a.angle)), math.sin(float(a.angle))
    return float(a.x) + c * u - s * v, float(a.y) + s * u + c * v


def _corners_inside(a: Pose, b: Pose) -> Iterator[Vector]:
    """Corners of ``a`` that lie inside ``b``."""
    for u, v in ((-RADIUS, -RADIUS), (RADIUS, -RADIUS), (RADIUS, RADIUS), (-RADIUS, RADIUS)):
        x, y = _to_world(a, u, v)
        if max(abs(float(side)) for side in _seen_from(b, Pose(True, x, y, 0.0))) <= RADIUS + INSIDE:
            yield x, y
