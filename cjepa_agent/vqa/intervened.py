"""Slots that counterfactual questions are about: of the video run again without the object that they take away."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cjepa_agent.data.video_slots import VideoSlots
from cjepa_agent.encoders.autoencoder import SlotAutoencoder
from cjepa_agent.reading.slot_reader import NO_SLOT, exact_reader, slot_reader
from cjepa_agent.rollout import COPY, WITHOUT
from envs.clevrer.dataset import Dataset
from envs.clevrer.questions.executor import removed_object
from envs.clevrer.questions.facts import Facts
from envs.clevrer.questions.files import Json

ROUNDING = 2e-3  # of slots kept in float16


class Intervened:
    """Predictions without each object, as ``python -m cjepa_agent.rollout remove=drop`` writes them.

    Args:
        folder: with a folder ``without_<slot>`` for each slot.
        data: the data set, whose annotations tell which object a question takes away, and which slot holds it
            (``cjepa_agent.reading.slot_reader``).
        observed: slots of the same videos, of which the first 128 frames are observed.

    Attributes:
        identity: what the predictions were made of, by slot.
        reader: of these slots.

    Raises:
        FileNotFoundError: no such predictions there, or no annotation of a scene that a read-out is fitted on.
        ValueError: they differ in what they were made of, or objects cannot be read out of the slots.
    """

    def __init__(self, folder: Path, data: Dataset, observed: VideoSlots) -> None:
        self.folder, self.data, self.observed = folder, data, observed
        found = sorted(path for path in folder.glob(f"{WITHOUT}*") if path.name.removeprefix(WITHOUT).isdecimal())
        if not found:
            raise FileNotFoundError(
                f"{folder} has no predictions without objects; `python -m cjepa_agent.rollout remove=drop` makes them"
            )
        self.slots = {int(path.name.removeprefix(WITHOUT)): VideoSlots(path) for path in found}
        self.identity = {slot: slots.identity for slot, slots in self.slots.items()}
        common = [{k: v for k, v in identity.items() if k != "slot"} for identity in self.identity.values()]
        if any(identity != common[0] for identity in common) or len({s.frames for s in self.slots.values()}) > 1:
            raise ValueError(f"the folders of {folder} were made of different things; make all of them anew: {common}")
        autoencoder = SlotAutoencoder.load(found[0])
        source: Any = common[0].get("slots", {})
        given = observed.identity.get("slots", observed.identity)
        exact = exact_reader(autoencoder.encoder) is not None and source.get("encoder") == given.get("encoder")
        if source != given and not (exact and self._of_these_videos()):
            raise ValueError(
                f"{folder} was predicted from slots made of {source}, {observed.folder} holds slots made of {given}; "
                "give slots and predictions of the same extraction, in which each slot holds the same object"
            )
        self.reader = slot_reader(autoencoder, observed, data)

    def _of_these_videos(self) -> bool:
        """Whether a scene's first frame is the observed one but for what is taken away."""
        removed, predicted = next(iter(self.slots.items()))
        scene = next((scene for scene in predicted.scenes if scene in self.observed.scenes), None)
        if scene is None:
            return False
        kept = [slot for slot in range(predicted.array.shape[2]) if slot != removed]
        before, after = self.observed.read(scene)[0, kept], predicted.read(scene)[0, kept]
        return torch.allclose(before.float(), after.float(), atol=ROUNDING)

    @property
    def frames(self) -> int:
        """Length of the predictions."""
        return next(iter(self.slots.values())).frames

    def require_predictor_of(self, slots: VideoSlots) -> None:
        """Raise ValueError where videos that a predictor continued go with the predictions of another."""
        own, other = (next(iter(self.identity.values())).get("checkpoint"), slots.identity.get("checkpoint"))
        if other not in (None, COPY, own):
            raise ValueError(
                f"{slots.folder} was continued by the predictor {other}, {self.folder} was made by {own}; "
                "give rollouts of one checkpoint"
            )

    def removed(self, scene: int, questions: Sequence[Json]) -> list[int | None]:
        """The slot that each question of a scene takes away, None for those that take none.

        Nothing can be taken away either where no slot holds the object; the question then is about the video as it is.

        Raises:
            FileNotFoundError: the scene has no annotation.
            ValueError: a program takes nothing away, or there is no prediction without the object.
        """
        if all(question["question_type"] != "counterfactual" for question in questions):
            return [None] * len(questions)
        trajectory = self.data.trajectory(scene)
        facts, holders = Facts.of(trajectory), self.reader.holders_in(self.observed, scene, trajectory)
        return [
            self._slot(facts, holders, scene, question) if question["question_type"] == "counterfactual" else None
            for question in questions
        ]

    def _slot(self, facts: Facts, holders: Tensor, scene: int, question: dict[str, Any]) -> int | None:
        try:
            slot = int(holders[removed_object(facts, question["program"])])
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"scene {scene}, question {question['question_id']}: which object is taken away is not told: {error}"
            ) from error
        if slot == NO_SLOT:
            return None
        if slot not in self.slots or scene not in self.slots[slot].scenes:
            raise ValueError(
                f"{self.folder} has no prediction of scene {scene} without slot {slot}; run the rollout anew"
            )
        return slot
