"""CLEVRER physics: contacts, sliding, energy, and what a removal leaves alone."""

import hashlib
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pymunk
import pytest
import shapely
from clevrer_scenes import chain, random_scenes, same_motion
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.clevrer import Scene, SceneObject, Trajectory, simulate
from envs.clevrer.physics import CUBE_INERTIA, DRAG, DT, FRAMES, FRICTION, GRAVITY, SPIN_DECAY, speed_before
from envs.clevrer.shapes import RADIUS, Pose, gap, touch

ROOT = Path(__file__).parents[1]
near = st.floats(-0.6, 0.6)
angle = st.floats(-7, 7)


def ball(id: int, position: tuple, velocity: tuple = (0.0, 0.0)) -> SceneObject:
    return SceneObject(id, "sphere", ("red", "blue", "green")[id], "metal", position, velocity)


def cube(id: int, position: tuple, velocity: tuple = (0.0, 0.0), angle: float = 0.0) -> SceneObject:
    return SceneObject(id, "cube", ("red", "blue", "green")[id], "rubber", position, velocity, angle)


def outline(pose: Pose) -> shapely.Polygon:
    """The same shape by other means."""
    if not pose.cube:
        return shapely.Point(pose.x, pose.y).buffer(RADIUS, quad_segs=256)
    square = shapely.box(-RADIUS, -RADIUS, RADIUS, RADIUS)
    return shapely.affinity.translate(shapely.affinity.rotate(square, pose.angle, use_radians=True), pose.x, pose.y)


@settings(max_examples=150, deadline=None)
@given(st.booleans(), st.booleans(), near, near, angle, angle)
def test_gap_and_touch_agree_with_shapely(a_cube: bool, b_cube: bool, x: float, y: float, a: float, b: float) -> None:
    first, second = Pose(a_cube, 0.1, -0.2, a), Pose(b_cube, 0.1 + x, y - 0.2, b)
    one, other = outline(first), outline(second)
    separation = float(gap(first, second))
    distance = one.distance(other)
    if separation > 1e-4:
        assert 0 < separation <= distance + 1e-4
        assert a_cube and b_cube or separation == pytest.approx(distance, abs=1e-4)
    elif separation < -1e-4:
        assert distance == 0
    assert float(gap(second, first)) == pytest.approx(separation, abs=1e-12)
    if -0.05 < separation < -1e-3:  # as deep as contacts get, and deeper
        normal, point = touch(first, second)
        assert math.hypot(*normal) == pytest.approx(1.0)
        pushed = shapely.affinity.translate(other, *(-1.01 * separation * np.array(normal)))
        assert one.distance(pushed) < 1e-3 and one.intersection(pushed).area < 1e-4, "the normal leads out"
        assert max(one.distance(shapely.Point(point)), other.distance(shapely.Point(point))) < 0.05
        backward, same_point = touch(second, first)
        assert backward == pytest.approx((-normal[0], -normal[1]))
        assert math.dist(point, same_point) < 0.05


def test_gap_works_over_time() -> None:
    x = np.linspace(-1, 1, 9)
    moving, resting = Pose(True, x, 0 * x, x), Pose(True, 0.0, 0.3, 0.5)
    expected = [float(gap(Pose(True, v, 0.0, v), resting)) for v in x]
    assert gap(moving, resting).tolist() == expected


def test_sliding_follows_its_differential_equation() -> None:
    trajectory = simulate(Scene((ball(0, (0, 0), (1.2, -1.6)),)))
    speed = np.linalg.norm(trajectory.velocity[:, 0], axis=-1)
    a, time = FRICTION * GRAVITY, 10 * DT * np.arange(FRAMES)
    phase = np.maximum(math.atan(2 * math.sqrt(DRAG / a)) - math.sqrt(a * DRAG) * time, 0)
    np.testing.assert_allclose(speed, math.sqrt(a / DRAG) * np.tan(phase), atol=2e-3)
    path = np.linalg.norm(trajectory.location[:, 0, :2], axis=-1)
    covered = np.log(np.cos(phase) / math.cos(phase[0])) / DRAG
    np.testing.assert_allclose(path, covered, atol=5e-3)
    assert simulate(Scene((ball(0, (0, 0), (0.5, 0.0)),))).velocity[70:].any() == np.False_, "it stops and stays"


def test_spin_decays_at_a_constant_rate() -> None:
    trajectory = simulate(Scene((cube(0, (0, 0)), ball(1, (-0.5, 0.15), (2.0, 0.0)))))
    spin = trajectory.angular_velocity[:, 0, 2]
    turning = np.flatnonzero(spin)
    assert len(turning) > 3
    assert np.diff(spin[turning[:3]]) == pytest.approx([np.sign(-spin[turning[0]]) * SPIN_DECAY * 10 * DT] * 2)
    assert not spin[turning[-1] + 1 :].any()


def test_speed_before_is_the_way_back() -> None:
    speed, distance = speed_before(1.0, 300)
    trajectory = simulate(Scene((ball(0, (0, 0), (speed, 0.0)),)), frames=31)
    assert trajectory.velocity[30, 0, 0] == pytest.approx(1.0, abs=2e-3)
    assert trajectory.location[30, 0, 0] == pytest.approx(distance, abs=5e-3)


@pytest.mark.parametrize("offset", [0.0, 0.1, 0.25])
@pytest.mark.parametrize("target", [ball(1, (0, 0)), cube(1, (0, 0)), cube(1, (0, 0), angle=0.5)])
def test_bounces_agree_with_pymunk(target: SceneObject, offset: float) -> None:
    space = pymunk.Space()
    ours = [ball(0, (-0.6, offset), (2.0, 0.0)), target]
    bodies = []
    for item in ours:
        body = pymunk.Body(1.0, CUBE_INERTIA if item.shape == "cube" else math.inf)
        body.position, body.velocity, body.angle = item.position, item.velocity, item.angle
        corners = [(RADIUS, RADIUS), (-RADIUS, RADIUS), (-RADIUS, -RADIUS), (RADIUS, -RADIUS)]
        shape = pymunk.Poly(body, corners) if item.shape == "cube" else pymunk.Circle(body, RADIUS)
        shape.elasticity = 0.8
        space.add(body, shape)
        bodies.append(body)
    for _ in range(60):
        space.step(DT)
    trajectory = simulate(Scene(tuple(ours)), frames=7)
    for index, body in enumerate(bodies):
        # The floor, which pymunk's world lacks, takes about 0.1 of a speed and 0.8 of a spin in these frames.
        assert trajectory.velocity[-1, index, :2] == pytest.approx(np.array(body.velocity), abs=0.12)
        assert abs(trajectory.angular_velocity[-1, index, 2]) == pytest.approx(abs(body.angular_velocity), abs=0.9)
        assert trajectory.angular_velocity[-1, index, 2] * body.angular_velocity >= 0


def energy(trajectory: Trajectory) -> np.ndarray:
    return 0.5 * (
        (trajectory.velocity**2).sum(axis=(1, 2)) + CUBE_INERTIA * (trajectory.angular_velocity**2).sum(axis=(1, 2))
    )


def test_energy_never_grows() -> None:
    for _, trajectory in random_scenes():
        assert np.diff(energy(trajectory)).max() <= 1e-12
        alone = 0.5 * (trajectory.velocity**2).sum(axis=2)
        for index, id in enumerate(trajectory.ids):
            hit = [c.frame for c in trajectory.collisions if id in c.ids]
            assert np.diff(alone[: min(hit, default=FRAMES), index]).max(initial=0.0) <= 0, "only a hit makes faster"


def test_collisions_conserve_momentum() -> None:
    items = (ball(0, (-0.6, 0.1), (3.0, 0.4)), cube(1, (0, 0), angle=0.4))
    trajectory = simulate(Scene(items), frames=8)
    assert len(trajectory.collisions) == 1
    lost = trajectory.velocity[0].sum(axis=0) - trajectory.velocity[-1].sum(axis=0)
    assert np.linalg.norm(lost) < 2 * 7 * 10 * DT * (FRICTION * GRAVITY + DRAG * 10)


def affected(removed: int, *trajectories: Trajectory) -> set[int]:
    """Objects that the removed one touches, directly or in a chain, in any of the trajectories."""
    reached: set[int] = set()
    grown = {removed}
    while grown != reached:
        reached = set(grown)
        for trajectory in trajectories:
            for collision in trajectory.collisions:
                if reached & set(collision.ids):
                    grown |= set(collision.ids)
    return reached


def test_removal_leaves_untouched_objects_alone_to_the_last_bit() -> None:
    untouched = 0
    for scene, factual in random_scenes()[:12]:
        for removed in scene.ids:
            without = simulate(scene, {removed: 0})
            assert without.ids == tuple(id for id in scene.ids if id != removed)
            for id in set(scene.ids) - affected(removed, factual, without):
                assert same_motion(factual, without, id)
                untouched += 1
    assert untouched > 5


def test_removal_of_objects_that_touch_nothing() -> None:
    factual = simulate(chain())
    assert [c.ids for c in factual.collisions] == [(0, 1), (1, 2)]
    for removed in (3, 4):
        without = simulate(chain(), {removed: 0})
        assert all(same_motion(factual, without, id) for id in without.ids)
        assert without.collisions == factual.collisions
    assert simulate(chain(), {0: 0}).collisions == ()


def test_removal_at_a_frame_leaves_the_past_alone() -> None:
    factual = simulate(chain())
    hit, second = (collision.frame for collision in factual.collisions)
    without = simulate(chain(), {0: hit})
    assert without.collisions == () and without.present[:, 0].sum() == hit
    assert not without.inside[hit:, 0].any()
    assert all(same_motion(factual, without, id, slice(hit)) for id in (0, 1, 2, 3, 4))
    later = simulate(chain(), {0: hit + 1})
    assert later.collisions == factual.collisions
    assert all(same_motion(factual, later, id) for id in (1, 2, 3, 4))
    assert [c.ids for c in simulate(chain(), {1: second}).collisions] == [(0, 1)]


def test_horizon_does_not_change_what_happens() -> None:
    long, short = simulate(chain()), simulate(chain(), frames=60)
    assert len(short.location) == 60
    assert all(same_motion(long, short, id, slice(60)) for id in long.ids)


@pytest.mark.parametrize("turn", [0.0, 0.01, 0.3, math.pi / 4])
def test_a_cube_that_hits_with_side_and_corner_collides_once(turn: float) -> None:
    trajectory = simulate(Scene((cube(0, (-1, 0.02), (2.0, 0.0)), cube(1, (0, 0), angle=turn))))
    assert [collision.ids for collision in trajectory.collisions] == [(0, 1)]


@pytest.mark.parametrize("frames", [3, 5, 6])
def test_short_simulations_tell_their_collisions(frames: int) -> None:
    scene = Scene((ball(0, (-2 * RADIUS - 0.01, 0), (2.0, 0.0)), ball(1, (0, 0))))
    (collision,) = simulate(scene, frames=frames).collisions
    assert collision.ids == (0, 1) and collision == simulate(scene, frames=60).collisions[0]


def test_two_collisions_of_a_pair_are_two() -> None:
    """The middle one of three comes back from the third, which is faster, to the first."""
    items = (ball(0, (0, 0)), ball(1, (-0.8, 0), (3.0, 0.0)), ball(2, (3.5, 0), (-4.0, 0.0)))
    pairs = [collision.ids for collision in simulate(Scene(items)).collisions]
    assert pairs[:3] == [(0, 1), (0, 2), (0, 1)]


def test_collision_location_and_frame() -> None:
    (collision,) = simulate(Scene((ball(0, (-1.0, 0), (1.4, 0.0)), ball(1, (0, 0))))).collisions
    assert collision.location == pytest.approx((-0.2, 0.0, 0.2), abs=0.01)
    before = simulate(Scene((ball(0, (-1.0, 0), (1.4, 0.0)),)))
    assert before.location[collision.frame, 0, 0] <= -0.4 + 1e-9 <= before.location[collision.frame + 1, 0, 0] + 0.01


@pytest.mark.parametrize(
    ("removed", "frames", "message"),
    [({7: 0}, 10, r"cannot remove objects \[7\]"), ({0: -1}, 10, "frame 0 or later"), ({}, 0, "must be positive")],
)
def test_invalid_arguments(removed: dict, frames: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(chain(), removed, frames)


DIGEST = """
import hashlib, json, numpy as np
from envs.clevrer import sample_scene, simulate
from envs.clevrer.annotation import annotate
rng = np.random.default_rng(5)
scene = sample_scene(rng)
print(hashlib.sha256(json.dumps([annotate(simulate(scene, removed)) for removed in ({}, {1: 0})]).encode()).hexdigest())
"""


def test_replays_are_equal_to_the_last_bit_in_another_process(capsys: pytest.CaptureFixture[str]) -> None:
    exec(DIGEST, {})
    here = capsys.readouterr().out
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    there = subprocess.run(
        [sys.executable, "-c", DIGEST], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert here == there and len(here.strip()) == hashlib.sha256().digest_size * 2
