"""CLEVRER: solids that enter, collide and leave, seen by a camera, with the true outcome of every intervention."""

from envs.clevrer.env import CLEVREREnv
from envs.clevrer.events import CausalGraph, Event, influences, list_events
from envs.clevrer.physics import Collision, Trajectory, simulate
from envs.clevrer.render import CLEVRERRenderer
from envs.clevrer.sampling import sample_scene
from envs.clevrer.scene import Scene, SceneObject

__all__ = [
    "CLEVREREnv",
    "CLEVRERRenderer",
    "CausalGraph",
    "Collision",
    "Event",
    "Scene",
    "SceneObject",
    "Trajectory",
    "influences",
    "list_events",
    "sample_scene",
    "simulate",
]
