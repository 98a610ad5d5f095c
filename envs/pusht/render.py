"""Drawing Push-T: RGB frames and exact segmentation masks, without a display."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from typing import Any

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import numpy as np
import pygame
from numpy.typing import ArrayLike, NDArray

from envs.pusht.physics import WALL_HIGH, WALL_LOW, WALL_RADIUS, WINDOW, block_shape

Colour = tuple[int, int, int]
SEGMENTS = ("background", "goal", "block", "agent")  # class ids 0..3 of the segmentation mask
RIM = 2  # px, half width of the dark line around a block


@dataclass(frozen=True)
class Style:
    """Colours (RGB, 0..255), sizes (px) and shape; the defaults look like gym-pusht."""

    background: Colour = (255, 255, 255)
    goal: Colour = (144, 238, 144)
    block: Colour = (119, 136, 153)
    agent: Colour = (65, 105, 225)
    wall: Colour = (211, 211, 211)
    shape: str = "tee"
    scale: float = 30.0
    agent_radius: float = 15.0


def _lighter(colour: Colour) -> Colour:
    red, green, blue = (min(255, int(1.2 * c)) for c in colour)
    return red, green, blue


def _bytes(surface: pygame.Surface) -> NDArray[np.uint8]:
    buffer: Any = surface.get_buffer()
    return np.frombuffer(buffer, np.uint8)


class PushTRenderer:
    """Draws states at any size.

    Frames are drawn on a larger square canvas and averaged down, so that sub-pixel motion shows in them; those that
    are not square are squeezed, as gym-pusht's are. Walls and goal are drawn once per goal pose.

    Args:
        width, height: size of the frames, px.
        style: colours and sizes.
    """

    def __init__(self, width: int, height: int, style: Style | None = None) -> None:
        if width < 1 or height < 1:
            raise ValueError(f"frame size must be positive, got {width} x {height}")
        self.width, self.height = width, height
        self.style = style or Style()
        longest = max(width, height)
        self.supersample = 4 if longest <= 128 else 2 if longest <= 720 else 1
        side = longest * self.supersample
        self._canvas = pygame.Surface((side, side), depth=32)
        self._small = pygame.Surface((width, height), depth=32)
        self._backdrop: tuple[tuple[float, ...], pygame.Surface] | None = None
        self._ids: PushTRenderer | None = None
        self._scale = side / WINDOW

    def __reduce__(self) -> tuple[Any, ...]:
        return PushTRenderer, (self.width, self.height, self.style)

    def _point(self, x: float, y: float) -> tuple[int, int]:
        return round(x * self._scale), round(y * self._scale)

    def _length(self, px: float) -> int:
        return max(1, round(px * self._scale))

    def _pieces(self, pose: ArrayLike) -> list[list[tuple[int, int]]]:
        x, y, angle = (float(v) for v in np.asarray(pose))
        c, s = math.cos(angle) * self.style.scale, math.sin(angle) * self.style.scale
        shape = block_shape(self.style.shape)
        return [[self._point(x + c * u - s * v, y + s * u + c * v) for u, v in piece] for piece in shape.pieces]

    def _draw_block(self, canvas: pygame.Surface, pose: ArrayLike, fill: Colour, rim: Colour) -> None:
        width, radius = self._length(2 * RIM), self._length(RIM)
        for points in self._pieces(pose):
            pygame.draw.polygon(canvas, fill, points)
            pygame.draw.lines(canvas, rim, True, points, width)
            for point in points:
                pygame.draw.circle(canvas, rim, point, radius)

    def _draw_backdrop(self, goal_pose: tuple[float, ...]) -> pygame.Surface:
        if self._backdrop is None or self._backdrop[0] != goal_pose:
            surface = self._canvas.copy()
            surface.fill(self.style.background)
            for points in self._pieces(goal_pose):
                pygame.draw.polygon(surface, self.style.goal, points)
            (x0, y0), (x1, y1) = self._point(WALL_LOW, WALL_LOW), self._point(WALL_HIGH, WALL_HIGH)
            wall = self._length(2 * WALL_RADIUS)
            for a, b in (((x0, y0), (x1, y0)), ((x1, y0), (x1, y1)), ((x1, y1), (x0, y1)), ((x0, y1), (x0, y0))):
                pygame.draw.line(surface, self.style.wall, a, b, wall)
            self._backdrop = (goal_pose, surface)
        return self._backdrop[1]

    def _draw(self, state: ArrayLike, goal_pose: ArrayLike) -> None:
        values = np.asarray(state, dtype=np.float64)
        goal = tuple(float(v) for v in np.asarray(goal_pose))
        self._canvas.blit(self._draw_backdrop(goal), (0, 0))
        style = self.style
        centre = self._point(values[0], values[1])
        pygame.draw.circle(self._canvas, style.agent, centre, self._length(style.agent_radius))
        pygame.draw.circle(self._canvas, _lighter(style.agent), centre, self._length(style.agent_radius - 4))
        self._draw_block(self._canvas, values[2:5], _lighter(style.block), style.block)

    def frame(self, state: ArrayLike, goal_pose: ArrayLike) -> NDArray[np.uint8]:
        """RGB frame (H, W, 3) uint8 of ``state`` (agent x, y, block x, y, angle, ...)."""
        self._draw(state, goal_pose)
        if self._canvas.get_size() == self._small.get_size():
            surface = self._canvas
        else:
            surface = pygame.transform.smoothscale(self._canvas, (self.width, self.height), self._small)
        # The surface is 32-bit BGRX in memory; reading the buffer is several times faster than surfarray.
        pixels = _bytes(surface).reshape(self.height, self.width, 4)
        return np.ascontiguousarray(pixels[:, :, 2::-1])

    def masks(self, state: ArrayLike, goal_pose: ArrayLike) -> NDArray[np.uint8]:
        """Segmentation (H, W) uint8 with the class ids of ``SEGMENTS``; the block hides the agent and the goal."""
        if self._ids is None:
            background, goal, block, agent = ((i, i, i) for i in range(len(SEGMENTS)))
            grey = replace(self.style, background=background, goal=goal, block=block, agent=agent, wall=background)
            self._ids = PushTRenderer(self.width, self.height, grey)
        ids = self._ids
        ids._draw(state, goal_pose)
        side = ids._canvas.get_width()
        rows, columns = ((2 * np.arange(size) + 1) * side // (2 * size) for size in (self.height, self.width))
        return np.ascontiguousarray(_bytes(ids._canvas).reshape(side, side, 4)[rows[:, None], columns, 0])
