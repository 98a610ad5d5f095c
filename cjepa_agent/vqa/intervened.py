"""Slots that counterfactual questions are about: of the video run again without the object that they take away."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cjepa_agent.autoencoder import SlotAutoencoder
from cjepa_agent.clevrer_encoder import CLEVRERStateEncoder
from cjepa_agent.rollout import WITHOUT
from cjepa_agent.video_slots import VideoSlots
from envs.clevrer.dataset import Dataset
from envs.clevrer.questions.executor import removed_object
from envs.clevrer.questions.facts import Facts
from envs.clevrer.questions.files import Json


class Intervened:
    """Predictions without each object, as ``python -m cjepa_agent.rollout remove=drop`` writes them.

    Args:
        folder: with a folder ``without_<slot>`` for each slot, of slots of ``encoder=state``, whose number is the
            object's id.
        data: the data set, whose annotations tell which object a question takes away.

    Attributes:
        identity: what the predictions were made of, by slot.

    Raises:
        FileNotFoundError: no such predictions there.
        ValueError: they are of pixels, or differ in what they were made of.
    """

    def __init__(self, folder: Path, data: Dataset) -> None:
        self.folder, self.data = folder, data
        found = sorted(folder.glob(f"{WITHOUT}*"))
        if not found:
            raise FileNotFoundError(
                f"{folder} has no predictions without objects; `python -m cjepa_agent.rollout remove=drop` makes them"
            )
        if not isinstance(SlotAutoencoder.load(found[0]).encoder, CLEVRERStateEncoder):
            raise ValueError(f"{folder} holds slots of pixels, of which none is an object for sure; use encoder=state")
        self.slots = {int(path.name.removeprefix(WITHOUT)): VideoSlots(path) for path in found}
        self.identity = {slot: slots.identity for slot, slots in self.slots.items()}
        common = [{k: v for k, v in identity.items() if k != "slot"} for identity in self.identity.values()]
        if any(identity != common[0] for identity in common) or len({s.frames for s in self.slots.values()}) > 1:
            raise ValueError(f"the folders of {folder} were made of different things; make all of them anew: {common}")

    @property
    def frames(self) -> int:
        """Length of the predictions."""
        return next(iter(self.slots.values())).frames

    def removed(self, scene: int, questions: Sequence[Json]) -> list[int | None]:
        """The slot that each question of a scene takes away, None for those that take none.

        Raises:
            ValueError: a program takes nothing away, the scene has no annotation, or no prediction without the object.
        """
        if all(question["question_type"] != "counterfactual" for question in questions):
            return [None] * len(questions)
        facts = Facts.of(self.data.trajectory(scene))
        return [
            self._slot(facts, scene, question) if question["question_type"] == "counterfactual" else None
            for question in questions
        ]

    def _slot(self, facts: Facts, scene: int, question: dict[str, Any]) -> int:
        try:
            slot = removed_object(facts, question["program"])
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"scene {scene}, question {question['question_id']}: which object is taken away is not told: {error}"
            ) from error
        if slot not in self.slots or scene not in self.slots[slot].scenes:
            raise ValueError(
                f"{self.folder} has no prediction of scene {scene} without object {slot}; run the rollout anew"
            )
        return slot
