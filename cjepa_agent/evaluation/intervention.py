"""``task=intervention``: what a predictor of videos says would happen without an object, against the physics run again.

Each CLEVRER scene is predicted from its beginning (``cjepa_agent.rollout.resimulated``) as it is, and once without each
object; both are compared with the true courses. Slots must be those of ``encoder=state``, which can be read back.

- Positions: mean error of each other object over the frames that are predicted and in which the camera sees it,
  beside that of answering with the true factual course, as if the removal changed nothing. An object is *influenced*
  if the removal truly moves it by more than a tenth of a radius (``envs.clevrer.events.influences``).
- Collisions: pairs that a read-out finds, which is fitted on factual predictions of training scenes alone; the same
  read-out on true positions; and the true factual pairs, as if the removal changed nothing.
- Questions: counterfactual ones answered from those pairs, and predictive ones from the predicted end of the video,
  by the executor that also makes the true answers. What objects are there is taken from the annotation.
- Influence: how well the shift of an object between the two predictions, and attention, tell influenced objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor
from tqdm import tqdm

from cjepa_agent.clevrer_encoder import CLEVRERStateEncoder, SceneReading, read_scene, scene_states
from cjepa_agent.collisions import CollisionReadout, pair_features
from cjepa_agent.evaluation.config import EvaluateConfig
from cjepa_agent.evaluation.results import plain_table, wilson_interval
from cjepa_agent.files import write_json
from cjepa_agent.paths import cache_folder
from cjepa_agent.predictor import MaskedPredictor
from cjepa_agent.provenance import provenance
from cjepa_agent.rollout import Removal, continued, resimulated, video_model
from cjepa_agent.video_slots import VideoSlots
from cjepa_agent.world_model import WorldModel
from envs.clevrer.dataset import Dataset, split_of
from envs.clevrer.events import Event
from envs.clevrer.physics import FRAMES, VISIBLE_FRAMES, Trajectory
from envs.clevrer.questions.executor import judge
from envs.clevrer.questions.facts import Facts, Pairs
from envs.clevrer.questions.files import Json
from envs.clevrer.scene import MAX_OBJECTS
from envs.clevrer.shapes import RADIUS

INFLUENCED = RADIUS / 10  # world units
BATCH = 16  # scenes per call
ATTENTION_EVERY = 8  # frames between the windows in which attention is measured
RESAMPLES = 2000
SOURCES = ("predicted", "unchanged", "true positions")  # where pairs may come from


class Removed(NamedTuple):
    """One object of one scene taken away.

    Attributes:
        scene: its index.
        id: of the object.
        influenced: (6,) bool, whether that truly moves each other object.
        counted: (6,) bool, which other objects have an error.
        error: (6,) of the prediction [radii].
        unchanged: (6,) of the true factual course [radii].
        shift: (6,) largest distance between the two predictions [radii].
    """

    scene: int
    id: int
    influenced: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    error: NDArray[np.float64]
    unchanged: NDArray[np.float64]
    shift: NDArray[np.float64]


@dataclass
class Findings:
    """All that is measured, over scenes.

    Attributes:
        removed: one per scene and object.
        factual: mean error of each object of each scene [radii], with its scene.
        pairs: for each of ``SOURCES`` the counts of pairs found rightly, found wrongly and missed, after removals.
        factual_pairs: the same without removals.
        answers: for each kind of question and source whether each was answered rightly.
        attention: per scene (layers, heads, 6, 6), the query second to last.
        looked_at: scene of each of these.
    """

    removed: list[Removed] = field(default_factory=list)
    factual: list[tuple[int, float]] = field(default_factory=list)
    pairs: dict[str, NDArray[np.int64]] = field(
        default_factory=lambda: {name: np.zeros(3, np.int64) for name in SOURCES}
    )
    factual_pairs: dict[str, NDArray[np.int64]] = field(
        default_factory=lambda: {name: np.zeros(3, np.int64) for name in SOURCES if name != "unchanged"}
    )
    answers: dict[str, dict[str, list[bool]]] = field(
        default_factory=lambda: {kind: {name: [] for name in SOURCES} for kind in ("predictive", "counterfactual")}
    )
    attention: list[NDArray[np.float64]] = field(default_factory=list)
    looked_at: list[int] = field(default_factory=list)


def run(config: EvaluateConfig) -> str:
    """Measure, write ``intervention.json`` to ``config.out``, return the table."""
    found = evaluate_interventions(config)
    path = Path(config.out) / "intervention.json"
    write_json(path, {"config": config.record(), **found, "provenance": provenance()})
    return f"{table(found)}\n\nwritten: {path}"


def evaluate_interventions(config: EvaluateConfig) -> dict[str, Any]:
    """All that ``intervention.json`` holds but settings and provenance.

    Raises:
        ValueError: slots, model and data set do not belong together, or the data set tells no counterfactuals.
    """
    source = VideoSlots(Path(config.slots or cache_folder() / "clevrer_slots"))
    model = video_model(config.weights, source.folder).to(config.device)
    if not isinstance(model.encoder, CLEVRERStateEncoder):
        raise ValueError(f"{source.folder} holds slots of pixels, whose objects cannot be read out; use encoder=state")
    data = Dataset(Path(config.data or cache_folder() / "clevrer"))
    scenes, training = (
        [scene for scene in source.scenes if split_of(scene) == split][: config.episodes]
        for split in (config.split, "train")
    )
    if not scenes or not training:
        raise ValueError(f"{source.folder} needs scenes of the splits train and {config.split!r}")
    readouts = fit_readouts(model, source, data, training, config.seed)
    found = measure(model, source, data, scenes, readouts, config.removal)
    answers = {kind: {name: list(map(int, right)) for name, right in by.items()} for kind, by in found.answers.items()}
    return {
        "slots": source.identity,
        "scenes": len(scenes),
        "readout_scenes": len(training),
        **summary(found, config.seed),
        "answers": answers,
    }


class Readouts(NamedTuple):
    """From predictions, and from true positions."""

    predicted: CollisionReadout
    true: CollisionReadout


def fit_readouts(model: WorldModel, source: VideoSlots, data: Dataset, scenes: Sequence[int], seed: int) -> Readouts:
    """Fitted on factual courses alone: whole ones, and the ends of videos."""
    predicted, true, happened = [], [], []
    for chosen, slots in _batches(source, scenes, "read-out"):
        whole, end = read_scene(resimulated(model, slots, FRAMES)[0]), read_scene(continued(model, slots, FRAMES))
        for row, scene in enumerate(chosen):
            trajectory = data.trajectory(scene)
            truth = _reading(trajectory)
            for reading, start in ((whole, 0), (end, VISIBLE_FRAMES - 1)):
                predicted.append(pair_features(_row(reading, row), start))
                true.append(pair_features(truth, start))
                happened.append(_happened(trajectory, start))
    return Readouts(CollisionReadout(predicted, happened, seed), CollisionReadout(true, happened, seed))


def measure(
    model: WorldModel, source: VideoSlots, data: Dataset, scenes: Sequence[int], readouts: Readouts, how: Removal
) -> Findings:
    """Predict every scene as it is and without each object."""
    found, questions = Findings(), _questions(data, split_of(scenes[0]))
    for chosen, slots in _batches(source, scenes, "scene"):
        truths = [_Truth.of(data, scene) for scene in chosen]
        whole, predicted = resimulated(model, slots, FRAMES)
        factual, end = read_scene(whole), read_scene(continued(model, slots, FRAMES))
        without: list[dict[str, dict[int, Pairs]]] = [{name: {} for name in SOURCES} for _ in chosen]
        for row, truth in enumerate(truths):
            _factual(found, truth, _row(factual, row), predicted[row], readouts)
        for id in range(MAX_OBJECTS):
            rows = [row for row, truth in enumerate(truths) if id in truth.without]
            if not rows:
                continue
            others, foretold = resimulated(model, slots[rows], FRAMES, id, how)
            reading = read_scene(others)
            for place, row in enumerate(rows):
                truth, own = truths[row], _row(reading, place)
                found.removed.append(_removal(truth, id, own, _row(factual, row), foretold[place].numpy()))
                for name, pairs in _pairs(truth, id, own, readouts).items():
                    without[row][name][id] = pairs
                    found.pairs[name] += _confusion(pairs, truth.pairs[id])
        for row, truth in enumerate(truths):
            ends = {
                "predicted": readouts.predicted(pair_features(_row(end, row), VISIBLE_FRAMES - 1)),
                "unchanged": {},
                "true positions": readouts.true(pair_features(truth.reading, VISIBLE_FRAMES - 1)),
            }
            for name in SOURCES:
                unseen = tuple(Event("collision", pair, frame) for pair, frame in ends[name].items())
                facts = replace(truth.facts, without=without[row][name], unseen=unseen)
                for kind, right in _answered(facts, questions.get(truth.scene, [])):
                    found.answers[kind][name].append(right)
        if isinstance(model.predictor, MaskedPredictor):
            found.attention += list(_attention(model, slots, model.predictor))
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
        counterfactuals, trajectory = data.counterfactuals(scene), data.trajectory(scene)
        if counterfactuals is None or len(trajectory.inside) < FRAMES:
            raise ValueError(
                f"{data.folder} does not tell what happens in scene {scene} after the video or without an object; "
                f"only data sets of `python -m cjepa_agent.collect env=clevrer` do"
            )
        return cls(
            scene,
            data.facts(scene),
            trajectory,
            scene_states(trajectory, FRAMES),
            counterfactuals.without,
            counterfactuals.pairs,
        )

    @property
    def reading(self) -> SceneReading:
        """The true factual course, as if read from slots."""
        return _reading(self.trajectory)


def _factual(found: Findings, truth: _Truth, reading: SceneReading, predicted: Tensor, readouts: Readouts) -> None:
    counted = predicted[:VISIBLE_FRAMES, :MAX_OBJECTS].numpy() & (truth.states[:VISIBLE_FRAMES, :, 0] > 0)
    error = _distance(reading, truth.states[:VISIBLE_FRAMES])
    found.factual += [(truth.scene, float(error[own, id].mean())) for id, own in enumerate(counted.T) if own.any()]
    happened = _happened(truth.trajectory, 0)
    found.factual_pairs["predicted"] += _confusion(frozenset(readouts.predicted(pair_features(reading))), happened)
    found.factual_pairs["true positions"] += _confusion(
        frozenset(readouts.true(pair_features(truth.reading))), happened
    )


def _removal(
    truth: _Truth, id: int, reading: SceneReading, factual: SceneReading, predicted: NDArray[np.bool_]
) -> Removed:
    states = scene_states(truth.without[id], FRAMES)[:VISIBLE_FRAMES]
    inside, before = states[..., 0] > 0, truth.states[:VISIBLE_FRAMES]
    counted = predicted[:VISIBLE_FRAMES, :MAX_OBJECTS] & inside
    moved = np.linalg.norm(states[..., 1:3] - before[..., 1:3], axis=-1)
    influenced = np.where(inside | (before[..., 0] > 0), moved, 0).max(axis=0) > INFLUENCED
    influenced[id] = False
    with np.errstate(invalid="ignore"):
        error, unchanged = (
            np.where(counted, x, 0).sum(axis=0) / counted.sum(axis=0)
            for x in (_distance(reading, states), moved / RADIUS)
        )
    apart = np.linalg.norm((reading.position - factual.position).numpy()[:VISIBLE_FRAMES], axis=-1) / RADIUS
    shift = np.where(counted, apart, 0).max(axis=0)
    return Removed(truth.scene, id, influenced, np.asarray(counted.any(axis=0)), error, unchanged, shift)


def _pairs(truth: _Truth, id: int, reading: SceneReading, readouts: Readouts) -> dict[str, Pairs]:
    factual = _happened(truth.trajectory, 0)
    return {
        "predicted": frozenset(pair for pair in readouts.predicted(pair_features(reading)) if id not in pair),
        "unchanged": frozenset(pair for pair in factual if id not in pair),
        "true positions": frozenset(readouts.true(pair_features(_reading(truth.without[id])))),
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
        for scene in data.questions(split).scenes
    }


@torch.no_grad()
def _attention(model: WorldModel, slots: Tensor, predictor: MaskedPredictor) -> NDArray[np.float64]:
    """(B, layers, heads, 6, 6) mean over windows of the video."""
    step, frames = model.config.action_block, predictor.config.history
    begins = range(0, slots.shape[1] - (frames - 1) * step, ATTENTION_EVERY)
    windows = [slots[:, begin : begin + (frames - 1) * step + 1 : step] for begin in begins]
    total = sum(
        predictor.attention(model.latent(window, window.new_empty(*window.shape[:2], 0)), predictor.future)
        for window in windows
    )
    return (torch.as_tensor(total)[..., :MAX_OBJECTS, :MAX_OBJECTS] / len(windows)).double().cpu().numpy()


def summary(found: Findings, seed: int) -> dict[str, Any]:
    """What is written of findings; intervals are 95 % ones, of errors by drawing scenes with replacement."""
    rng = np.random.default_rng(seed)
    errors: dict[str, Any] = {"factual": {"predicted": _mean(found.factual, rng)}}
    for name, wanted in (("influenced", True), ("not influenced", False)):
        chosen = [(r, r.counted & (r.influenced == wanted)) for r in found.removed]
        errors[name] = {
            source: _mean([(r.scene, float(e)) for r, own in chosen for e in getattr(r, key)[own]], rng)
            for source, key in (("predicted", "error"), ("unchanged", "unchanged"))
        }
    return {
        "position_error_radii": errors,
        "collision_pairs": {
            "after_removal": {name: _scores(*counts.tolist()) for name, counts in found.pairs.items()},
            "factual": {name: _scores(*counts.tolist()) for name, counts in found.factual_pairs.items()},
        },
        "questions": {
            kind: {name: _share(right) for name, right in by.items() if right} for kind, by in found.answers.items()
        },
        "influence": _influence(found),
    }


def _influence(found: Findings) -> dict[str, Any]:
    truth = np.concatenate([r.influenced[r.counted] for r in found.removed])
    scores = {"shift": np.concatenate([r.shift[r.counted] for r in found.removed])}
    if found.attention:
        looked = dict(zip(found.looked_at, found.attention, strict=True))
        weights = np.concatenate([looked[r.scene][:, :, r.counted, r.id] for r in found.removed], axis=-1)
        scores["attention, mean"] = weights.mean(axis=(0, 1))
        for layer, heads in enumerate(weights):
            scores |= {f"attention, layer {layer}, head {head}": own for head, own in enumerate(heads)}
    if truth.all() or not truth.any():
        return {}
    return {
        "pairs": len(truth),
        "influenced": float(truth.mean()),
        **{
            name: {
                "AUROC": float(roc_auc_score(truth, s)),
                "average_precision": float(average_precision_score(truth, s)),
            }
            for name, s in scores.items()
        },
    }


def table(report: Mapping[str, Any]) -> str:
    """For people."""
    errors = report["position_error_radii"]
    positions = [
        [name, *(_interval(errors[name].get(source), 2) for source in ("predicted", "unchanged"))] for name in errors
    ]
    pairs = [
        [when, *(f"{scores[name]['F1']:.3f}" if name in scores else "" for name in SOURCES)]
        for when, scores in report["collision_pairs"].items()
    ]
    questions = [
        [kind, *(_interval(scores.get(name), 1) for name in SOURCES)] for kind, scores in report["questions"].items()
    ]
    influence = [
        [name, f"{value['AUROC']:.3f}", f"{value['average_precision']:.3f}"]
        for name, value in report["influence"].items()
        if isinstance(value, Mapping) and ", layer" not in name
    ]
    return "\n\n".join(
        [
            plain_table(["error of positions [radii]", "predicted", "unchanged"], positions),
            plain_table(["F1 of colliding pairs", *SOURCES], pairs),
            plain_table(["questions answered rightly [%]", *SOURCES], questions),
            plain_table(["influence told by", "AUROC", "average precision"], influence),
        ]
    )


def _interval(value: Mapping[str, float] | None, digits: int) -> str:
    if not value:
        return ""
    return f"{value['mean']:.{digits}f} ({value['low']:.{digits}f} to {value['high']:.{digits}f})"


def _mean(values: Sequence[tuple[int, float]], rng: np.random.Generator) -> dict[str, float]:
    """Mean of values, each of a scene, with its interval."""
    if not values:
        return {}
    scenes = np.unique([scene for scene, _ in values], return_inverse=True)[1]
    sums = np.bincount(scenes, [value for _, value in values])
    counts = np.bincount(scenes)
    drawn = rng.integers(0, len(sums), (RESAMPLES, len(sums)))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), (0.025, 0.975))
    return {"mean": float(sums.sum() / counts.sum()), "low": float(low), "high": float(high), "number": len(values)}


def _share(right: Sequence[bool]) -> dict[str, float]:
    low, high = wilson_interval(sum(right), len(right))
    return {"mean": 100 * sum(right) / len(right), "low": 100 * low, "high": 100 * high, "number": len(right)}


def _confusion(predicted: Pairs, happened: Pairs) -> NDArray[np.int64]:
    return np.array([len(predicted & happened), len(predicted - happened), len(happened - predicted)])


def _scores(both: int, only_predicted: int, only_happened: int) -> dict[str, float]:
    return {
        "F1": 2 * both / max(1, 2 * both + only_predicted + only_happened),
        "found": both,
        "wrong": only_predicted,
        "missed": only_happened,
    }


def _batches(source: VideoSlots, scenes: Sequence[int], unit: str) -> Iterator[tuple[list[int], Tensor]]:
    with tqdm(total=len(scenes), unit=unit, mininterval=2.0) as bar:
        for first in range(0, len(scenes), BATCH):
            chosen = list(scenes[first : first + BATCH])
            yield chosen, torch.stack([source.read(scene, slice(0, VISIBLE_FRAMES)) for scene in chosen])
            bar.update(len(chosen))


def _row(reading: SceneReading, row: int) -> SceneReading:
    return SceneReading(*(part[row] for part in reading))


def _reading(trajectory: Trajectory) -> SceneReading:
    return read_scene(CLEVRERStateEncoder().read(torch.from_numpy(scene_states(trajectory, FRAMES))))


def _happened(trajectory: Trajectory, start: int) -> Pairs:
    from cjepa_agent.evaluation.rollout import hidden_pairs

    return hidden_pairs(trajectory, start, FRAMES)


def _distance(reading: SceneReading, states: NDArray[np.float32]) -> NDArray[np.float64]:
    """(frames, 6) between read and true places [radii]."""
    place = reading.position.numpy()[: len(states)].astype(np.float64)
    return np.asarray(np.linalg.norm(place - states[: len(place), :, 1:3], axis=-1) / RADIUS)
