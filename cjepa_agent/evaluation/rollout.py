"""``task=rollout``: predicted CLEVRER objects against the true ones, in the frames that no video shows.

Slots of ``encoder=state`` are read exactly, those of pixels by a read-out fitted on training scenes, whose errors are
part of the figures (``cjepa_agent.reading.slot_reader``). Where an object is counts from the last observed frame on,
for those objects that the camera sees then and still sees at the frame in question; those without a slot have no place
and are told in number. A collision is predicted where two objects that were apart come nearer than ``CONTACT``; an
object without a slot collides with none.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cjepa_agent.data.video_slots import VideoSlots
from cjepa_agent.encoders.autoencoder import SlotAutoencoder
from cjepa_agent.encoders.clevrer_state import SceneReading, scene_states, true_scene
from cjepa_agent.evaluation.config import EvaluateConfig
from cjepa_agent.evaluation.results import plain_table
from cjepa_agent.files import write_json
from cjepa_agent.paths import cache_folder
from cjepa_agent.provenance import provenance
from cjepa_agent.reading.collisions import PairScore, colliding_pairs
from cjepa_agent.reading.slot_reader import NO_SLOT, objects_of, slot_reader
from envs.clevrer.dataset import Dataset, split_of
from envs.clevrer.physics import Trajectory
from envs.clevrer.questions.facts import Pairs
from envs.clevrer.shapes import RADIUS

CONTACT = 2.5 * RADIUS  # between centres; discs touch at 2 radii, cubes at 2 to 2.8
AHEAD = (1, 8, 16, 32, 52)  # frames after the last observed one


def run(config: EvaluateConfig) -> str:
    """Measure, write ``rollout.json`` to ``config.out``, return the table."""
    slots = VideoSlots(Path(config.slots or cache_folder() / "clevrer_rollout"))
    if "observed" not in slots.identity:
        raise ValueError(f"{slots.folder} holds observed slots; continue them with `python -m cjepa_agent.rollout`")
    slots.require_whole()
    observed, data = int(slots.identity["observed"]), Dataset(Path(config.data or cache_folder() / "clevrer"))
    scenes = [scene for scene in slots.scenes if split_of(scene) == config.split][: config.episodes]
    if not scenes:
        raise ValueError(f"{slots.folder} has no scene of split {config.split!r}")
    reader = slot_reader(SlotAutoencoder.load(slots.folder), slots, data, config.seed)
    errors, copied, scores, held = [], [], [PairScore(), PairScore()], []
    for scene in tqdm(scenes, unit="scene", mininterval=2.0):
        trajectory, video = data.trajectory(scene, slots.frames), slots.read(scene)
        states = scene_states(trajectory, observed)
        holders = reader.holders(video[:observed], states)
        held += [int(holders[id]) != NO_SLOT for id in np.flatnonzero(states[..., 0].any(axis=0))]
        reading = objects_of(reader.read(video), holders)
        own, still = position_errors(trajectory, reading, observed)
        errors.append(own)
        copied.append(still)
        happened = colliding_pairs(trajectory, observed, slots.frames)
        readings = (reading, true_scene(trajectory, slots.frames))
        found = [PairScore.of(predicted_pairs(one, observed), happened) for one in readings]
        scores = [score.plus(more) for score, more in zip(scores, found, strict=True)]
    rows = _rows(np.concatenate(errors, axis=1), np.concatenate(copied, axis=1))
    f1 = {name: score.f1 for name, score in zip(("predicted", "true positions"), scores, strict=True)}
    report = {
        "config": config.record(),
        "slots": slots.identity,
        "scenes": len(scenes),
        "objects": {"seen": len(held), "without_a_slot": held.count(False)},
        "mean_position_error_radii": rows,
        "collision_pairs_f1": f1,
        "provenance": provenance(),
    }
    path = Path(config.out) / "rollout.json"
    write_json(path, report)
    cells = [
        [str(row["frames_ahead"]), f"{row['predicted']:.2f}", f"{row['copied']:.2f}", str(row["objects"])]
        for row in rows
    ]
    table = plain_table(["frames ahead", "error [radii]", "copying [radii]", "objects"], cells)
    pairs = "  ".join(f"{name} {value:.3f}" for name, value in f1.items())
    missing = f"objects without a slot: {held.count(False)} of {len(held)}"
    return f"{table}\n\nF1 of colliding pairs: {pairs}\n{missing}\n\nwritten: {path}"


def position_errors(
    trajectory: Trajectory, reading: SceneReading, observed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances (frames - observed, 6) [radii] from where objects truly are, of the prediction and of the last frame.

    NaN where the camera does not see the object, or did not at the last observed frame, or no slot holds the object.
    """
    truth = scene_states(trajectory, len(reading.presence)).astype(np.float64)
    inside, place = truth[..., 0] > 0, truth[..., 1:3]
    held = ~np.isnan(reading.position[observed - 1, :, 0].numpy())
    counted = inside[observed:] & inside[observed - 1] & held
    guesses = (reading.position.numpy()[observed:], place[observed - 1])
    own, still = (np.linalg.norm(guess - place[observed:], axis=-1) / RADIUS for guess in guesses)
    return np.where(counted, own, np.nan), np.where(counted, still, np.nan)


def predicted_pairs(reading: SceneReading, observed: int) -> Pairs:
    """Pairs of present objects that come nearer than ``CONTACT`` after the last observed frame."""
    place, present = reading.position[observed - 1 :], reading.presence[observed - 1 :] > 0.5
    found = []
    for a, b in combinations(range(place.shape[1]), 2):
        near = ((place[:, a] - place[:, b]).norm(dim=-1) < CONTACT) & present[:, a] & present[:, b]
        if bool(near.any()) and not bool(near[0]):
            found.append(frozenset((a, b)))
    return frozenset(found)


def _rows(own: NDArray[np.float64], still: NDArray[np.float64]) -> list[dict[str, float | int]]:
    return [
        {
            "frames_ahead": ahead,
            "predicted": float(np.nanmean(own[ahead - 1])),
            "copied": float(np.nanmean(still[ahead - 1])),
            "objects": int(np.isfinite(own[ahead - 1]).sum()),
        }
        for ahead in AHEAD
        if ahead <= len(own) and np.isfinite(own[ahead - 1]).any()
    ]
