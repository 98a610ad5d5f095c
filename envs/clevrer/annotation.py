"""Annotations in the official JSON format of CLEVRER, to and from simulations.

The format is that of http://data.csail.mit.edu/clevrer/README.txt. Ours list every simulated frame, the hidden ones
after the visible 128 included, and write orientations as rotations about x, y and z in rad. Frame 0 is exact, so that
an annotation is enough to run its scene again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.clevrer.physics import Collision, Trajectory
from envs.clevrer.scene import Scene, SceneObject

Annotation = dict[str, Any]
STATE = ("location", "orientation", "velocity", "angular_velocity")


def annotate(trajectory: Trajectory, scene_index: int = 0) -> Annotation:
    """The annotation of a simulation, made of what JSON knows. An object that was removed counts as not visible."""
    columns = {name: getattr(trajectory, name).tolist() for name in STATE}
    inside = trajectory.inside.tolist()
    return {
        "scene_index": scene_index,
        "video_filename": f"video_{scene_index:05d}.mp4",
        "object_property": [
            {"object_id": item.id, "color": item.colour, "material": item.material, "shape": item.shape}
            for item in trajectory.objects
        ],
        "motion_trajectory": [
            {
                "frame_id": frame,
                "objects": [
                    {
                        "object_id": id,
                        **{name: columns[name][frame][index] for name in STATE},
                        "inside_camera_view": inside[frame][index],
                    }
                    for index, id in enumerate(trajectory.ids)
                ],
            }
            for frame in range(len(inside))
        ],
        "collision": [
            {"object_ids": list(collision.ids), "frame_id": collision.frame, "location": list(collision.location)}
            for collision in trajectory.collisions
        ],
    }


def read_trajectory(annotation: Mapping[str, Any]) -> Trajectory:
    """The trajectory that an annotation describes, ours or a released one.

    Raises:
        ValueError: if something is missing or wrong; the message names the scene.
    """
    try:
        return _read(annotation)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        scene = annotation.get("scene_index") if isinstance(annotation, Mapping) else None
        raise ValueError(f"broken annotation of scene {scene}: {type(error).__name__}: {error}") from error


def read_scene(annotation: Mapping[str, Any]) -> Scene:
    """The scene that starts like frame 0 of an annotation; raises ValueError as ``read_trajectory`` and ``Scene``."""
    return Scene(read_trajectory(annotation).objects)


def _read(annotation: Mapping[str, Any]) -> Trajectory:
    ids = [int(given["object_id"]) for given in annotation["object_property"]]
    if not ids or len(set(ids)) < len(ids):
        raise ValueError(f"objects have the ids {ids}, expected one or more, each its own")
    numbers = [frame["frame_id"] for frame in annotation["motion_trajectory"]]
    if numbers != list(range(len(numbers))):
        raise ValueError(f"motion_trajectory must have the frames 0, 1, 2, ..., each once, got {numbers}")
    frames = [{entry["object_id"]: entry for entry in frame["objects"]} for frame in annotation["motion_trajectory"]]
    states = {
        name: np.array([[_vector(name, frame[id][name]) for id in ids] for frame in frames], dtype=np.float64)
        for name in STATE
    }
    expected = (len(frames), len(ids), 3)
    if wrong := [name for name, found in states.items() if found.shape != expected or not np.isfinite(found).all()]:
        raise ValueError(f"{wrong} must be three finite numbers of each object in each frame")
    inside = np.array([[frame[id]["inside_camera_view"] for id in ids] for frame in frames], dtype=bool)
    collisions = [_collision(given, ids) for given in annotation["collision"]]
    names = [(given["shape"], given["color"], given["material"]) for given in annotation["object_property"]]
    return trajectory_of(ids, names, states, inside, collisions)


def trajectory_of(
    ids: Sequence[int],
    names: Sequence[Sequence[str]],
    states: Mapping[str, NDArray[np.float64]],
    inside: NDArray[np.bool_],
    collisions: Iterable[Collision],
) -> Trajectory:
    """A trajectory of objects that are there all the time, put together from what files hold.

    Args:
        ids: of the N objects.
        names: shape, colour and material of each.
        states: the arrays (T, N, 3) named in ``STATE``.
        inside: (T, N).
        collisions: in any order.
    """
    first = {name: values[0] for name, values in states.items()}
    objects = tuple(
        SceneObject(
            id,
            shape,
            colour,
            material,
            position=tuple(first["location"][index, :2]),
            velocity=tuple(first["velocity"][index, :2]),
            angle=first["orientation"][index, 2],
        )
        for index, (id, (shape, colour, material)) in enumerate(zip(ids, names, strict=True))
    )
    return Trajectory(
        objects,
        **states,
        inside=inside,
        present=np.ones_like(inside),
        collisions=tuple(sorted(collisions, key=lambda collision: collision.frame)),
    )


def _collision(given: Mapping[str, Any], ids: Sequence[int]) -> Collision:
    first, second = sorted(given["object_ids"])
    frame = given["frame_id"]
    if first == second or not {first, second} <= set(ids) or frame != int(frame):
        raise ValueError(f"a collision must be of two of the objects {ids} in a frame, got {given}")
    return Collision((first, second), int(frame), tuple(given["location"]))


def _vector(name: str, given: Sequence[float]) -> Sequence[float]:
    """Three numbers; of a quaternion x, y, z, w, the turn about the vertical."""
    if name != "orientation" or len(given) != 4:
        return given
    x, y, z, w = given
    return (0.0, 0.0, math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))
