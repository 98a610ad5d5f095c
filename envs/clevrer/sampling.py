"""Random CLEVRER scenes: one moving object, then one after another that is aimed to hit an earlier one."""

from __future__ import annotations

import math
from itertools import product

import numpy as np

from envs.clevrer.camera import REFERENCE
from envs.clevrer.physics import SUBSTEPS, VISIBLE_FRAMES, Trajectory, simulate, speed_before
from envs.clevrer.scene import COLOURS, MATERIALS, MAX_OBJECTS, SHAPES, Scene, SceneObject
from envs.clevrer.shapes import RADIUS, gap

MIN_OBJECTS = 3
MAX_COLLISIONS = 5  # in the visible frames
STAGE = ((70, 70), (410, 260))  # px of the 480 x 320 picture between whose projections objects are sent to meet
EARLY, LATE = (15, VISIBLE_FRAMES), (VISIBLE_FRAMES, 170)  # frames for which a collision is planned,
LATE_SHARE = 0.4  # and how often it is to happen after the visible frames, which is rarely possible
# Share of the scenes that are drawn until they leave something to predict. A third of the others does so by chance,
# which makes seven in ten: CLEVRER asks 14,298 predictive questions about 20,000 videos.
OPEN_SHARE = 0.57
MEETING_SPEED = (0.5, 2.2)  # per second, of a moving object when it hits
START_SPEED = 5.0  # per second, the fastest start
RESTING = 0.35  # share of the objects that wait at rest to be hit
SPREAD = math.radians(50)  # most by which a hit is off the line from centre to centre
LEAST_SEEN = 10  # visible frames in which the camera must see an object
START_GAP = 0.05  # least distance between two objects at the start
TRIES = 40  # per object, before the whole scene is drawn anew

Name = tuple[str, str, str]  # shape, colour, material


def sample_scene(rng: np.random.Generator, n_objects: int | None = None) -> Scene:
    """Draw a scene as CLEVRER's authors describe: each object after the first is aimed at an earlier one.

    All collisions are seen by the camera, 1 to 5 of them in the visible frames; no pair collides twice, hidden frames
    included; no object enters or leaves twice, or is seen in less than 10 visible frames. In about seven of ten scenes
    some, but not all, of the pairs that the last visible frame shows collide in the hidden frames.

    Args:
        rng: where all draws come from; an equal state gives an equal scene.
        n_objects: 3 to 6; drawn evenly if not given.

    Raises:
        ValueError: for another number of objects.
    """
    if n_objects is None:
        n_objects = int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1))
    if not MIN_OBJECTS <= n_objects <= MAX_OBJECTS:
        raise ValueError(f"n_objects must be {MIN_OBJECTS} to {MAX_OBJECTS}, got {n_objects}")
    names = list(product(SHAPES, COLOURS, MATERIALS))
    must_be_open = rng.random() < OPEN_SHARE
    while True:
        chosen = [names[index] for index in rng.choice(len(names), n_objects, replace=False)]
        scene = _assemble(chosen, rng)
        if scene is None:
            continue
        trajectory = simulate(scene)
        happens = any(c.frame < VISIBLE_FRAMES for c in trajectory.collisions)
        if happens and (_is_open(trajectory) or not must_be_open):
            return scene


def _is_open(trajectory: Trajectory) -> bool:
    """Whether some of the pairs that the last visible frame shows collide afterwards, and some do not."""
    shown = {id for id, seen in zip(trajectory.ids, trajectory.inside[VISIBLE_FRAMES - 1], strict=True) if seen}
    later = [c for c in trajectory.collisions if c.frame >= VISIBLE_FRAMES and shown.issuperset(c.ids)]
    return 0 < len(later) < math.comb(len(shown), 2)


def _assemble(names: list[Name], rng: np.random.Generator) -> Scene | None:
    scene = Scene(())
    for name in names:
        grown = _with_another(scene, name, rng)
        if grown is None:
            return None
        scene = grown
    return scene


def _with_another(scene: Scene, name: Name, rng: np.random.Generator) -> Scene | None:
    """The scene with one more object, or None when there seems to be no place for one."""
    before = simulate(scene)
    for _ in range(TRIES):
        item = _aim(before, name, rng)
        if item is None or any(gap(item.pose, other.pose) < START_GAP for other in scene.objects):
            continue
        candidate = Scene((*scene.objects, item))
        if _is_sound(simulate(candidate), item.id):
            return candidate
    return None


def _aim(before: Trajectory, name: Name, rng: np.random.Generator) -> SceneObject | None:
    """An object that meets one of ``before``, or crosses the stage if there is none; None if that takes great speed."""
    frame = int(rng.integers(*(LATE if before.objects and rng.random() < LATE_SHARE else EARLY)))
    resting = bool(before.objects) and rng.random() < RESTING
    if before.objects:
        target = int(rng.integers(len(before.objects)))
        vx, vy, _ = before.velocity[frame, target]
        x, y, _ = before.location[frame, target]
        # It waits before the target, or comes from anywhere; either way the two centres are then a diameter apart.
        side = math.atan2(vy, vx) + rng.uniform(-SPREAD, SPREAD) if resting else rng.uniform(-math.pi, math.pi)
        heading = side + math.pi + rng.uniform(-SPREAD, SPREAD)
        x, y = x + 2 * RADIUS * math.cos(side), y + 2 * RADIUS * math.sin(side)
    else:
        heading = rng.uniform(-math.pi, math.pi)
        x, y = REFERENCE.ground(rng.uniform(*STAGE))
    speed, distance = (0.0, 0.0) if resting else speed_before(rng.uniform(*MEETING_SPEED), frame * SUBSTEPS)
    if speed > START_SPEED:
        return None
    ux, uy = math.cos(heading), math.sin(heading)
    angle = rng.uniform(0, math.pi / 2)
    return SceneObject(
        len(before.objects), *name, (x - distance * ux, y - distance * uy), (speed * ux, speed * uy), angle
    )


def _is_sound(trajectory: Trajectory, newcomer: int) -> bool:
    pairs = [collision.ids for collision in trajectory.collisions]
    visible = sum(collision.frame < VISIBLE_FRAMES for collision in trajectory.collisions)
    if len(set(pairs)) < len(pairs) or visible > MAX_COLLISIONS:
        return False
    if newcomer > 0 and not any(newcomer in ids for ids in pairs):
        return False
    inside = trajectory.inside
    seen_in_part = inside[:VISIBLE_FRAMES].sum(axis=0) < LEAST_SEEN
    comes_back = (inside[1:] & ~inside[:-1]).sum(axis=0) + inside[0] > 1
    return not (seen_in_part | comes_back).any() and all(
        inside[collision.frame, list(collision.ids)].all() for collision in trajectory.collisions
    )
