"""What a scene starts from: its objects, checked once and with one clear error each."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations
from numbers import Integral, Real

import numpy as np

from envs.clevrer.shapes import RADIUS, Pose, gap

SHAPES = ("cube", "sphere", "cylinder")
COLOURS = ("gray", "red", "blue", "green", "brown", "cyan", "purple", "yellow")
MATERIALS = ("metal", "rubber")
MAX_OBJECTS = 6
MAX_DISTANCE = 50.0  # of an initial coordinate from the origin
MAX_SPEED = 10.0  # per second


@dataclass(frozen=True)
class SceneObject:
    """One solid and how it starts. All are equally large: discs of radius 0.2, and squares of side 0.4, from above.

    x points to the camera, y to the right of the picture; the origin is the middle of the floor.

    Attributes:
        id: 0 to 5, kept when other objects are removed.
        shape, colour, material: out of ``SHAPES``, ``COLOURS``, ``MATERIALS``; together they name the object.
        position: x, y at frame 0.
        velocity: x, y per second at frame 0.
        angle: rad about the vertical at frame 0.

    Raises:
        ValueError: for a value outside of these, or one that is not finite.
    """

    id: int
    shape: str
    colour: str
    material: str
    position: tuple[float, float]
    velocity: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0

    def __post_init__(self) -> None:
        id: object = self.id
        if isinstance(id, bool) or not isinstance(id, Integral) or not 0 <= int(id) < MAX_OBJECTS:
            raise ValueError(f"object id must be a whole number from 0 to {MAX_OBJECTS - 1}, got {id!r}")
        object.__setattr__(self, "id", int(id))
        for name, known in (("shape", SHAPES), ("colour", COLOURS), ("material", MATERIALS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"unknown {name} {getattr(self, name)!r} of object {self.id}; expected one of {list(known)}"
                )
        object.__setattr__(self, "position", self._numbers("position", self.position, 2, MAX_DISTANCE))
        object.__setattr__(self, "velocity", self._numbers("velocity", self.velocity, 2, math.inf))
        if math.hypot(*self.velocity) > MAX_SPEED:
            raise ValueError(f"object {self.id} must not be faster than {MAX_SPEED:g}, got velocity {self.velocity}")
        object.__setattr__(self, "angle", self._numbers("angle", (self.angle,), 1, math.inf)[0])

    def _numbers(self, name: str, values: object, count: int, limit: float) -> tuple[float, ...]:
        given = list(values) if isinstance(values, Iterable) else []
        if len(given) != count or not all(
            isinstance(v, Real) and math.isfinite(v) and abs(float(v)) <= limit for v in given
        ):
            bound = "" if limit == math.inf else f", each from -{limit:g} to {limit:g}"
            raise ValueError(f"{name} of object {self.id} must be {count} finite number(s){bound}, got {values!r}")
        return tuple(float(v) for v in given)

    @property
    def phrase(self) -> str:
        """The object's name, such as "red metal cube"."""
        return f"{self.colour} {self.material} {self.shape}"

    @property
    def pose(self) -> Pose:
        """Where the object starts."""
        return Pose(self.shape == "cube", *self.position, self.angle)


@dataclass(frozen=True)
class Scene:
    """Up to six objects that do not overlap and differ in shape, colour or material.

    A scene holds all that a simulation starts from: equal scenes give equal videos.

    Raises:
        ValueError: for too many objects, repeated ids or names, or overlapping objects.
    """

    objects: tuple[SceneObject, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "objects", tuple(self.objects))
        if not all(isinstance(item, SceneObject) for item in self.objects):
            raise ValueError(f"a scene is made of SceneObject, got {self.objects!r}")
        if len(self.objects) > MAX_OBJECTS:
            raise ValueError(f"a scene has at most {MAX_OBJECTS} objects, got {len(self.objects)}")
        for a, b in combinations(self.objects, 2):
            if a.id == b.id:
                raise ValueError(f"two objects have the id {a.id}: give each its own")
            if a.phrase == b.phrase:
                raise ValueError(f"objects {a.id} and {b.id} are both a {a.phrase}: change one of them")
            if gap(a.pose, b.pose) < 0:
                raise ValueError(
                    f"objects {a.id} and {b.id} overlap at {a.position} and {b.position} (radius {RADIUS}): "
                    "move them apart"
                )

    @property
    def ids(self) -> tuple[int, ...]:
        """The objects' ids, in order of the objects."""
        return tuple(item.id for item in self.objects)

    def without(self, ids: Iterable[int]) -> Scene:
        """The same scene without these objects; raises ValueError for an id that is not there."""
        gone = set(ids)
        absent = sorted(gone.difference(self.ids), key=str)
        if absent:
            raise ValueError(f"cannot remove objects {absent}: the scene has {list(self.ids)}")
        return Scene(tuple(item for item in self.objects if item.id not in gone))

    def perturbed(self, rng: np.random.Generator, scale: float = 1e-3) -> Scene:
        """A scene that starts almost alike, for telling what of a video hangs on a hair.

        Args:
            rng: where the draws come from.
            scale: standard deviation of the change of each coordinate, as a share of the objects' radius, and of
                each velocity, as a share of itself.

        Raises:
            ValueError: objects that touch came to overlap.
        """
        return Scene(
            tuple(
                replace(
                    item,
                    position=tuple(rng.normal(item.position, scale * RADIUS)),
                    velocity=tuple(rng.normal(1.0, scale, 2) * item.velocity),
                )
                for item in self.objects
            )
        )
