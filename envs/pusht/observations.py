"""Observation spaces of ``PushT-v0``, and the numbers in them."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.pusht.options import MAX_SPEED
from envs.pusht.physics import WINDOW, PushTPhysics

OBS_TYPES = ("goal", "state", "environment_state_agent_pos", "pixels", "pixels_agent_pos")
N_KEYPOINTS = 8


def observation_space(obs_type: str, width: int, height: int) -> spaces.Space[Any]:
    """The space of ``obs_type`` with images of ``height`` x ``width`` px; raises ValueError for unknown types."""
    pixels = spaces.Box(0, 255, (height, width, 3), np.uint8)
    agent_pos = spaces.Box(0.0, WINDOW, (2,), np.float64)
    if obs_type == "goal":
        high = np.array([WINDOW, WINDOW, MAX_SPEED, MAX_SPEED], np.float32)
        proprio = spaces.Box(np.array([0, 0, -MAX_SPEED, -MAX_SPEED], np.float32), high, dtype=np.float32)
        return spaces.Dict({"pixels": pixels, "proprio": proprio, "goal_pixels": pixels, "goal_proprio": proprio})
    if obs_type == "state":
        return spaces.Box(np.zeros(5), np.array([WINDOW, WINDOW, WINDOW, WINDOW, 2 * np.pi]), dtype=np.float64)
    if obs_type == "environment_state_agent_pos":
        keypoints = spaces.Box(0.0, WINDOW, (2 * N_KEYPOINTS,), np.float64)
        return spaces.Dict({"environment_state": keypoints, "agent_pos": agent_pos})
    if obs_type == "pixels":
        return pixels
    if obs_type == "pixels_agent_pos":
        return spaces.Dict({"pixels": pixels, "agent_pos": agent_pos})
    raise ValueError(f"unknown obs_type {obs_type!r}; expected one of {list(OBS_TYPES)}")


def proprio(state: NDArray[np.float64]) -> NDArray[np.float32]:
    """Agent x, y [px], vx, vy [px/s] (4,) float32 of a state (7,)."""
    return np.array(state[[0, 1, 5, 6]], dtype=np.float32)


def wrapped_state(state: NDArray[np.float64]) -> NDArray[np.float64]:
    """Agent x, y, block x, y [px], angle [rad, 0..2 pi] (5,) of a state (7,)."""
    wrapped: NDArray[np.float64] = state[:5].copy()
    wrapped[4] %= 2 * np.pi
    return wrapped


def keypoints(physics: PushTPhysics) -> NDArray[np.float64]:
    """The corners x0, y0, x1, ... [px] (16,) of the block's two boxes, in gym-pusht's order."""
    block = physics.block
    corners = [v.rotated(block.angle) + block.position for shape in physics.polygons for v in shape.get_vertices()]
    return np.array(corners, dtype=np.float64).ravel()
