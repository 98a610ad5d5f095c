"""The perspective camera of the CLEVRER videos, with the numbers fitted by VRDP.

VRDP: Ding et al., "Dynamic Visual Reasoning by Learning Differentiable Physics Models from Video and Language",
NeurIPS 2021, https://github.com/dingmyu/VRDP. The camera stands 5 away from the origin and looks down at it by 30
degrees. World axes: x to the camera, y to the right of the picture, z up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from envs.clevrer.shapes import RADIUS

WIDTH, HEIGHT = 480, 320  # px, of the CLEVRER videos
FOCAL = 525.0  # px, at that size
DISTANCE, PITCH = 5.0, math.radians(30)
MARGIN = 10.0  # px by which a centre may lie outside the picture and still count as inside
NEAR = 0.1  # least depth in front of the camera at which something can be seen

POSITION = np.array([DISTANCE * math.cos(PITCH), 0.0, DISTANCE * math.sin(PITCH)])
# Right, down and forward of the picture, as rows.
AXES = np.array([[0.0, 1.0, 0.0], [math.sin(PITCH), 0.0, -math.cos(PITCH)], [-math.cos(PITCH), 0.0, -math.sin(PITCH)]])
# A centre and the six points of the surface around it.
SURFACE = RADIUS * np.concatenate([np.zeros((1, 3)), np.eye(3), -np.eye(3)])


@dataclass(frozen=True)
class Camera:
    """Maps between world and pixels of a picture, which is always the whole 480 x 320 view, stretched if need be.

    Attributes:
        width, height: px.
    """

    width: int = WIDTH
    height: int = HEIGHT

    @cached_property
    def intrinsics(self) -> NDArray[np.float64]:
        """(3, 3) from camera axes to homogeneous pixels."""
        u, v = self.width / WIDTH, self.height / HEIGHT
        return np.array([[FOCAL * u, 0.0, self.width / 2], [0.0, FOCAL * v, self.height / 2], [0.0, 0.0, 1.0]])

    @cached_property
    def matrix(self) -> NDArray[np.float64]:
        """The 3 x 4 projection from homogeneous world points to homogeneous pixels; the third row gives the depth."""
        rotation = self.intrinsics @ AXES
        return np.concatenate([rotation, -(rotation @ POSITION)[:, None]], axis=1)

    def project(self, points: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Pixels u, v (..., 2) and depth (...) of world points (..., 3); pixels mean nothing where depth <= 0."""
        matrix = self.matrix
        homogeneous = np.asarray(points, dtype=np.float64) @ matrix[:, :3].T + matrix[:, 3]
        depth = homogeneous[..., 2]
        return homogeneous[..., :2] / np.where(depth == 0, NEAR, depth)[..., None], depth

    def rays(self, pixels: ArrayLike) -> NDArray[np.float64]:
        """Unit directions (..., 3), from the camera's position, of pixels (..., 2)."""
        uv = np.asarray(pixels, dtype=np.float64)
        homogeneous = np.concatenate([uv, np.ones_like(uv[..., :1])], axis=-1)
        directions = homogeneous @ np.linalg.inv(self.intrinsics).T @ AXES
        return np.asarray(directions / np.linalg.norm(directions, axis=-1, keepdims=True))

    def ground(self, pixels: ArrayLike, z: float = RADIUS) -> NDArray[np.float64]:
        """World points x, y (..., 2) that are seen at ``pixels`` (..., 2), at height ``z``."""
        rays = self.rays(pixels)
        return np.asarray(POSITION[:2] + rays[..., :2] * ((z - POSITION[2]) / rays[..., 2:]))


REFERENCE = Camera()


def inside_view(locations: ArrayLike) -> NDArray[np.bool_]:
    """Whether objects whose centres are at ``locations`` (..., 3) count as visible, (...).

    VRDP's test: the centre lies in the picture of 480 x 320 px or at most 10 px outside, or one of the six points of
    the surface above, below and around it lies in the picture.
    """
    pixels, depth = REFERENCE.project(np.asarray(locations, dtype=np.float64)[..., None, :] + SURFACE)
    margin = np.array([MARGIN] + [0.0] * 6)[:, None]
    within = ((pixels >= -margin) & (pixels <= np.array([WIDTH, HEIGHT]) + margin)).all(axis=-1)
    return np.asarray((within & (depth > NEAR)).any(axis=-1))
