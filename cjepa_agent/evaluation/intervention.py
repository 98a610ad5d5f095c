"""``task=intervention``: what a predictor of videos says would happen without an object, against the physics run again.

Each CLEVRER scene is predicted from its beginning as it is, and once without each object
(``cjepa_agent.video_prediction.resimulated``), and what the removal changes is also put into the observed video
(``cjepa_agent.video_prediction.downstream``); all are compared with the true courses. What slots say of objects, and
which of them holds which object over the observed frames, ``cjepa_agent.reading.slot_reader`` tells: exactly for
``encoder=state``, by a read-out fitted on training scenes for slots of pixels. Errors of that read-out are part of all
figures; how large they are is told beside them.

- Positions: mean error of each other object over the frames that are predicted and in which the camera sees it,
  beside that of answering with the true factual course, as if the removal changed nothing. An object is *influenced*
  if the removal truly moves it by more than a tenth of a radius (``envs.clevrer.events.influences``).
- Collisions: pairs that a read-out finds, which is fitted on factual predictions of training scenes alone: on those
  from the beginning, or, for what goes on from an observed video, on observed videos that are continued; one that is
  fitted on true positions; and the true factual pairs, as if the removal changed nothing. Pairs after removals that
  influence another object are told apart from those after others.
- Questions: counterfactual ones answered from those pairs, and predictive ones from the predicted end of the video,
  by the executor that also makes the true answers. What objects are there is taken from the annotation.
- Objects without a slot, as an encoder of pixels may leave some, are told in number. They have no position, so that
  they are in no mean error, of no source, and their influence on others is all that is scored of them: they cannot be
  taken away, and without one all is predicted as with it. So pairs that they collide in are missed, and questions about
  them are answered from what is left.
- Influence: how well the shift of an object between the two predictions from the beginning, how far two predictions
  from observed frames part (``parting``), and attention tell influenced objects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from cjepa_agent.data.video_slots import VideoSlots
from cjepa_agent.evaluation.config import EvaluateConfig
from cjepa_agent.evaluation.findings import SOURCES, Findings, fit_readouts, measure
from cjepa_agent.evaluation.results import plain_table
from cjepa_agent.files import write_json
from cjepa_agent.intervals import interval_text, scene_mean, share_of
from cjepa_agent.paths import cache_folder
from cjepa_agent.provenance import provenance
from cjepa_agent.reading.collisions import PairScore, sum_of
from cjepa_agent.video_prediction import require_every, require_removal, video_model
from envs.clevrer.dataset import Dataset, split_of

ERRORS = ("predicted", "downstream", "unchanged")  # sources of positions
READOUT_SCENES = 1000  # of training, at most, that read-outs of collisions are fitted on; 300 tell less (docs/LOG.md)
FITTED_ON = {  # what the read-out of collisions has learned from, by where it reads them; always factual courses
    "predicted": "predictions from the beginning",
    "downstream": "observed videos, continued",
    "true positions": "true positions",
}
REMOVALS = {  # by whether another object is influenced
    "after_removal": (True, False),
    "after_removal_with_influence": (True,),
    "after_removal_without_influence": (False,),
}


def run(config: EvaluateConfig) -> str:
    """Measure, write ``intervention.json`` to ``config.out``, return the table."""
    found = evaluate_interventions(config)
    path = Path(config.out) / "intervention.json"
    write_json(path, {"config": config.record(), **found, "provenance": provenance()})
    return f"{table(found)}\n\nwritten: {path}"


def evaluate_interventions(config: EvaluateConfig) -> dict[str, Any]:
    """All that ``intervention.json`` holds but settings and provenance.

    Raises:
        ValueError: slots and model do not belong together, objects cannot be read out of the slots, the split is that
            of the read-out, there is no empty slot for ``removal=empty``, the predictor gives fewer frames per call
            than ``keep``, these are fewer than ``every``, or the data set tells no counterfactuals.
            That the slots are of this data set is not checked.
    """
    if config.split == "train":
        raise ValueError("the read-out is fitted on scenes of the split train; give split=validation or test")
    source = VideoSlots(Path(config.slots or cache_folder() / "clevrer_slots"))
    source.require_whole()
    model = video_model(config.weights, source, config.keep).to(config.device)
    require_removal(model.encoder, model.predictor, config.removal)
    require_every(model, config.every)
    data = Dataset(Path(config.data or cache_folder() / "clevrer"))
    scenes, training = (
        [scene for scene in source.scenes if split_of(scene) == split][:most]
        for split, most in ((config.split, config.episodes), ("train", READOUT_SCENES))
    )
    if not scenes or not training:
        raise ValueError(f"{source.folder} needs scenes of the splits train and {config.split!r}")
    readouts = fit_readouts(model, source, data, training, config.seed)
    found = measure(model, source, data, scenes, readouts, config.removal, config.every)
    answers = {
        kind: {name: [int(right) for _, right in own] for name, own in by.items()} for kind, by in found.answers.items()
    }
    asked = {kind: dict(Counter(scene for scene, _ in by[SOURCES[0]])) for kind, by in found.answers.items()}
    return {
        "slots": source.identity,
        "scenes": len(scenes),
        "readout_scenes": len(training),
        "readouts_fitted_on": FITTED_ON,
        **summary(found, config.seed),
        "answers": answers,
        "asked": asked,
    }


def summary(found: Findings, seed: int) -> dict[str, Any]:
    """What is written of findings; intervals are 95 % ones that take scenes as independent, not their parts."""
    rng = np.random.default_rng(seed)
    errors: dict[str, Any] = {"factual": {"predicted": scene_mean(found.factual, rng)}}
    for name, wanted in (("influenced", True), ("not influenced", False)):
        chosen = [(r, r.counted & (r.influenced == wanted)) for r in found.removed]
        errors[name] = {
            source: scene_mean([(r.scene, float(e)) for r, own in chosen for e in getattr(r, key)[own]], rng)
            for source, key in (("predicted", "error"), ("downstream", "downstream"), ("unchanged", "unchanged"))
        }
    return {
        "objects": {
            "seen": len(found.seen),
            "without_a_slot": found.seen.count(False),
            "reading_error_radii": scene_mean(found.read, rng),
        },
        "position_error_radii": errors,
        "position_error_by_frame": {
            f"{group}, {source}": [float(e / n) if n else None for e, n in course.T]
            for (group, source), course in found.courses.items()
        },
        "collision_pairs": {
            **{
                when: {name: _scores(sum_of(found.pairs[own, name] for own in groups)) for name in SOURCES}
                for when, groups in REMOVALS.items()
            },
            "factual": {name: _scores(score) for name, score in found.factual_pairs.items()},
        },
        "questions": {
            kind: {name: share_of(own) for name, own in by.items() if own} for kind, by in found.answers.items()
        },
        "influence": _influence(found),
    }


def _influence(found: Findings) -> dict[str, Any]:
    truth = np.concatenate([r.influenced[r.counted] for r in found.removed])
    scores = {
        "shift": np.concatenate([r.shift[r.counted] for r in found.removed]),
        "parting": np.concatenate([r.apart[r.counted] for r in found.removed]),
    }
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
    objects, errors = report["objects"], report["position_error_radii"]
    reading = interval_text(objects["reading_error_radii"], 2)
    positions = [[name, *(interval_text(errors[name].get(source), 2) for source in ERRORS)] for name in errors]
    pairs = [
        [when, *(f"{scores[name]['F1']:.3f}" if name in scores else "" for name in SOURCES)]
        for when, scores in report["collision_pairs"].items()
    ]
    questions = [
        [kind, *(interval_text(scores.get(name), 1) for name in SOURCES)]
        for kind, scores in report["questions"].items()
    ]
    influence = [
        [name, f"{value['AUROC']:.3f}", f"{value['average_precision']:.3f}"]
        for name, value in report["influence"].items()
        if isinstance(value, Mapping) and ", layer" not in name
    ]
    return "\n\n".join(
        [
            plain_table(["error of positions [radii]", *ERRORS], positions),
            plain_table(["F1 of colliding pairs", *SOURCES], pairs),
            plain_table(["questions answered rightly [%]", *SOURCES], questions),
            plain_table(
                ["objects", "without a slot", "error of reading observed slots [radii]"],
                [[str(objects["seen"]), str(objects["without_a_slot"]), reading]],
            ),
            plain_table(["influence told by", "AUROC", "average precision"], influence),
        ]
    )


def _scores(score: PairScore) -> dict[str, float]:
    return {"F1": score.f1, **score._asdict()}
