"""Which objects collide: in truth, and told from where predicted objects are by a read-out that is fitted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from cjepa_agent.encoders.clevrer_state import SceneReading
from envs.clevrer.physics import Trajectory
from envs.clevrer.questions.facts import Pairs, shown_collisions
from envs.clevrer.scene import SHAPES
from envs.clevrer.shapes import RADIUS

NEAR = 8.0  # pairs that stay farther apart, in radii, do not collide
AROUND = 6  # frames before and after the closest approach that motion is measured over
SHARE = 0.5  # predicted probability from which on a pair counts as colliding


def colliding_pairs(trajectory: Trajectory, begin: int, end: int) -> Pairs:
    """Pairs that truly collide in frames ``begin`` to ``end`` - 1, as questions count them."""
    return frozenset(frozenset(c.ids) for c in shown_collisions(trajectory) if begin <= c.frame < end)


class PairScore(NamedTuple):
    """How many pairs were found that collide, found that do not, and missed."""

    found: int = 0
    wrong: int = 0
    missed: int = 0

    @classmethod
    def of(cls, predicted: Pairs, happened: Pairs) -> PairScore:
        """Those of one scene."""
        return cls(len(predicted & happened), len(predicted - happened), len(happened - predicted))

    def plus(self, other: PairScore) -> PairScore:
        """Both together."""
        return PairScore(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 where nothing was found, nor could be."""
        return 2 * self.found / max(1, 2 * self.found + self.wrong + self.missed)


def sum_of(scores: Iterable[PairScore]) -> PairScore:
    """All together."""
    return reduce(PairScore.plus, scores, PairScore())


class PairFeatures(NamedTuple):
    """What the motion of M pairs of objects looks like.

    Attributes:
        pairs: ids, M of them.
        values: (M, 6) smallest distance; distance ``AROUND`` frames earlier and later [radii]; change of velocity
            from before to after, of both objects together, and of the more affected one [radii per frame]; cubes.
            Frames in which one of the two is out of view do not count as frames there.
        frame: (M,) of the smallest distance.
    """

    pairs: list[frozenset[int]]
    values: NDArray[np.float64]
    frame: NDArray[np.int64]


def pair_features(reading: SceneReading, start: int = 0) -> PairFeatures:
    """Features of all pairs that are in view together, at some frame from ``start`` on, less than ``NEAR`` apart.

    Args:
        reading: of one scene, (T, ...).
        start: first frame that is looked at.
    """
    place = reading.position[start:].double().numpy() / RADIUS
    present = reading.presence[start:].numpy() > 0.5
    cube = reading.shape[start:].numpy() == SHAPES.index("cube")
    pairs, values, frames = [], [], []
    for pair in combinations(range(place.shape[1]), 2):
        together = np.flatnonzero(present[:, pair].all(axis=1))
        if not len(together):
            continue
        a, b = (place[together, i] for i in pair)
        distance = np.linalg.norm(a - b, axis=-1)
        closest = int(distance.argmin())
        if distance[closest] > NEAR:
            continue
        before, after = max(closest - AROUND, 0), min(closest + AROUND, len(together) - 1)
        turned = [np.linalg.norm(_velocity(x, closest, after) - _velocity(x, before, closest)) for x in (a, b)]
        cubes = float(cube[together[closest], pair].sum())
        pairs.append(frozenset(pair))
        values.append([distance[closest], distance[before], distance[after], sum(turned), max(turned), cubes])
        frames.append(start + int(together[closest]))
    return PairFeatures(pairs, np.array(values, np.float64).reshape(-1, 6), np.array(frames, np.int64))


def _velocity(place: NDArray[np.float64], begin: int, end: int) -> NDArray[np.float64]:
    """Mean velocity (2,) between two frames; 0 where they are one."""
    moved: NDArray[np.float64] = (place[end] - place[begin]) / max(end - begin, 1)
    return moved


class CollisionReadout:
    """Gradient-boosted trees over ``pair_features``.

    Args:
        features: of scenes to fit on.
        happened: pairs that truly collide in each.
        seed: of the trees.

    Raises:
        ValueError: no scenes, or nothing or everything collides in them.
    """

    def __init__(self, features: Sequence[PairFeatures], happened: Sequence[Pairs], seed: int = 0) -> None:
        labels = [pair in true for found, true in zip(features, happened, strict=True) for pair in found.pairs]
        if len(set(labels)) < 2:
            raise ValueError(
                f"a read-out needs pairs that collide and pairs that do not, got {len(labels)} pairs of which "
                f"{sum(labels)} collide; fit it on more scenes"
            )
        self._trees = HistGradientBoostingClassifier(max_iter=100, random_state=seed)
        self._trees.fit(np.concatenate([found.values for found in features]), labels)

    def __call__(self, features: PairFeatures) -> Mapping[frozenset[int], int]:
        """Pairs that collide, with the frame of their closest approach."""
        if not features.pairs:
            return {}
        chosen = self._trees.predict_proba(features.values)[:, 1] >= SHARE
        return {pair: int(f) for pair, f, c in zip(features.pairs, features.frame, chosen, strict=True) if c}
