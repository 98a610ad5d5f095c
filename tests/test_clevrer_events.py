"""Events, causal graphs, influence by removal, and the official annotation format."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from clevrer_scenes import chain, random_scenes, same_motion

from envs.clevrer import CausalGraph, Event, Trajectory, influences, list_events, simulate
from envs.clevrer.annotation import annotate, read_scene, read_trajectory
from envs.clevrer.events import shifts
from envs.clevrer.physics import FRAMES, Collision


def handmade(
    inside: list[str], collisions: list[tuple[int, int, int]], gone: dict[int, int] | None = None
) -> Trajectory:
    """Objects that the camera sees where there is an x, one string each; collisions are (id, id, frame)."""
    seen = np.array([[mark == "x" for mark in marks] for marks in inside]).T
    frames, count = seen.shape
    present = np.array([[frame < (gone or {}).get(id, frames) for id in range(count)] for frame in range(frames)])
    return replace(
        simulate(chain().without(range(count, 5)), frames=frames),
        inside=seen & present,
        present=present,
        collisions=tuple(Collision((a, b), frame, (0.0, 0.0, 0.2)) for a, b, frame in collisions),
    )


def event(kind: str, frame: int, *objects: int) -> Event:
    return Event(kind, frozenset(objects), frame)


def test_events_of_a_handmade_trajectory() -> None:
    trajectory = handmade(["..xxxxx.", "xxxxxxxx", "xxx.....", "xxxxxxx."], [(0, 1, 3), (1, 3, 5)], {3: 7})
    expected = (
        event("in", 2, 0),
        event("collision", 3, 0, 1),
        event("out", 3, 2),
        event("collision", 5, 1, 3),
        event("out", 7, 0),  # and not object 3, which is removed then
    )
    assert list_events(trajectory) == expected
    assert list_events(trajectory, frames=7) == expected[:4]


def test_causal_graph_of_a_handmade_case() -> None:
    events = (
        event("in", 5, 0),  # 0
        event("in", 9, 1),  # 1
        event("collision", 20, 0, 1),  # 2
        event("collision", 30, 1, 2),  # 3
        event("in", 35, 3),  # 4
        event("out", 40, 2),  # 5
        event("out", 50, 0),  # 6
    )
    graph = CausalGraph.of(events)
    assert graph.events == events
    assert [set(parents) for parents in graph.parents] == [set(), set(), {0, 1}, {2}, set(), {3}, {2}]
    assert [set(objects) for objects in graph.objects] == [{0}, {1}, set(), {2}, {3}, set(), set()]
    assert graph.ancestors(5) == {0, 1, 2, 3}
    assert graph.ancestors(6) == {0, 1, 2}
    assert graph.ancestors(4) == frozenset()


def test_parents_come_before_and_share_an_object() -> None:
    for _, trajectory in random_scenes():
        events = list_events(trajectory)
        assert [e.frame for e in events] == sorted(e.frame for e in events)
        graph = CausalGraph.of(events)
        for place, (e, objects, parents) in enumerate(zip(events, graph.objects, graph.parents, strict=True)):
            assert all(parent < place and events[parent].objects & e.objects for parent in parents)
            assert len(objects) + len(parents) >= 1 and objects <= e.objects


def test_influence_follows_the_chain_and_nothing_else() -> None:
    expected = np.zeros((5, 5), dtype=bool)
    expected[[0, 0, 1, 2], [1, 2, 2, 1]] = True
    expected[1, 0] = True  # without 1, object 0 is not slowed down
    found = influences(chain())
    assert found[3:].any() == found[:, 3:].any() == np.False_
    assert (found[expected]).all()
    assert not influences(chain(), threshold=100.0).any()
    moved = shifts(chain())
    assert moved[0, 1] > 0.2 and moved[3, 0] == 0.0 and (np.diag(moved) == 0).all()


def test_influence_needs_to_be_seen() -> None:
    """Until frame 20 nothing has hit anything."""
    assert not shifts(chain(), frames=20).any()


def test_annotation_has_the_official_schema() -> None:
    annotation = annotate(simulate(chain()), scene_index=37)
    assert list(annotation) == ["scene_index", "video_filename", "object_property", "motion_trajectory", "collision"]
    assert (annotation["scene_index"], annotation["video_filename"]) == (37, "video_00037.mp4")
    assert annotation["object_property"][2] == {
        "object_id": 2, "color": "green", "material": "rubber", "shape": "cube",
    }  # fmt: skip
    assert [frame["frame_id"] for frame in annotation["motion_trajectory"]] == list(range(FRAMES))
    for frame in annotation["motion_trajectory"]:
        assert [entry["object_id"] for entry in frame["objects"]] == [0, 1, 2, 3, 4]
        for entry in frame["objects"]:
            assert list(entry)[1:] == ["location", "orientation", "velocity", "angular_velocity", "inside_camera_view"]
            assert all(len(entry[name]) == 3 for name in list(entry)[1:5])
            assert type(entry["inside_camera_view"]) is bool
    assert [collision["object_ids"] for collision in annotation["collision"]] == [[0, 1], [1, 2]]
    assert all(len(c["location"]) == 3 and type(c["frame_id"]) is int for c in annotation["collision"])


def test_annotations_lead_back_to_scene_and_trajectory() -> None:
    for scene, trajectory in random_scenes()[:10]:
        loaded = json.loads(json.dumps(annotate(trajectory)))
        assert read_scene(loaded) == scene
        again = read_trajectory(loaded)
        assert again.collisions == trajectory.collisions and again.objects == trajectory.objects
        assert all(same_motion(again, trajectory, id) for id in scene.ids)
        assert list_events(again) == list_events(trajectory)


def test_annotations_leave_out_what_is_removed_from_the_start() -> None:
    annotation = annotate(simulate(chain(), {1: 0}, frames=40), scene_index=3)
    assert [given["object_id"] for given in annotation["object_property"]] == [0, 2, 3, 4]
    assert len(annotation["motion_trajectory"]) == 40 and annotation["collision"] == []
    assert read_scene(annotation) == chain().without([1])
    with pytest.raises(ValueError, match=r"cannot remove objects \[9\]"):
        simulate(chain(), {9: 0})


def test_quaternions_are_read() -> None:
    annotation = annotate(simulate(chain(), frames=2))
    for frame in annotation["motion_trajectory"]:
        for entry in frame["objects"]:
            half = entry["orientation"][2] / 2
            entry["orientation"] = [0.0, 0.0, np.sin(half), np.cos(half)]
    np.testing.assert_allclose(
        read_trajectory(annotation).orientation, simulate(chain(), frames=2).orientation, atol=1e-12
    )


def test_broken_annotations_are_named() -> None:
    good = annotate(simulate(chain(), frames=2), scene_index=10800)

    def without_a_frame(annotation: dict) -> None:
        annotation["motion_trajectory"][1]["objects"].pop()

    def without_colour(annotation: dict) -> None:
        del annotation["object_property"][0]["color"]

    def without_motion(annotation: dict) -> None:
        annotation["motion_trajectory"] = []

    def with_short_location(annotation: dict) -> None:
        annotation["motion_trajectory"][0]["objects"][0]["location"] = [0.0]

    def with_unknown_location(annotation: dict) -> None:
        annotation["motion_trajectory"][1]["objects"][0]["location"][0] = float("nan")

    def backwards(annotation: dict) -> None:
        annotation["motion_trajectory"].reverse()

    def with_an_object_twice(annotation: dict) -> None:
        annotation["object_property"].append(annotation["object_property"][0])

    def without_objects(annotation: dict) -> None:
        annotation["object_property"] = []

    def with_a_collision(*ids: int, frame: float = 1) -> Callable[[dict], None]:
        collision = {"object_ids": ids, "frame_id": frame, "location": [0.0, 0.0, 0.0]}
        return lambda annotation: annotation.update(collision=[collision])

    sound = copy.deepcopy(good)
    with_a_collision(1, 0)(sound)
    assert read_trajectory(sound).collisions[0].ids == (0, 1)
    damages = [without_a_frame, without_colour, without_motion, with_short_location, with_unknown_location, backwards]
    damages += [with_an_object_twice, without_objects, with_a_collision(0, 99), with_a_collision(0, 1, frame=0.5)]
    damages += [with_a_collision(0), with_a_collision(0, 0), with_a_collision(0, 1, 2)]
    for damage in damages:
        broken = copy.deepcopy(good)
        damage(broken)
        with pytest.raises(ValueError, match="broken annotation of scene 10800"):
            read_trajectory(broken)
    with pytest.raises(ValueError, match="broken annotation of scene None"):
        read_trajectory([])  # type: ignore[arg-type]
