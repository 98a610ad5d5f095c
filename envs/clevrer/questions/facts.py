"""What is known of a scene when questions about it are answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from envs.clevrer.events import CausalGraph, Event, list_events
from envs.clevrer.physics import VISIBLE_FRAMES, Collision, Trajectory

# Objects faster than this, in annotated units per second, are moving. With this number, and a video that ends with its
# last frame, the released answers follow from the released annotations: https://github.com/JugalGajjar/CausalSight.
MOVING = 0.02

Pairs = frozenset[frozenset[int]]


@dataclass(frozen=True)
class Object:
    """An object's id and its attributes (color, material, shape)."""

    id: int
    attributes: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Facts:
    """All that a program can ask of a scene.

    Attributes:
        objects: those that the video shows.
        events: of the video, in order of time.
        visible: for each object's id (frames,) bool, whether the camera sees it.
        moving: for each object's id (frames,) bool.
        unseen: events after the video; None if unknown, as in the released files.
        without: for the ids of objects the pairs that collide when the object is removed.
    """

    objects: tuple[Object, ...]
    events: tuple[Event, ...]
    visible: Mapping[int, NDArray[np.bool_]]
    moving: Mapping[int, NDArray[np.bool_]]
    unseen: tuple[Event, ...] | None = None
    without: Mapping[int, Pairs] = field(default_factory=dict)

    @classmethod
    def of(cls, trajectory: Trajectory, frames: int = VISIBLE_FRAMES) -> Facts:
        """The facts of a simulation or of an annotation (``annotation.read_trajectory``); ``without`` is empty.

        Args:
            trajectory: the scene; whatever it holds beyond ``frames`` is unseen.
            frames: length of the video.
        """
        trajectory = replace(trajectory, collisions=shown_collisions(trajectory))
        events = list_events(trajectory, len(trajectory.inside))
        columns = {item.id: column for column, item in enumerate(trajectory.objects)}
        inside = trajectory.inside[:frames]
        moving = np.linalg.norm(trajectory.velocity[:frames, :, :2], axis=-1) > MOVING
        return cls(
            tuple(
                Object(item.id, {"color": item.colour, "material": item.material, "shape": item.shape})
                for item in trajectory.objects
                if inside[:, columns[item.id]].any()
            ),
            tuple(event for event in events if event.frame < frames),
            {id: inside[:, column] for id, column in columns.items()},
            {id: moving[:, column] for id, column in columns.items()},
            tuple(event for event in events if event.frame >= frames) if len(trajectory.inside) > frames else None,
        )

    @property
    def frames(self) -> int:
        """Length of the video."""
        return max(len(frames) for frames in self.visible.values())

    @cached_property
    def graph(self) -> CausalGraph:
        """The causal graph of ``events``."""
        return CausalGraph.of(self.events)


def shown_collisions(trajectory: Trajectory) -> tuple[Collision, ...]:
    """The collisions that questions count, in order of time.

    As in the released answers, one that the camera does not see is left out, and one of which it sees a single object
    happens when both are inside the picture.
    """
    columns = {id: column for column, id in enumerate(trajectory.ids)}
    shown = []
    for collision in trajectory.collisions:
        inside = trajectory.inside[collision.frame :, [columns[id] for id in collision.ids]]
        both = np.flatnonzero(inside.all(axis=1))
        if len(inside) and inside[0].any() and len(both):
            shown.append(replace(collision, frame=collision.frame + int(both[0])))
    return tuple(sorted(shown, key=lambda collision: collision.frame))
