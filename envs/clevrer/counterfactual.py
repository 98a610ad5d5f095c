"""What happens in a scene without each of its objects: by running the physics again, kept in a file of arrays."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.clevrer.annotation import STATE, trajectory_of
from envs.clevrer.physics import FRAMES, Collision, Trajectory, simulate
from envs.clevrer.questions.facts import Pairs, shown_collisions
from envs.clevrer.scene import Scene
from envs.files import atomic


@dataclass(frozen=True, eq=False)
class Counterfactuals:
    """The courses that a scene takes without one of its objects, each taken away before the first frame.

    In an ``npz`` file the course without object 2 is the arrays ``2/location``, ``2/orientation``, ``2/velocity`` and
    ``2/angular_velocity`` (T, N, 3) float64 and ``2/inside`` (T, N) bool, as in ``Trajectory``; ``2/ids`` (N,) and
    ``2/names`` (N, 3), the objects' shapes, colours and materials; and ``2/collisions`` (C, 6) with rows of two ids,
    frame, x, y, z. ``window`` () is the attribute below.

    Attributes:
        without: for the id of each object the trajectory of the others.
        window: collisions before this frame count when questions are answered.
    """

    without: Mapping[int, Trajectory]
    window: int = FRAMES

    @classmethod
    def of(cls, scene: Scene, window: int = FRAMES) -> Counterfactuals:
        """Those of each object of a scene, hidden frames included."""
        return cls({id: simulate(scene, {id: 0}) for id in scene.ids}, window)

    @property
    def pairs(self) -> dict[int, Pairs]:
        """The pairs that collide without each object, as questions count them."""
        return {
            removed: frozenset(frozenset(c.ids) for c in shown_collisions(trajectory) if c.frame < self.window)
            for removed, trajectory in self.without.items()
        }

    def save(self, path: Path) -> None:
        """Write them to a file."""
        arrays = {
            f"{removed}/{name}": array
            for removed, trajectory in self.without.items()
            for name, array in _arrays(trajectory).items()
        }
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, window=np.array(self.window), **arrays)

    @classmethod
    def load(cls, path: Path) -> Counterfactuals:
        """Read them from a file.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it cannot be read.
        """
        without: dict[int, dict[str, NDArray[Any]]] = {}
        try:
            with np.load(path) as file:
                for key in file.files:
                    removed, _, name = key.partition("/")
                    if name:
                        without.setdefault(int(removed), {})[name] = file[key]
                window = int(file["window"])
            return cls({removed: _trajectory(arrays) for removed, arrays in without.items()}, window)
        except FileNotFoundError:
            raise
        except (OSError, LookupError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"broken counterfactuals: {type(error).__name__}: {error}") from error


def _arrays(trajectory: Trajectory) -> dict[str, NDArray[Any]]:
    collisions = [(*collision.ids, collision.frame, *collision.location) for collision in trajectory.collisions]
    return {
        **{name: getattr(trajectory, name) for name in (*STATE, "inside")},
        "ids": np.array(trajectory.ids, np.int64),
        "names": np.array([(item.shape, item.colour, item.material) for item in trajectory.objects], str),
        "collisions": np.array(collisions, np.float64).reshape(-1, 6),
    }


def _trajectory(arrays: Mapping[str, NDArray[Any]]) -> Trajectory:
    collisions = (
        Collision((int(a), int(b)), int(frame), tuple(location)) for a, b, frame, *location in arrays["collisions"]
    )
    states = {name: arrays[name] for name in STATE}
    return trajectory_of(arrays["ids"].tolist(), arrays["names"].tolist(), states, arrays["inside"], collisions)
