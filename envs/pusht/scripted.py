"""A scripted pusher: the behaviour policy of the generated Push-T data.

It picks a point on the block's outline, walks around the block to a spot before that point, pushes along the
inward normal for a while, and starts again; some phases wander instead, so that the data also shows the agent
leaving the block and missing it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from shapely import prepare
from shapely.geometry import LineString, Point

from envs.pusht.physics import block_outline

STANDOFF = 40.0  # px before the outline at which a push starts
CLEARANCE = 21.0  # px kept from the outline while walking: agent radius and a margin
ORBIT = 125.0  # px from the block's centroid at which the agent walks around it
ARENA = (25.0, 487.0)  # px, where the agent may stand to start a push
CANDIDATES = 6  # outline points considered per push; the nearest, with some noise, is taken
REACH = (12.0, 500.0)  # px, the targets stay where the agent is in view
PX_PER_ACTION = 100.0  # relative actions are in units of 100 px


class ScriptedPusher:
    """Acts on the true state; one instance per episode, which starts with ``reset``.

    Args:
        generator: the episode's own random generator.
        shape, scale: the block, as in ``PushTPhysics``.
        wander: probability that a phase is a random walk instead of a push.
    """

    def __init__(
        self, generator: np.random.Generator, shape: str = "tee", scale: float = 30.0, wander: float = 0.1
    ) -> None:
        self.rng, self.wander = generator, wander
        self.outline = block_outline(shape, scale)
        self.centroid = np.array(self.outline.centroid.coords[0])
        self.obstacle = self.outline.buffer(CLEARANCE)
        prepare(self.obstacle)
        # Drawn from even though `reset` draws anew: generated data and its published seeds rely on the stream.
        self.reset(np.zeros(7))

    def reset(self, state: ArrayLike) -> None:
        """Plan the first push (or walk) from the full state (7,); call it before the first ``act``."""
        self._start_phase(np.asarray(state, dtype=np.float64))

    def _start_phase(self, state: NDArray[np.float64]) -> None:
        self.pushing = False
        self.patience = 40
        self.speed = self.rng.uniform(0.25, 0.6)
        if self.rng.random() < self.wander:
            self.patience = int(self.rng.integers(4, 12))
            self.velocity = self.rng.normal(0.0, 0.2, 2)
            self.mode = "wander"
            return
        self.mode = "push"
        boundary = self.outline.exterior
        nearest, self.start, self.direction = math.inf, self.centroid, np.zeros(2)
        for _ in range(CANDIDATES):
            distance = self.rng.uniform(0, boundary.length)
            here, ahead = boundary.interpolate(distance), boundary.interpolate(distance + 1.0)
            tangent = np.array([ahead.x - here.x, ahead.y - here.y])
            normal = np.array([tangent[1], -tangent[0]]) / (np.linalg.norm(tangent) + 1e-9)
            if self.outline.contains(Point(here.x + normal[0], here.y + normal[1])):
                normal = -normal
            start = np.array([here.x, here.y]) + STANDOFF * normal
            world = self._to_world(start, state)
            reach = float(np.linalg.norm(world - state[:2])) * self.rng.uniform(0.5, 1.5)
            inside = np.all((world > ARENA[0]) & (world < ARENA[1]))
            if inside and not self.obstacle.contains(Point(start)) and reach < nearest:
                nearest, self.start, self.direction = reach, start, -normal

    @staticmethod
    def _rotation(state: NDArray[np.float64]) -> NDArray[np.float64]:
        c, s = math.cos(state[4]), math.sin(state[4])
        return np.array([[c, -s], [s, c]])

    def _to_world(self, point: NDArray[np.float64], state: NDArray[np.float64]) -> NDArray[np.float64]:
        world: NDArray[np.float64] = self._rotation(state) @ point + state[2:4]
        return world

    def act(self, state: ArrayLike) -> NDArray[np.float32]:
        """Relative action (2,) float32 in [-1, 1] for the full state (7,)."""
        values = np.asarray(state, dtype=np.float64)
        self.patience -= 1
        if self.patience < 0:
            self._start_phase(values)
        if self.mode == "wander":
            self.velocity = 0.9 * self.velocity + self.rng.normal(0.0, 0.05, 2)
            centring = np.where(values[:2] < 40, 0.2, np.where(values[:2] > 472, -0.2, 0.0))
            action = self.velocity + centring
        elif self.pushing:
            action = self.velocity + self.rng.normal(0.0, 0.015, 2)
        else:
            action = self._walk(values)
        target = np.clip(values[:2] + PX_PER_ACTION * action, *REACH)
        return np.clip((target - values[:2]) / PX_PER_ACTION, -1.0, 1.0).astype(np.float32)

    def _walk(self, state: NDArray[np.float64]) -> NDArray[np.float64]:
        body = self._rotation(state).T @ (state[:2] - state[2:4])  # agent in the block's frame
        gap = self.start - body
        if np.linalg.norm(gap) < 12.0:
            angle = self.rng.normal(0.0, 0.3)
            c, s = math.cos(angle), math.sin(angle)
            heading = self._rotation(state) @ np.array([[c, -s], [s, c]]) @ self.direction
            self.pushing = True
            self.patience = int(self.rng.integers(4, 13))
            self.velocity = heading * self.rng.uniform(0.12, 0.4)
            return self.velocity
        if self.obstacle.contains(Point(body)):
            offset = body - self.centroid
            aim = offset / (np.linalg.norm(offset) + 1e-9) * 40.0
        elif LineString([body, self.start]).intersects(self.obstacle):
            aim = self._orbit(body) - body
        else:
            aim = gap
        length = np.linalg.norm(aim) + 1e-9
        world = self._rotation(state) @ (aim / length) * min(self.speed, length / PX_PER_ACTION * 2.5)
        step: NDArray[np.float64] = world + self.rng.normal(0.0, 0.02, 2)
        return step

    def _orbit(self, body: NDArray[np.float64]) -> NDArray[np.float64]:
        """The next point (body frame) on the way around the block."""
        here, there = body - self.centroid, self.start - self.centroid
        now = math.atan2(here[1], here[0])
        turn = (math.atan2(there[1], there[0]) - now + math.pi) % (2 * math.pi) - math.pi
        angle = now + math.copysign(min(abs(turn), 0.6), turn)
        return self.centroid + ORBIT * np.array([math.cos(angle), math.sin(angle)])
