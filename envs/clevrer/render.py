"""Drawing CLEVRER scenes: a small ray caster in NumPy, with neither GPU nor Blender nor display."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.clevrer import camera
from envs.clevrer.camera import Camera
from envs.clevrer.physics import Trajectory
from envs.clevrer.scene import SceneObject
from envs.clevrer.shapes import RADIUS

# RGB of CLEVR's palette (Johnson et al., 2017).
PALETTE = {
    "gray": (87, 87, 87),
    "red": (173, 35, 35),
    "blue": (42, 75, 215),
    "green": (29, 105, 20),
    "brown": (129, 74, 25),
    "cyan": (41, 208, 208),
    "purple": (129, 38, 192),
    "yellow": (255, 238, 51),
}
FLOOR = 178.0  # grey where the light falls, 0..255
FALL_OFF = 0.035  # of the floor's grey with the square of the distance from there
LIGHT = np.array([0.384, -0.512, 0.7684], np.float32)  # unit vector toward it
LAMP = np.array([0.6, -0.8], np.float32)  # the side, x and y, on which a tall lamp stands that only metal shows
CONTACT = 0.1  # height up to which light is scarce between an object and the floor
SHADOW = 0.6  # share of the light that an object takes from the floor below it
SHADOW_BLUR = 0.14  # width of a shadow's soft edge
SHADOW_SHIFT = 0.12  # by which shadows fall to the side that is away from the light

BEVEL = 0.035  # by which the edges of cubes and cylinders are rounded, so that they catch the light
TINY = np.float32(1e-12)  # instead of a zero to divide by
CORNERS = np.array(list(product((-1.0, 1.0), repeat=3)))

Array = NDArray[np.float32]
Window = tuple[slice, slice]


class CLEVRERRenderer:
    """Draws the frames of trajectories at any size.

    Every pixel's ray is intersected with every object near it; the nearest hit is shaded. Pictures are computed larger
    and averaged down, so that motion of less than a pixel shows.

    Args:
        width, height: size of the pictures, px. They show the whole 480 x 320 view, stretched if need be.

    Raises:
        ValueError: for a size that is not positive.
    """

    def __init__(self, width: int = camera.WIDTH, height: int = camera.HEIGHT) -> None:
        if width < 1 or height < 1:
            raise ValueError(f"frame size must be positive, got {width} x {height}")
        self.width, self.height = width, height
        longest = max(width, height)
        self.supersample = step = 3 if longest <= 128 else 2 if longest <= 720 else 1
        self._camera = Camera(width * step, height * step)
        columns, rows = np.meshgrid(np.arange(width * step) + 0.5, np.arange(height * step) + 0.5)
        pixels = np.stack([columns, rows], axis=-1)
        rays = self._camera.rays(pixels)
        half = LIGHT - rays
        self._rays = _planes(rays)
        self._half = _planes(half / np.linalg.norm(half, axis=-1, keepdims=True))  # between light and camera
        self._floor = _planes(self._camera.ground(pixels, z=0.0))
        light = FLOOR / (1 + FALL_OFF * (self._floor**2).sum(axis=0))
        self._backdrop = np.repeat(light[None], 3, axis=0)
        self._canvas, self._depth = np.empty_like(self._backdrop), np.empty_like(light)
        self._ids = np.empty(light.shape, np.uint8)

    def __reduce__(self) -> tuple[Any, ...]:
        return CLEVRERRenderer, (self.width, self.height)

    def draw(self, trajectory: Trajectory, frame: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Picture (H, W, 3) uint8 and segmentation (H, W) uint8: 0 is the floor, the object with id i is i + 1."""
        self._canvas[:], self._depth[:], self._ids[:] = self._backdrop, np.inf, 0
        objects = [
            (item, trajectory.location[frame, index], float(trajectory.orientation[frame, index, 2]))
            for index, item in enumerate(trajectory.objects)
            if trajectory.present[frame, index]
        ]
        with np.errstate(divide="ignore", invalid="ignore"):  # for rays that miss
            for item, centre, angle in objects:
                self._draw_shadow(item, centre, angle)
            for item, centre, angle in objects:
                self._draw_object(item, centre, angle)
        middle = slice(self.supersample // 2, None, self.supersample)
        return self._picture(), self._ids[middle, middle].copy()

    def _picture(self) -> NDArray[np.uint8]:
        step = self.supersample
        rows = self._canvas.reshape(3, self.height, step, -1).sum(axis=2)
        mean = sum(rows[..., offset::step] for offset in range(step)) / step**2
        return np.ascontiguousarray((mean + 0.5).astype(np.uint8).transpose(1, 2, 0))

    def _window(self, centre: NDArray[np.float64], side: float, height: float) -> Window | None:
        """The part of the canvas that an upright box with these half extents covers; None if that is out of view."""
        pixels, depth = self._camera.project(centre + CORNERS * (side, side, height))
        if depth.min() < camera.NEAR:  # below or behind the camera, where the picture does not reach
            return None
        left, top = np.floor(pixels.min(axis=0)).clip(0).astype(int).tolist()
        right, bottom = np.ceil(pixels.max(axis=0)).clip(0).astype(int).tolist()
        if left >= min(right, self._camera.width) or top >= min(bottom, self._camera.height):
            return None
        return slice(top, bottom), slice(left, right)

    def _draw_shadow(self, item: SceneObject, centre: NDArray[np.float64], angle: float) -> None:
        x0, y0 = centre[:2] - SHADOW_SHIFT * LIGHT[:2]
        window = self._window(np.array([x0, y0, 0.0]), 2 * RADIUS + 2 * SHADOW_BLUR, 0.0)
        if window is None:
            return
        x, y = self._floor[(slice(None), *window)]
        x, y = x - np.float32(x0), y - np.float32(y0)
        if item.shape == "cube":
            c, s = math.cos(angle), math.sin(angle)
            x, y = np.maximum(abs(c * x + s * y) - RADIUS, 0), np.maximum(abs(c * y - s * x) - RADIUS, 0)
            squared = x * x + y * y
        else:
            squared = np.maximum(np.sqrt(x * x + y * y) - RADIUS, 0) ** 2
        self._canvas[(slice(None), *window)] *= 1 - SHADOW * np.exp(squared * (-1 / SHADOW_BLUR**2))

    def _draw_object(self, item: SceneObject, centre: NDArray[np.float64], angle: float) -> None:
        window = self._window(centre, RADIUS * math.sqrt(2) if item.shape == "cube" else RADIUS, RADIUS)
        if window is None:
            return
        everywhere = (slice(None), *window)
        rays, half = self._rays[everywhere], self._half[everywhere]
        eye = (camera.POSITION - centre).astype(np.float32)
        if item.shape == "cube":
            distance, normal = _hit_cube(eye, rays, angle)
        else:
            distance, normal = (_hit_sphere if item.shape == "sphere" else _hit_cylinder)(eye, rays)
        height = np.maximum(np.float32(camera.POSITION[2]) + distance * rays[2], 0)
        shaded = _shade(np.array(PALETTE[item.colour], np.float32), item.material, normal, rays, half, height)
        nearest = distance < self._depth[window]
        np.copyto(self._canvas[everywhere], shaded, where=nearest)
        np.copyto(self._depth[window], distance, where=nearest)
        np.copyto(self._ids[window], np.uint8(item.id + 1), where=nearest)


def _planes(image: NDArray[np.float64]) -> Array:
    return np.ascontiguousarray(np.moveaxis(image, -1, 0), dtype=np.float32)


# Rays start at `eye` (3,), seen from the object's centre, and point along unit vectors `rays` (3, h, w). The
# results are distances (h, w), infinite for a miss, and unit normals (3, h, w) of the surface, meaningless for a miss.


def _hit_sphere(eye: Array, rays: Array) -> tuple[Array, Array]:
    along = np.einsum("i,ihw->hw", eye, rays)
    root = along * along - (eye @ eye - RADIUS**2)
    distance = -along - np.sqrt(np.maximum(root, 0))
    normal = (eye[:, None, None] + distance * rays) * (1 / RADIUS)
    return np.where(root > 0, distance, np.float32(np.inf)), normal


def _hit_cylinder(eye: Array, rays: Array) -> tuple[Array, Array]:
    x, y, z = rays
    squared = x * x + y * y
    along = eye[0] * x + eye[1] * y
    root = along * along - squared * (eye[0] ** 2 + eye[1] ** 2 - RADIUS**2)
    side = (-along - np.sqrt(np.maximum(root, 0))) / squared
    on_side = (root > 0) & (abs(eye[2] + side * z) <= RADIUS)
    top = (RADIUS - eye[2]) / z  # the camera is above every object
    on_top = (eye[0] + top * x) ** 2 + (eye[1] + top * y) ** 2 <= RADIUS**2
    distance = np.where(on_top, top, np.where(on_side, side, np.float32(np.inf)))
    point = eye[:, None, None] + np.where(on_top, top, side) * rays
    radius = np.sqrt(point[0] ** 2 + point[1] ** 2) + TINY
    point[:2] *= np.maximum(radius - (RADIUS - BEVEL), 0) / radius
    point[2] = _bevel(point[2])
    return distance, _unit(point)


def _hit_cube(eye: Array, rays: Array, angle: float) -> tuple[Array, Array]:
    c, s = math.cos(angle), math.sin(angle)
    turn = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]], np.float32)
    eye, rays = turn @ eye, np.einsum("ij,jhw->ihw", turn, rays)
    rays[rays == 0] = TINY  # along a side
    inverse = 1 / rays
    middle, reach = -eye[:, None, None] * inverse, RADIUS * abs(inverse)
    entry, leave = (middle - reach).max(axis=0), (middle + reach).min(axis=0)
    normal = np.einsum("ij,ihw->jhw", turn, _bevel(eye[:, None, None] + entry * rays))
    return np.where(entry < leave, entry, np.float32(np.inf)), _unit(normal)


def _bevel(coordinate: Array) -> Array:
    """What a coordinate of a surface point adds to the normal: nothing but near the solid's outer end along it."""
    bevelled: Array = np.sign(coordinate) * np.maximum(abs(coordinate) - (RADIUS - BEVEL), 0)
    return bevelled


def _unit(vectors: Array) -> Array:
    unit: Array = vectors / np.sqrt(np.einsum("ihw,ihw->hw", vectors, vectors))
    return unit


def _sharpen(values: Array, doublings: int) -> Array:
    """``values`` to the power of 2 ** doublings, several times faster than NumPy's powers."""
    for _ in range(doublings):
        values = values * values
    return values


def _shade(colour: Array, material: str, normal: Array, rays: Array, half: Array, height: Array) -> Array:
    """RGB planes (3, h, w), 0..255, of surface points at ``height`` (h, w) above the floor."""
    base = colour[:, None, None]
    lit = np.maximum(np.einsum("i,ihw->hw", LIGHT, normal), 0)
    shine = _sharpen(np.maximum(np.einsum("ihw,ihw->hw", normal, half), 0), 3)
    near_floor = np.exp(height * (-1 / CONTACT))
    shaded: Array
    if material == "rubber":
        shaded = base * (0.42 + 0.15 * normal[2] + 0.6 * lit - 0.2 * near_floor) + 20 * shine
    else:
        # Metal mirrors the floor, dark where the object stands, a sky that is bright above, and a tall lamp beside it.
        x, y, up = rays - 2 * np.einsum("ihw,ihw->hw", rays, normal) * normal
        lamp = _sharpen(np.maximum((x * LAMP[0] + y * LAMP[1]) / np.sqrt(x * x + y * y), 0), 5)
        light = 0.3 + 0.4 * lit + np.where(up > 0, 0.8 * up * up, -0.5 * up) - 0.45 * near_floor
        shaded = base * light + 110 * lamp * (1 - normal[2] ** 2) + 210 * _sharpen(shine, 3)
    return np.clip(shaded, 0, 255)
