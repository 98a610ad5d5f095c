"""Push-T physics: a pymunk space holding one kinematic disc and one pushable block.

Constants and insertion order are those of ``gym_pusht/PushT-v0`` 0.1.8, so that equal states and
equal absolute targets give equal trajectories.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pymunk
from numpy.typing import ArrayLike, NDArray
from shapely import transform
from shapely.geometry import Polygon
from shapely.geometry.base import BaseGeometry
from shapely.ops import unary_union

from envs.pusht.shapes import BLOCK_SHAPES, BlockShape, shape_name

WINDOW = 512  # px, side of the square arena
WALL_LOW, WALL_HIGH, WALL_RADIUS = 5, 506, 2  # px
KP, KV = 100.0, 20.0  # PD gains of the agent: 1/s^2 and 1/s
DT = 0.01  # s
SUBSTEPS = 10  # physics steps per action, hence 10 actions per second


def add_post_solve(space: pymunk.Space, callback: Any) -> None:
    """Call ``callback(arbiter, space, data)`` after every contact; pymunk 6 and 7 differ here."""
    if hasattr(space, "on_collision"):
        space.on_collision(0, 0, post_solve=callback)
    else:
        space.add_collision_handler(0, 0).post_solve = callback


def block_shape(name: str) -> BlockShape:
    """The named shape; raises ValueError with the known names otherwise."""
    return BLOCK_SHAPES[shape_name(name)]


def block_outline(shape: str, scale: float) -> BaseGeometry:
    """The block's outline in its body frame, in px, as a shapely geometry."""
    pieces = block_shape(shape).pieces
    return unary_union([Polygon([(x * scale, y * scale) for x, y in piece]) for piece in pieces])


def place(outline: BaseGeometry, pose: ArrayLike) -> BaseGeometry:
    """``outline`` moved to ``pose`` = (x px, y px, angle rad)."""
    x, y, angle = (float(v) for v in np.asarray(pose))
    c, s = math.cos(angle), math.sin(angle)
    rotation = np.array([[c, s], [-s, c]])
    return transform(outline, lambda points: points @ rotation + (x, y))


class PushTPhysics:
    """The simulated arena.

    The state is ``(agent x, agent y, block x, block y, block angle, agent vx, agent vy)`` in px, rad and
    px/s, float64. It is all there is while nothing is pushed. In the midst of a push the block has a velocity, too,
    for one more physics step, and the contact its impulses: a copy keeps them, ``reset`` does not.

    Args:
        shape: name in ``BLOCK_SHAPES``.
        scale: px per unit of the block's outline.
        agent_radius: px.
        count_contacts: count contact points per step (costs a Python callback per contact).
    """

    def __init__(
        self,
        shape: str = "tee",
        scale: float = 30.0,
        agent_radius: float = 15.0,
        count_contacts: bool = False,
    ) -> None:
        self.shape, self.scale, self.agent_radius = shape_name(shape), float(scale), float(agent_radius)
        self.count_contacts = count_contacts
        self.outline = block_outline(shape, self.scale)
        self._goal: tuple[tuple[float, ...], BaseGeometry] | None = None
        self.reset(np.array([256.0, 400.0, 256.0, 300.0, 0.0, 0.0, 0.0]))

    def reset(self, state: ArrayLike) -> None:
        """Build a fresh space in exactly ``state`` (5 or 7 numbers); nothing of the past remains.

        A fresh space matters: pymunk keeps contact impulses between steps, so a reused space would
        make the future depend on states before the reset.
        """
        values = np.array(state, dtype=np.float64)
        self._start, self._targets = values, list[tuple[float, float]]()
        self.space = space = pymunk.Space()
        space.gravity = 0, 0
        space.damping = 0  # the share of its velocity that a body keeps per second
        low, high = WALL_LOW, WALL_HIGH
        corners = [((low, high), (low, low)), ((low, low), (high, low)), ((high, low), (high, high))]
        corners.append(((low, high), (high, high)))
        space.add(*[pymunk.Segment(space.static_body, a, b, WALL_RADIUS) for a, b in corners])

        self.agent = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
        self.agent.position = float(values[0]), float(values[1])
        space.add(self.agent, pymunk.Circle(self.agent, self.agent_radius))

        self.block = self._make_block()
        # The angle turns the body about its centre of gravity, so it must be set before the position.
        self.block.angle = float(values[4])
        self.block.position = float(values[2]), float(values[3])
        space.reindex_shapes_for_body(self.agent)
        space.reindex_shapes_for_body(self.block)
        if len(values) == 7:
            self.agent.velocity = float(values[5]), float(values[6])
        self.n_contact_points = 0
        if self.count_contacts:
            add_post_solve(space, self._on_contact)

    def _make_block(self) -> pymunk.Body:
        scaled = [[(x * self.scale, y * self.scale) for x, y in piece] for piece in BLOCK_SHAPES[self.shape].pieces]
        mass = 1.0
        # gym-pusht takes the first piece's moment for every piece of the tee; kept, since trajectories depend on it.
        moments = [pymunk.moment_for_poly(mass, scaled[0] if self.shape == "tee" else piece) for piece in scaled]
        body = pymunk.Body(mass, sum(moments))
        self.polygons = [pymunk.Poly(body, piece) for piece in scaled]
        centre = sum((p.center_of_gravity for p in self.polygons), pymunk.Vec2d(0, 0)) / len(self.polygons)
        body.center_of_gravity = centre
        self.space.add(body, *self.polygons)
        return body

    def _on_contact(self, arbiter: pymunk.Arbiter, space: pymunk.Space, data: Any) -> None:
        self.n_contact_points += len(arbiter.contact_point_set.points)

    def state(self) -> NDArray[np.float64]:
        """The state (7,), see the class docstring; the angle is not wrapped."""
        agent, block = self.agent, self.block
        return np.array([*agent.position, *block.position, block.angle, *agent.velocity], dtype=np.float64)

    def step(self, target: ArrayLike) -> None:
        """Drive the agent toward ``target`` (x, y px) by PD control for 0.1 s."""
        tx, ty = (float(v) for v in np.asarray(target))
        self._targets.append((tx, ty))
        self.n_contact_points = 0
        agent, space = self.agent, self.space
        vx, vy = agent.velocity
        for _ in range(SUBSTEPS):
            px, py = agent.position
            vx += (KP * (tx - px) - KV * vx) * DT
            vy += (KP * (ty - py) - KV * vy) * DT
            agent.velocity = vx, vy
            space.step(DT)

    def coverage(self, goal_pose: ArrayLike) -> float:
        """Share of the goal outline's area that the block covers, in [0, 1]."""
        pose = tuple(float(v) for v in np.asarray(goal_pose))
        if self._goal is None or self._goal[0] != pose:
            self._goal = (pose, place(self.outline, pose))
        goal = self._goal[1]
        block = place(self.outline, (*self.block.position, self.block.angle))
        return min(1.0, float(goal.intersection(block).area / goal.area))

    def __getstate__(self) -> dict[str, Any]:
        arguments = (self.shape, self.scale, self.agent_radius, self.count_contacts)
        return {"arguments": arguments, "start": self._start, "targets": self._targets}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        # The space's contact impulses cannot be read out, so a copy relives the episode: exact, and fast enough.
        PushTPhysics.__init__(self, *saved["arguments"])
        self.reset(saved["start"])
        for target in saved["targets"]:
            self.step(target)
