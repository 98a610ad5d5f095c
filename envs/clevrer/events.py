"""What happens in a scene, and what causes what: as CLEVRER defines it, and by trying.

CLEVRER's causal graph goes by order in time alone. What really depends on an object is what changes without it;
``influences`` finds that out by running the physics again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.clevrer.physics import VISIBLE_FRAMES, Trajectory, simulate
from envs.clevrer.scene import Scene
from envs.clevrer.shapes import RADIUS

INFLUENCE = RADIUS / 10  # world units; what moves another object by more influences it
KINDS = ("in", "collision", "out")  # in the order in which events of one frame are listed


@dataclass(frozen=True)
class Event:
    """Something that happens.

    Attributes:
        kind: out of ``KINDS``.
        objects: ids of the object that enters or leaves the picture, or of the two that collide.
        frame: the first frame in which the object is inside or outside; for a collision see ``physics.Collision``.
    """

    kind: str
    objects: frozenset[int]
    frame: int


def list_events(trajectory: Trajectory, frames: int = VISIBLE_FRAMES) -> tuple[Event, ...]:
    """The events of the first ``frames`` frames, in order of time.

    An object that is inside at frame 0 does not enter, and one that is removed does not leave.
    """
    inside, present = trajectory.inside[:frames], trajectory.present[:frames]
    entered, left = inside[1:] & ~inside[:-1], ~inside[1:] & inside[:-1] & present[1:]
    found = [Event("collision", frozenset(c.ids), c.frame) for c in trajectory.collisions if c.frame < frames]
    for kind, changes in (("in", entered), ("out", left)):
        found += [Event(kind, frozenset((trajectory.ids[index],)), int(row) + 1) for row, index in np.argwhere(changes)]
    return tuple(sorted(found, key=lambda event: (event.frame, KINDS.index(event.kind), sorted(event.objects))))


@dataclass(frozen=True)
class CausalGraph:
    """CLEVRER's causal graph.

    An event is caused by each of its objects for which it is the first event, and by the previous event on each other.

    Attributes:
        events: in order of time.
        objects: for each event the ids of the objects that cause it.
        parents: for each event the places, in ``events``, of the events that cause it.
    """

    events: tuple[Event, ...]
    objects: tuple[frozenset[int], ...]
    parents: tuple[frozenset[int], ...]

    @classmethod
    def of(cls, events: Sequence[Event]) -> CausalGraph:
        """The graph of events in order of time."""
        latest: dict[int, int] = {}
        objects, parents = [], []
        for place, event in enumerate(events):
            objects.append(event.objects - latest.keys())
            parents.append(frozenset(latest[id] for id in event.objects if id in latest))
            latest |= dict.fromkeys(event.objects, place)
        return cls(tuple(events), tuple(objects), tuple(parents))

    def ancestors(self, place: int) -> frozenset[int]:
        """Places of all events that lead to the one at ``place``."""
        return self.parents[place].union(*(self.ancestors(parent) for parent in self.parents[place]))


def shifts(scene: Scene, frames: int = VISIBLE_FRAMES) -> NDArray[np.float64]:
    """How far (N, N) the removal of each object, from the start, moves each other one within the camera's view.

    Entry i, j is the largest distance, over those of the first ``frames`` frames in which the camera sees object j with
    or without object i, between where j is with and without i; 0 where i is j.
    """
    count = len(scene.objects)
    factual = simulate(scene, frames=frames)
    moved = np.zeros((count, count))
    for index, id in enumerate(scene.ids):
        others = np.arange(count) != index
        without = simulate(scene, {id: 0}, frames)
        distance = np.linalg.norm(without.location - factual.location[:, others], axis=-1)
        moved[index, others] = np.where(without.inside | factual.inside[:, others], distance, 0).max(axis=0)
    return moved


def influences(scene: Scene, threshold: float = INFLUENCE, frames: int = VISIBLE_FRAMES) -> NDArray[np.bool_]:
    """Whether (N, N) removing object i moves object j by more than ``threshold``; see ``shifts``."""
    return np.asarray(shifts(scene, frames) > threshold)
