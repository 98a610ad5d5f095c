"""Scenes: what they refuse, and what random ones keep to."""

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from clevrer_scenes import chain, random_scenes
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.clevrer import Scene, SceneObject, sample_scene
from envs.clevrer.physics import FRAMES, VISIBLE_FRAMES
from envs.clevrer.scene import COLOURS, MATERIALS, SHAPES
from envs.clevrer.shapes import gap

coordinate = st.floats(-50, 50)
objects = st.builds(
    SceneObject,
    st.integers(0, 5),
    st.sampled_from(SHAPES),
    st.sampled_from(COLOURS),
    st.sampled_from(MATERIALS),
    st.tuples(coordinate, coordinate),
    st.tuples(st.floats(-7, 7), st.floats(-7, 7)),
    st.floats(-10, 10),
)
RED = SceneObject(0, "sphere", "red", "metal", (0.0, 0.0))
BLUE = SceneObject(1, "cube", "blue", "metal", (0.0, 1.0))


@settings(max_examples=100, deadline=None)
@given(st.lists(objects, max_size=8))
def test_a_scene_is_valid_or_says_why_not(items: list[SceneObject]) -> None:
    reasons = [
        (len(items) > 6, "at most 6"),
        (len({item.id for item in items}) < len(items), "two objects have the id"),
        (len({item.phrase for item in items}) < len(items), "are both a"),
        (any(gap(a.pose, b.pose) < 0 for a in items for b in items if a is not b), "overlap"),
    ]
    expected = [message for holds, message in reasons if holds]
    if expected:
        with pytest.raises(ValueError, match="|".join(expected)):
            Scene(tuple(items))
    else:
        scene = Scene(tuple(items))
        assert scene.ids == tuple(item.id for item in items)
        assert scene.without(scene.ids[:1]).objects == tuple(items[1:])


@settings(deadline=None)
@given(st.floats().filter(lambda value: not abs(value) <= 50), st.booleans())
def test_positions_are_finite_and_near(value: float, first: bool) -> None:
    with pytest.raises(ValueError, match="position of object 0 must be 2 finite"):
        replace(RED, position=(value, 0.0) if first else (0.0, value))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "orange"}, "unknown colour 'orange' of object 0; expected one of.*'cyan'"),
        ({"shape": "cone"}, "unknown shape 'cone'.*'cylinder'"),
        ({"material": ["metal"]}, "unknown material"),
        ({"id": 6}, "from 0 to 5, got 6"),
        ({"id": True}, "from 0 to 5, got True"),
        ({"id": 1.0}, "from 0 to 5, got 1.0"),
        ({"position": (0.0,)}, "position of object 0 must be 2"),
        ({"position": "ab"}, "position of object 0 must be 2"),
        ({"position": None}, "position of object 0 must be 2"),
        ({"velocity": (0.0, math.nan)}, "velocity of object 0 must be 2"),
        ({"velocity": (8.0, 8.0)}, "must not be faster than 10"),
        ({"angle": math.inf}, "angle of object 0 must be 1"),
        ({"angle": "north"}, "angle of object 0 must be 1"),
    ],
)
def test_invalid_objects(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(RED, **changes)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (replace(BLUE, position=(0.3, 0.0)), "objects 0 and 1 overlap.*move them apart"),
        (replace(BLUE, position=(0.42, 0.0), angle=math.pi / 4), "overlap"),
        (replace(BLUE, id=0), "two objects have the id 0"),
        (replace(RED, id=1, position=(0.0, 1.0)), "both a red metal sphere"),
        ("blue cube", "made of SceneObject"),
    ],
)
def test_invalid_scenes(other: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scene((RED, other))  # type: ignore[arg-type]


def test_corners_that_just_miss_do_not_overlap() -> None:
    Scene((RED, replace(BLUE, position=(0.36, 0.36))))
    Scene((RED, replace(BLUE, position=(0.42, 0.0))))


def test_removing_an_absent_object() -> None:
    with pytest.raises(ValueError, match=r"cannot remove objects \[5\]: the scene has \[0, 1\]"):
        Scene((RED, BLUE)).without([1, 5])


def test_perturbed_scenes_are_almost_alike() -> None:
    scene = chain()
    moved = scene.perturbed(np.random.default_rng(0))
    for before, after in zip(scene.objects, moved.objects, strict=True):
        assert 0 < math.dist(before.position, after.position) < 1e-3
        assert math.dist(before.velocity, after.velocity) <= 0.005 * math.hypot(*before.velocity)
        assert replace(after, position=before.position, velocity=before.velocity) == before


def test_random_scenes_keep_to_the_rules() -> None:
    for scene, trajectory in random_scenes():
        assert 3 <= len(scene.objects) <= 6
        assert len({item.phrase for item in scene.objects}) == len(scene.objects)
        pairs = [collision.ids for collision in trajectory.collisions]
        assert len(set(pairs)) == len(pairs)
        assert 1 <= sum(collision.frame < VISIBLE_FRAMES for collision in trajectory.collisions) <= 5
        inside = trajectory.inside
        assert (inside[:VISIBLE_FRAMES].sum(axis=0) >= 10).all()
        assert all(inside[collision.frame, list(collision.ids)].all() for collision in trajectory.collisions)
        assert (np.diff(inside.astype(int), axis=0) == 1).sum(axis=0).max() <= 1


def test_most_random_scenes_leave_something_to_predict() -> None:
    """About seven in ten, as many as CLEVRER's videos have a predictive question; by chance it would be a third."""
    count = 0
    for scene, trajectory in random_scenes():
        last = trajectory.inside[VISIBLE_FRAMES - 1]
        shown = {id for id, inside in zip(scene.ids, last, strict=True) if inside}
        pairs = {frozenset(pair) for pair in combinations(shown, 2)}
        later = {frozenset(c.ids) for c in trajectory.collisions if c.frame >= VISIBLE_FRAMES}
        count += bool(pairs & later and pairs - later)
    assert 0.5 < count / len(random_scenes()) < 0.9


def test_random_scenes_vary() -> None:
    scenes = random_scenes()
    assert {len(scene.objects) for scene, _ in scenes} == {3, 4, 5, 6}
    frames = np.array([collision.frame for _, trajectory in scenes for collision in trajectory.collisions])
    assert frames.min() < 40 and VISIBLE_FRAMES <= frames.max() < FRAMES
    inside = np.concatenate([trajectory.inside[0] for _, trajectory in scenes])
    resting = np.array([not any(item.velocity) for scene, _ in scenes for item in scene.objects])
    assert 0.1 < inside.mean() < 0.9 and 0.05 < resting.mean() < 0.6


def test_random_scenes_come_from_their_generator() -> None:
    first, again, other = (sample_scene(np.random.default_rng(seed), 3) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("count", [0, 2, 7])
def test_random_scenes_have_three_to_six_objects(count: int) -> None:
    with pytest.raises(ValueError, match=f"3 to 6, got {count}"):
        sample_scene(np.random.default_rng(0), count)
