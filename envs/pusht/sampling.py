"""Random Push-T starts and goals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from shapely import box
from shapely.geometry import Point
from shapely.ops import nearest_points

from envs.pusht.physics import WALL_HIGH, WALL_LOW, WALL_RADIUS, WINDOW, PushTPhysics, place
from envs.pusht.success import SuccessRule

ARENA = box(*[WALL_LOW + WALL_RADIUS] * 2, *[WALL_HIGH - WALL_RADIUS] * 2)
BLOCK_SHIFT = (20.0, 80.0)  # px between the block's start and goal
BLOCK_TURN = np.pi / 4  # rad, most between the block's start and goal
AGENT_SHIFT = 100.0  # px, most per axis between the agent's start and goal
AGENT_LOW, AGENT_HIGH = 50.0, 450.0  # px, where agents start and end
TRIES = 1000


def is_free(physics: PushTPhysics, state: NDArray[np.float64]) -> bool:
    """Whether the agent does not overlap the block and the block does not reach into a wall."""
    block = place(physics.outline, state[2:5])
    return bool(ARENA.contains(block) and block.distance(Point(state[:2])) >= physics.agent_radius)


def sample_start(rng: np.random.Generator, physics: PushTPhysics) -> NDArray[np.float64]:
    """A start (7,) at rest, drawn as gym-pusht 0.1.8 does, without overlaps.

    The first draw from an equally seeded generator is gym-pusht's start; a draw that overlaps is repeated.
    Raises RuntimeError when the block hardly fits into the arena.
    """
    centre = np.array(physics.block.center_of_gravity)
    for _ in range(TRIES):
        agent = rng.integers(50, 450), rng.integers(50, 450)
        corner = np.array([rng.integers(100, 400), rng.integers(100, 400)], dtype=np.float64)
        angle = rng.uniform(-np.pi, np.pi)
        # gym-pusht sets the position before the angle, which then turns the block about its centre of gravity.
        c, s = np.cos(angle), np.sin(angle)
        block = corner + centre - np.array([[c, -s], [s, c]]) @ centre
        state: NDArray[np.float64] = np.array([*agent, *block, angle, 0.0, 0.0])
        if is_free(physics, state):
            return state
    raise RuntimeError(f"found no free start in {TRIES} draws: use a smaller block, or pass options['state']")


def sample_goal(
    rng: np.random.Generator, physics: PushTPhysics, start: NDArray[np.float64], rule: SuccessRule, symmetry: int
) -> NDArray[np.float64]:
    """A goal state (7,) at rest and at moderate distance from ``start``, not yet reached under ``rule``.

    The block moves by 20 to 80 px in any direction and turns by up to 45 degrees, the agent moves by up to 100 px
    per axis. Raises RuntimeError when the surroundings of ``start`` leave no room.
    """
    for _ in range(TRIES):
        heading, length = rng.uniform(-np.pi, np.pi), rng.uniform(*BLOCK_SHIFT)
        goal: NDArray[np.float64] = start.copy()
        goal[:2] = np.clip(start[:2] + rng.uniform(-AGENT_SHIFT, AGENT_SHIFT, 2), AGENT_LOW, AGENT_HIGH)
        goal[2:4] += length * np.cos(heading), length * np.sin(heading)
        goal[4] += rng.uniform(-BLOCK_TURN, BLOCK_TURN)
        goal[5:] = 0.0
        if is_free(physics, goal) and not rule.satisfied(start, goal, symmetry):
            return goal
    raise RuntimeError(f"found no goal near {start.tolist()} in {TRIES} draws: pass options['goal_state']")


def clear_of_block(physics: PushTPhysics, agent: NDArray[np.float64], pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """``agent`` (2,), or the nearest point (2,) of the window at which it just touches the block at ``pose``."""
    obstacle = place(physics.outline, pose).buffer(physics.agent_radius)
    point = Point(agent)
    if not obstacle.contains(point):
        return np.array(agent, dtype=np.float64)
    return np.array(nearest_points(box(0, 0, WINDOW, WINDOW).difference(obstacle), point)[0].coords[0])
