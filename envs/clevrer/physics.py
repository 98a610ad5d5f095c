"""CLEVRER physics: equal solids slide over a plane, slow down and bounce off each other.

Constants and time step are VRDP's, fitted to the CLEVRER videos, and so are frictionless contacts.

Each object's motion between two contacts depends on nothing but itself, so it is computed for the whole horizon at
once; the earliest contact is then looked up, the two objects get their impulse, and only they are computed anew.
An object can therefore change the motion of those alone that it touches, directly or in a chain: all others
stay equal to the last bit when it is removed. A solver that steps all bodies together, as pymunk's does, cannot promise
that, because the order of its contacts depends on which bodies are there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.clevrer.camera import inside_view
from envs.clevrer.scene import Scene, SceneObject
from envs.clevrer.shapes import RADIUS, Pose, Vector, gap, touch

GRAVITY = 9.806
FRICTION = 0.03  # the floor slows every object by this share of gravity,
DRAG = 0.06  # and by this times the square of its speed
SPIN_DECAY = GRAVITY / 2  # rad/s^2
RESTITUTION = 0.8  # of one object; a pair bounces with the product of both
CUBE_INERTIA = (2 * RADIUS) ** 2 / 6  # of mass 1, about the vertical
DT = 1 / 350  # s
SUBSTEPS = 10  # physics steps per video frame
VISIBLE_FRAMES = 128  # of a CLEVRER video
HIDDEN_FRAMES = 52  # simulated after it: 7.2 s instead of 5.12 s, at 25 frames/s
FRAMES = VISIBLE_FRAMES + HIDDEN_FRAMES
# Slower approaches are rounding, not contact.
LEAST_APPROACH = 1e-6
# Impulses of a pair that follow each other within this time are one collision, such as a cube's corner after its side.
SAME_COLLISION = 5 * SUBSTEPS


@dataclass(frozen=True)
class Collision:
    """Two objects that bounce off each other.

    Attributes:
        ids: of the two objects, the lower first.
        frame: the last frame that does not yet show the bounce, or shows it as it happens.
        location: x, y, z of the first contact.
    """

    ids: tuple[int, int]
    frame: int
    location: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What the objects of a scene do in T frames. Angles are about x, y and z.

    Attributes:
        objects: the N objects, as they started.
        location: (T, N, 3) centres.
        orientation: (T, N, 3) rad; solids only turn about z, and the rolling of spheres is not kept.
        velocity: (T, N, 3) per second of simulated time, which has 35 frames.
        angular_velocity: (T, N, 3) rad per second.
        inside: (T, N) whether the camera sees the object (``camera.inside_view``).
        present: (T, N) False from the frame on at which an object was removed.
        collisions: in order of time.
    """

    objects: tuple[SceneObject, ...]
    location: NDArray[np.float64]
    orientation: NDArray[np.float64]
    velocity: NDArray[np.float64]
    angular_velocity: NDArray[np.float64]
    inside: NDArray[np.bool_]
    present: NDArray[np.bool_]
    collisions: tuple[Collision, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """The objects' ids, in order of the objects."""
        return tuple(item.id for item in self.objects)


def simulate(scene: Scene, removed: Mapping[int, int] | None = None, frames: int = FRAMES) -> Trajectory:
    """Run a scene for ``frames`` frames.

    Args:
        scene: the start, frame 0.
        removed: for the id of each object to take out, the frame from which on it is gone. Objects that go at frame 0
            do not appear in the result at all.
        frames: length of the result, which the frames after the visible 128 are part of.

    Raises:
        ValueError: for an id that the scene does not have, a negative frame, or less than one frame.
    """
    gone = dict(removed or {})
    if frames < 1 or min(gone.values(), default=0) < 0:
        raise ValueError(f"frames must be positive and removals at frame 0 or later, got {frames} and {gone}")
    scene.without(gone)  # refuses unknown ids
    scene = scene.without(id for id, frame in gone.items() if frame == 0)
    steps = SUBSTEPS * (frames - 1) + 1
    bodies = [_Body(item, steps, SUBSTEPS * gone.get(item.id, frames)) for item in scene.objects]
    return _record(bodies, _run(bodies), frames)


class _Contact(NamedTuple):
    """Two bodies that meet; the earliest one compares lowest, and the pair breaks ties."""

    step: int
    pair: tuple[int, int]
    normal: Vector
    point: Vector
    approach: float


class _Body:
    """One object's motion over all steps: the past as it was, the future as it will be without another contact."""

    def __init__(self, item: SceneObject, steps: int, until: int) -> None:
        self.item, self.until = item, min(until, steps)
        self.cube = item.shape == "cube"
        # Contacts are frictionless, so nothing turns a disc.
        self.inverse_inertia = 1 / CUBE_INERTIA if self.cube else 0.0
        self.x, self.y, self.angle, self.vx, self.vy, self.spin = np.empty((6, steps))
        self.x[0], self.y[0] = item.position
        self.angle[0] = item.angle
        self.launch(0, *item.velocity, 0.0)

    def launch(self, step: int, vx: float, vy: float, spin: float) -> None:
        """Slide on from where the body is at ``step``, with a new velocity."""
        count = len(self.x) - step
        speed = math.sqrt(vx * vx + vy * vy)
        speeds, travelled = _slow_down(speed, len(self.x))
        ux, uy = (vx / speed, vy / speed) if speed > 0 else (0.0, 0.0)
        self.vx[step:], self.vy[step:] = ux * speeds[:count], uy * speeds[:count]
        self.vx[step], self.vy[step] = vx, vy  # exactly, so that the first frame is enough to start again
        self.x[step + 1 :] = self.x[step] + ux * travelled[: count - 1]
        self.y[step + 1 :] = self.y[step] + uy * travelled[: count - 1]
        self.spin[step:], self.angle[step + 1 :] = spin, self.angle[step]
        if spin:
            self.spin[step:] = math.copysign(1, spin) * np.maximum(abs(spin) - SPIN_DECAY * DT * np.arange(count), 0)
            self.angle[step + 1 :] += DT * np.cumsum(self.spin[step + 1 :])

    def pose(self, steps: int | NDArray[np.intp]) -> Pose:
        return Pose(self.cube, self.x[steps], self.y[steps], self.angle[steps])

    def velocity_at(self, step: int, point: Vector) -> Vector:
        """Of the material at ``point``."""
        spin = self.spin[step]
        return (
            float(self.vx[step] - spin * (point[1] - self.y[step])),
            float(self.vy[step] + spin * (point[0] - self.x[step])),
        )

    def lever(self, contact: _Contact) -> float:
        """Torque about the vertical of a unit force along the contact's normal."""
        rx, ry = contact.point[0] - self.x[contact.step], contact.point[1] - self.y[contact.step]
        return float(rx * contact.normal[1] - ry * contact.normal[0])

    def push(self, contact: _Contact, impulse: float) -> None:
        step, (nx, ny) = contact.step, contact.normal
        self.launch(
            step,
            float(self.vx[step]) + impulse * nx,
            float(self.vy[step]) + impulse * ny,
            float(self.spin[step]) + impulse * self.inverse_inertia * self.lever(contact),
        )


@lru_cache(maxsize=1024)  # without one of its objects, most of a scene goes on as it did
def _slow_down(speed: float, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Speeds (count,) of a free object, starting with ``speed``, and distances (count - 1,) covered from step 1 on."""
    free: list[float] = []
    for _ in range(count):
        if speed <= 0:
            break
        free.append(speed)
        speed -= DT * (FRICTION * GRAVITY + DRAG * speed * speed)
    speeds = np.zeros(count)
    speeds[: len(free)] = free
    return speeds, DT * np.cumsum(speeds[1:])


def speed_before(speed: float, steps: int) -> tuple[float, float]:
    """Speed that slows down to ``speed`` in ``steps`` free steps, and the distance covered in them."""
    distance = 0.0
    for _ in range(steps):
        distance += DT * speed
        speed += DT * (FRICTION * GRAVITY + DRAG * speed * speed)
    return speed, distance


def _run(bodies: list[_Body]) -> list[Collision]:
    """Let the bodies collide, earliest contact first; their motion is final afterwards."""
    upcoming = {pair: _next_contact(bodies, pair, 0) for pair in combinations(range(len(bodies)), 2)}
    collisions: list[Collision] = []
    last_touch: dict[tuple[int, int], int] = {}
    while contact := min((c for c in upcoming.values() if c), default=None):
        step, pair = contact.step, contact.pair
        a, b = (bodies[index] for index in pair)
        mobility = 2.0 + a.inverse_inertia * a.lever(contact) ** 2 + b.inverse_inertia * b.lever(contact) ** 2
        impulse = (1 + RESTITUTION**2) * contact.approach / mobility
        a.push(contact, -impulse)
        b.push(contact, impulse)
        if pair not in last_touch or step - last_touch[pair] > SAME_COLLISION:
            ids = sorted((a.item.id, b.item.id))
            collisions.append(Collision((ids[0], ids[1]), step // SUBSTEPS, (*contact.point, RADIUS)))
        last_touch[pair] = step
        for other in upcoming:
            if set(other) & set(pair):
                upcoming[other] = _next_contact(bodies, other, step)
    return collisions


def _next_contact(bodies: list[_Body], pair: tuple[int, int], start: int) -> _Contact | None:
    """The first step, from ``start`` on, at which two bodies touch and approach each other."""
    a, b = (bodies[index] for index in pair)
    until = min(a.until, b.until)
    # Most of the time the two are too far apart for any shape and angle.
    far = (a.x[start:until] - b.x[start:until]) ** 2 + (a.y[start:until] - b.y[start:until]) ** 2 > 8 * RADIUS**2
    near = start + np.flatnonzero(~far)
    for step in near[gap(a.pose(near), b.pose(near)) < 0]:
        normal, point = touch(a.pose(step), b.pose(step))
        va, vb = a.velocity_at(step, point), b.velocity_at(step, point)
        approach = (va[0] - vb[0]) * normal[0] + (va[1] - vb[1]) * normal[1]
        if approach > LEAST_APPROACH:
            return _Contact(int(step), pair, normal, point, approach)
    return None


def _record(bodies: list[_Body], collisions: list[Collision], frames: int) -> Trajectory:
    shape = (frames, len(bodies), 3)
    location, orientation, velocity, angular_velocity = (np.zeros(shape) for _ in range(4))
    location[..., 2] = RADIUS
    present = np.zeros(shape[:2], dtype=bool)
    for index, body in enumerate(bodies):
        location[:, index, 0], location[:, index, 1] = body.x[::SUBSTEPS], body.y[::SUBSTEPS]
        velocity[:, index, 0], velocity[:, index, 1] = body.vx[::SUBSTEPS], body.vy[::SUBSTEPS]
        orientation[:, index, 2] = body.angle[::SUBSTEPS]
        angular_velocity[:, index, 2] = body.spin[::SUBSTEPS]
        present[:, index] = np.arange(frames) * SUBSTEPS < body.until
    return Trajectory(
        tuple(body.item for body in bodies),
        location,
        orientation,
        velocity,
        angular_velocity,
        inside_view(location) & present,
        present,
        tuple(collisions),
    )
