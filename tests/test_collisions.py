"""Collisions read from where objects are."""

from __future__ import annotations

import pytest
from clevrer_scenes import chain, random_scenes
from perfect_predictor import true_slots

from cjepa_agent.encoders.clevrer_state import read_scene
from cjepa_agent.reading.collisions import CollisionReadout, pair_features
from envs.clevrer import simulate
from envs.clevrer.physics import FRAMES


class TestCollisions:
    def test_features_of_a_hit_and_of_passing_by(self) -> None:
        trajectory = simulate(chain())
        found = pair_features(read_scene(true_slots(trajectory, 180)))
        values = dict(zip(found.pairs, found.values, strict=True))
        frames = dict(zip(found.pairs, found.frame.tolist(), strict=True))
        hit = next(c for c in trajectory.collisions if set(c.ids) == {0, 1})
        distance, before, _, turned, most, cubes = values[frozenset((0, 1))]
        assert abs(frames[frozenset((0, 1))] - hit.frame) <= 2 and distance == pytest.approx(2.0, abs=0.3)
        assert before > distance + 0.5 and turned > 0.1 and most <= turned and cubes == 0
        assert values[frozenset((1, 2))][5] == 1

    def test_pairs_that_are_never_in_view_together_or_never_near_are_left_out(self) -> None:
        reading = read_scene(true_slots(simulate(chain()), 180))
        far = reading.position.clone()
        far[:, 4] = 40.0
        assert all(4 not in pair for pair in pair_features(reading._replace(position=far)).pairs)
        absent = reading.presence.clone()
        absent[:, 1] = 0.0
        assert all(1 not in pair for pair in pair_features(reading._replace(presence=absent)).pairs)

    def test_a_read_out_learns_from_true_courses(self) -> None:
        scenes = [t for _, t in random_scenes()]
        features = [pair_features(read_scene(true_slots(t, FRAMES))) for t in scenes]
        happened = [frozenset(frozenset(c.ids) for c in t.collisions) for t in scenes]
        readout = CollisionReadout(features[:20], happened[:20])
        wrong = sum(len(set(readout(f)) ^ h) for f, h in zip(features[20:], happened[20:], strict=True))
        assert wrong <= 0.3 * sum(len(h) for h in happened[20:])
        again = CollisionReadout(features[:20], happened[:20])
        assert all(readout(f) == again(f) for f in features[20:])

    def test_nothing_to_learn_is_refused(self) -> None:
        features = [pair_features(read_scene(true_slots(simulate(chain()), 180)))]
        with pytest.raises(ValueError, match="fit it on more scenes"):
            CollisionReadout(features, [frozenset()])
