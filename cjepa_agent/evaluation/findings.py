"""What a predictor of videos says would happen without an object, beside what truly does: raw findings, scene by scene.

``cjepa_agent.evaluation.intervention`` tells what is measured, and sums it up. What is read of slots is put in the
order of objects at once, so that all arrays here are by id.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from cjepa_agent.data.video_slots import VideoSlots
from cjepa_agent.encoders.clevrer_state import SceneReading, scene_states, true_scene
from cjepa_agent.predictors.cjepa import MaskedPredictor
from cjepa_agent.reading.collisions import CollisionReadout, PairFeatures, PairScore, colliding_pairs, pair_features
from cjepa_agent.reading.slot_reader import NO_SLOT, SlotReader, by_object, objects_of, slot_reader
from cjepa_agent.video_prediction import Removal, continued, downstream, expectations, object_slots, resimulated
from cjepa_agent.world_model import WorldModel
from envs.clevrer.dataset import Dataset, facts_of, split_of
from envs.clevrer.events import INFLUENCE, Event
from envs.clevrer.physics import FRAMES, VISIBLE_FRAMES, Trajectory
from envs.clevrer.questions.executor import judge
from envs.clevrer.questions.facts import Facts, Pairs
from envs.clevrer.questions.files import Json
from envs.clevrer.scene import MAX_OBJECTS
from envs.clevrer.shapes import RADIUS

BATCH = 16  # scenes per call
ATTENTION_EVERY = 8  # frames between the windows in which attention is measured
SOURCES = ("predicted", "downstream", "unchanged", "true positions")  # where pairs may come from


class Removed(NamedTuple):
    """One object of one scene taken away.

    Attributes:
        scene: its index.
        id: of the object.
        influenced: (6,) bool, whether that truly moves each other object.
        counted: (6,) bool, which other objects have an error.
        error: (6,) of the prediction from the beginning [radii].
        downstream: (6,) of the observed video with what goes otherwise predicted [radii].
        unchanged: (6,) of the true factual course [radii].
        shift: (6,) largest distance between the predictions from the beginning with and without the object [radii].
        apart: (6,) see ``cjepa_agent.video_prediction.Downstream``.
    """

    scene: int
    id: int
    influenced: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    error: NDArray[np.float64]
    downstream: NDArray[np.float64]
    unchanged: NDArray[np.float64]
    shift: NDArray[np.float64]
    apart: NDArray[np.float64]


@dataclass
class Findings:
    """All that is measured, over scenes.

    Attributes:
        removed: one per scene and object.
        factual: mean error of each object of each scene [radii], with its scene.
        pairs: of each of ``SOURCES``, after removals that truly influence another object, and after others.
        factual_pairs: the same without removals.
        courses: of ``factual``, ``influenced`` and ``not influenced`` objects and of each source of positions
            (``predicted``, ``downstream``, ``unchanged``) the sum of errors [radii] in each frame, and their number,
            (2, 128).
        answers: for each kind of question and source of each question its scene and whether it was answered rightly.
        attention: per scene (layers, heads, 6, 6), the query second to last.
        looked_at: scene of each of these.
        seen: of each object that the camera sees in an observed frame, whether a slot holds it.
        read: mean error of reading the observed slots of each of these that one holds [radii], with its scene.
    """

    removed: list[Removed] = field(default_factory=list)
    factual: list[tuple[int, float]] = field(default_factory=list)
    pairs: defaultdict[tuple[bool, str], PairScore] = field(default_factory=lambda: defaultdict(PairScore))
    factual_pairs: defaultdict[str, PairScore] = field(default_factory=lambda: defaultdict(PairScore))
    courses: defaultdict[tuple[str, str], NDArray[np.float64]] = field(
        default_factory=lambda: defaultdict(lambda: np.zeros((2, VISIBLE_FRAMES)))
    )
    answers: dict[str, dict[str, list[tuple[int, bool]]]] = field(
        default_factory=lambda: {kind: {name: [] for name in SOURCES} for kind in ("predictive", "counterfactual")}
    )
    attention: list[NDArray[np.float64]] = field(default_factory=list)
    looked_at: list[int] = field(default_factory=list)
    seen: list[bool] = field(default_factory=list)
    read: list[tuple[int, float]] = field(default_factory=list)


class Readouts(NamedTuple):
    """What tells objects from slots, and collisions from courses of three kinds.

    Attributes:
        slots: of objects.
        predicted: of collisions in videos that are predicted from their beginning.
        continued: in videos that are observed at first and predicted from some frame on. Their errors are others: a
            read-out of the former takes close passes that are observed for collisions.
        true: in true courses.
    """

    slots: SlotReader
    predicted: CollisionReadout
    continued: CollisionReadout
    true: CollisionReadout


def fit_readouts(model: WorldModel, source: VideoSlots, data: Dataset, scenes: Sequence[int], seed: int) -> Readouts:
    """Those of collisions are fitted on factual courses alone."""
    reader = slot_reader(model, source, data, seed)
    predicted: list[PairFeatures] = []
    ahead: list[PairFeatures] = []
    true, happened = [], []
    for chosen, slots in _batches(model, source, scenes, "read-out"):
        trajectories = [data.trajectory(scene, FRAMES) for scene in chosen]
        holders = [
            reader.holders(video, scene_states(trajectory, VISIBLE_FRAMES))
            for video, trajectory in zip(slots, trajectories, strict=True)
        ]
        whole, _ = _again(model, reader, slots, holders)
        end = _read(reader, continued(model, slots, FRAMES), holders)
        predicted += map(pair_features, whole)
        ahead += map(pair_features, end)
        true += [pair_features(true_scene(trajectory, FRAMES)) for trajectory in trajectories]
        happened += [colliding_pairs(trajectory, 0, FRAMES) for trajectory in trajectories]
    return Readouts(reader, *(CollisionReadout(features, happened, seed) for features in (predicted, ahead, true)))


def measure(
    model: WorldModel,
    source: VideoSlots,
    data: Dataset,
    scenes: Sequence[int],
    readouts: Readouts,
    how: Removal,
    every: int = 0,
) -> Findings:
    """Predict every scene as it is and without each object; ``every`` is that of ``downstream``."""
    found, questions, reader = Findings(), _questions(data, split_of(scenes[0])), readouts.slots
    for chosen, slots in _batches(model, source, scenes, "scene"):
        truths = [_Truth.of(data, scene) for scene in chosen]
        holders = [
            reader.holders(video, truth.states[:VISIBLE_FRAMES]) for video, truth in zip(slots, truths, strict=True)
        ]
        observed = _read(reader, slots, holders)
        factual, predicted = _again(model, reader, slots, holders)
        end = _read(reader, continued(model, slots, FRAMES), holders)
        without: list[dict[int, dict[str, Pairs]]] = [{} for _ in chosen]
        for row, truth in enumerate(truths):
            _reading(found, truth, observed[row], holders[row])
            _factual(found, truth, factual[row], predicted[row], readouts)
        unchanged = np.zeros(MAX_OBJECTS)
        removals = list(_removals(model, reader, slots, holders, truths, how, every))
        removals += [
            _Prediction(row, id, {"predicted": factual[row], "downstream": end[row]}, predicted[row], unchanged)
            for row, truth in enumerate(truths)
            for id in truth.without
            if holders[row][id] == NO_SLOT  # it cannot be taken away, so nothing changes
        ]
        for removal in removals:
            truth, id = truths[removal.row], removal.id
            found.removed.append(_removal(found, truth, removal, factual[removal.row]))
            influential = bool(found.removed[-1].influenced.any())
            without[removal.row][id] = _pairs(truth, id, removal.readings, readouts)
            for name, pairs in without[removal.row][id].items():
                score = found.pairs[influential, name]
                found.pairs[influential, name] = score.plus(PairScore.of(pairs, truth.pairs[id]))
        for row, truth in enumerate(truths):
            # Features of a collision in the first unseen frame need the frame before.
            told = readouts.continued(pair_features(end[row], VISIBLE_FRAMES - 1))
            ends = {
                "predicted": told,
                "downstream": told,
                "unchanged": {},
                "true positions": readouts.true(pair_features(truth.reading, VISIBLE_FRAMES - 1)),
            }
            for name in SOURCES:
                unseen = tuple(Event("collision", pair, frame) for pair, frame in ends[name].items())
                collided = {id: pairs[name] for id, pairs in without[row].items()}
                facts = replace(truth.facts, without=collided, unseen=unseen)
                for kind, right in _answered(facts, questions.get(truth.scene, [])):
                    found.answers[kind][name].append((truth.scene, right))
        if isinstance(model.predictor, MaskedPredictor):
            found.attention += list(_attention(model, slots, model.predictor, holders))
            found.looked_at += chosen
    return found


@dataclass(frozen=True, eq=False)
class _Truth:
    """What truly happens in a scene: states (180, 6, 7), and without each object; the pairs that collide then."""

    scene: int
    facts: Facts
    trajectory: Trajectory
    states: NDArray[np.float32]
    without: Mapping[int, Trajectory]
    pairs: Mapping[int, Pairs]

    @classmethod
    def of(cls, data: Dataset, scene: int) -> _Truth:
        counterfactuals, trajectory = data.counterfactuals(scene), data.trajectory(scene, FRAMES)
        if counterfactuals is None:
            raise ValueError(
                f"{data.folder} does not tell what happens in scene {scene} without an object; "
                f"only data sets of `python -m cjepa_agent.collect env=clevrer` do"
            )
        if counterfactuals.window != FRAMES:
            raise ValueError(
                f"{data.folder} counts collisions before frame {counterfactuals.window} without an object, this scores "
                f"those before frame {FRAMES}; collect with window={FRAMES}, the default"
            )
        facts, states = facts_of(trajectory, counterfactuals), scene_states(trajectory, FRAMES)
        return cls(scene, facts, trajectory, states, counterfactuals.without, counterfactuals.pairs)

    @cached_property
    def reading(self) -> SceneReading:
        """The true factual course, as if read from slots."""
        return true_scene(self.trajectory, FRAMES)

    @cached_property
    def features(self) -> PairFeatures:
        """Of that course."""
        return pair_features(self.reading)

    @cached_property
    def collided(self) -> Pairs:
        """Pairs that collide in that course."""
        return colliding_pairs(self.trajectory, 0, FRAMES)


def _reading(found: Findings, truth: _Truth, observed: SceneReading, holders: Tensor) -> None:
    there = truth.states[:VISIBLE_FRAMES, :, 0] > 0
    error = _distance(observed, truth.states)
    for id in np.flatnonzero(there.any(axis=0)):
        held = bool(holders[id] != NO_SLOT)
        found.seen.append(held)
        if held:
            found.read.append((truth.scene, float(error[there[:, id], id].mean())))


def _factual(
    found: Findings, truth: _Truth, reading: SceneReading, predicted: NDArray[np.bool_], readouts: Readouts
) -> None:
    counted = predicted[:VISIBLE_FRAMES] & (truth.states[:VISIBLE_FRAMES, :, 0] > 0)
    error = _distance(reading, truth.states[:VISIBLE_FRAMES])
    _add(found, "factual", "predicted", error, counted)
    found.factual += [(truth.scene, float(error[own, id].mean())) for id, own in enumerate(counted.T) if own.any()]
    readings = {
        "predicted": readouts.predicted(pair_features(reading)),
        "true positions": readouts.true(truth.features),
    }
    for name, pairs in readings.items():
        score = PairScore.of(frozenset(pairs), truth.collided)
        found.factual_pairs[name] = found.factual_pairs[name].plus(score)


def _add(found: Findings, group: str, source: str, error: NDArray[np.float64], counted: NDArray[np.bool_]) -> None:
    found.courses[group, source] += np.where(counted, error, 0).sum(axis=1), counted.sum(axis=1)


class _Prediction(NamedTuple):
    """What is predicted of one video without one object.

    Attributes:
        row: of the video in its batch.
        id: of the object.
        readings: from the beginning (``predicted``) and ``downstream``.
        predicted: (180, 6) where the one from the beginning is not as observed.
        apart: (6,) see ``cjepa_agent.video_prediction.Downstream``.
    """

    row: int
    id: int
    readings: Mapping[str, SceneReading]
    predicted: NDArray[np.bool_]
    apart: NDArray[np.float64]


def _removals(
    model: WorldModel,
    reader: SlotReader,
    slots: Tensor,
    holders: Sequence[Tensor],
    truths: Sequence[_Truth],
    how: Removal,
    every: int,
) -> Iterator[_Prediction]:
    """Of all objects of some videos that a slot holds; those that the same slot holds are taken away in one call."""
    expected = expectations(model, slots, every)
    for slot in object_slots(model):
        taken = {row: id for row, truth in enumerate(truths) for id in truth.without if holders[row][id] == slot}
        if not taken:
            continue
        rows, own = list(taken), [holders[row] for row in taken]
        given = slots[rows]
        again, predicted = _again(model, reader, given, own, slot, how)
        changed = downstream(model, given, FRAMES, slot, how, reader=reader, every=every, expected=expected[rows])
        after = _read(reader, changed.slots, own)
        for place, (row, id) in enumerate(taken.items()):
            apart = by_object(changed.apart[place].cpu().double(), own[place], -1, 0).numpy()
            yield _Prediction(row, id, {"predicted": again[place], "downstream": after[place]}, predicted[place], apart)


def _removal(found: Findings, truth: _Truth, removal: _Prediction, factual: SceneReading) -> Removed:
    id, readings = removal.id, removal.readings
    states = scene_states(truth.without[id], FRAMES)[:VISIBLE_FRAMES]
    inside, before = states[..., 0] > 0, truth.states[:VISIBLE_FRAMES]
    counted = removal.predicted[:VISIBLE_FRAMES] & inside
    moved = np.linalg.norm(states[..., 1:3] - before[..., 1:3], axis=-1)
    influenced = np.where(inside | (before[..., 0] > 0), moved, 0).max(axis=0) > INFLUENCE
    influenced[id] = False
    errors = {**{name: _distance(own, states) for name, own in readings.items()}, "unchanged": moved / RADIUS}
    for source, each in errors.items():
        _add(found, "influenced", source, each, counted & influenced)
        _add(found, "not influenced", source, each, counted & ~influenced)
    with np.errstate(invalid="ignore"):
        means = {name: np.where(counted, x, 0).sum(axis=0) / counted.sum(axis=0) for name, x in errors.items()}
    between = (readings["predicted"].position - factual.position).numpy()[:VISIBLE_FRAMES]
    shift = np.where(counted, np.linalg.norm(between, axis=-1) / RADIUS, 0).max(axis=0)
    return Removed(
        truth.scene,
        id,
        influenced,
        np.asarray(counted.any(axis=0)),
        means["predicted"],
        means["downstream"],
        means["unchanged"],
        shift,
        removal.apart,
    )


def _pairs(truth: _Truth, id: int, readings: Mapping[str, SceneReading], readouts: Readouts) -> dict[str, Pairs]:
    by = {"predicted": readouts.predicted, "downstream": readouts.continued}
    told = {name: by[name](pair_features(reading)) for name, reading in readings.items()}
    return {
        **{name: frozenset(pair for pair in pairs if id not in pair) for name, pairs in told.items()},
        "unchanged": frozenset(pair for pair in truth.collided if id not in pair),
        "true positions": frozenset(readouts.true(pair_features(true_scene(truth.without[id], FRAMES)))),
    }


def _answered(facts: Facts, questions: Sequence[Json]) -> Iterator[tuple[str, bool]]:
    """Kind, and whether all choices are judged rightly, of predictive and counterfactual questions of a scene."""
    for question in questions:
        right = all(
            judge(facts, choice["program"], question["program"]) == choice["answer"] for choice in question["choices"]
        )
        yield question["question_type"], right


def _questions(data: Dataset, split: str) -> dict[int, list[Json]]:
    return {
        int(scene["scene_index"]): [
            question for question in scene["questions"] if question["question_type"] in ("predictive", "counterfactual")
        ]
        for scene in data.questions(split).whole().scenes
    }


@torch.no_grad()
def _attention(
    model: WorldModel, slots: Tensor, predictor: MaskedPredictor, holders: Sequence[Tensor]
) -> Iterator[NDArray[np.float64]]:
    """Of each video (layers, heads, 6, 6), mean over its windows; 0 for objects without a slot."""
    step, frames = model.config.action_block, predictor.config.history
    begins = range(0, slots.shape[1] - (frames - 1) * step, ATTENTION_EVERY)
    windows = [slots[:, begin : begin + (frames - 1) * step + 1 : step] for begin in begins]
    nothing = slots.new_empty(len(slots), frames + predictor.future - 1, 0)
    total = sum(
        predictor.attention(model.latent(window, nothing[:, :frames]), nothing, future=predictor.future).mean(3)
        for window in windows
    )
    for weights, held in zip(torch.as_tensor(total) / len(windows), holders, strict=True):
        yield by_object(by_object(weights, held, -1, 0), held, -2, 0).double().cpu().numpy()


def _batches(
    model: WorldModel, source: VideoSlots, scenes: Sequence[int], unit: str
) -> Iterator[tuple[list[int], Tensor]]:
    """Some scenes, and their observed slots where the model is."""
    device = next(model.parameters()).device
    with tqdm(total=len(scenes), unit=unit, mininterval=2.0) as bar:
        for first in range(0, len(scenes), BATCH):
            chosen = list(scenes[first : first + BATCH])
            videos = torch.stack([source.read(scene, slice(0, VISIBLE_FRAMES)) for scene in chosen])
            yield chosen, videos.to(device)
            bar.update(len(chosen))


def _again(
    model: WorldModel,
    reader: SlotReader,
    slots: Tensor,
    holders: Sequence[Tensor],
    removed: int | None = None,
    how: Removal = "drop",
) -> tuple[list[SceneReading], list[NDArray[np.bool_]]]:
    """What ``resimulated`` says of the objects of videos, and where (T, 6) it was predicted."""
    made, predicted = resimulated(model, slots, FRAMES, removed, how, reader=reader)
    foretold = [by_object(own, held, -1, 0).numpy() for own, held in zip(predicted.cpu(), holders, strict=True)]
    return _read(reader, made, holders), foretold


def _read(reader: SlotReader, slots: Tensor, holders: Sequence[Tensor]) -> list[SceneReading]:
    """What slots (B, T, S, D) of videos say of their objects."""
    reading = reader.read(slots.cpu())
    return [objects_of(SceneReading(*own), held) for *own, held in zip(*reading, holders, strict=True)]


def _distance(reading: SceneReading, states: NDArray[np.float32]) -> NDArray[np.float64]:
    """(frames, 6) between read and true places [radii]."""
    place = reading.position.numpy()[: len(states)].astype(np.float64)
    return np.asarray(np.linalg.norm(place - states[: len(place), :, 1:3], axis=-1) / RADIUS)
