"""Questions with the slots of the videos that they are about, as batches of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cjepa_agent.data.video_slots import VideoSlots
from cjepa_agent.vqa.intervened import Intervened
from envs.clevrer.physics import VISIBLE_FRAMES
from envs.clevrer.questions.files import TYPES, Json, QuestionFile
from envs.clevrer.questions.programs import Program
from envs.clevrer.questions.vocabulary import encode_answer, encode_question

CHOICES = ("wrong", "correct")  # what the targets 0 and 1 of a choice mean
NOTHING = -1  # in place of the slot that a question takes away
UNKNOWN = -1  # target of a question whose answer the file does not tell


class Reading(NamedTuple):
    """What questions read: frames of a video, or of a prediction without one of its objects.

    Attributes:
        scene: whose video it is.
        removed: slot without which it is predicted, or ``NOTHING``.
        frames: which of them are read.
    """

    scene: int
    removed: int
    frames: range


class Batch(NamedTuple):
    """Questions about V readings with I items: a descriptive question is one item, so is each choice of the others.

    Attributes:
        slots: (V, F, S, D), each reading once.
        words: (I, 32) numbers of words, 0 where there is none.
        owner: (I,) the reading of each item, 0 to V - 1.
        descriptive: (I,) bool.
        target: (I,) number of the answer of a descriptive question, 1 or 0 for a correct or wrong choice, or
            ``UNKNOWN``.
        readings: what the slots are, V of them.
        programs: of the descriptive questions, in their order; None where the file has none.
    """

    slots: Tensor
    words: Tensor
    owner: Tensor
    descriptive: Tensor
    target: Tensor
    readings: tuple[Reading, ...]
    programs: tuple[Program | None, ...]

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        slots, words, owner, descriptive, target = (value.to(device) for value in self[:5])
        return Batch(slots, words, owner, descriptive, target, self.readings, self.programs)


class SlotQuestions:
    """The questions of one file, in its order, and slots of their videos.

    F frames of a video are read at a stride of 128 // F, from a start on that leaves room for all of them. Slots that
    go on after the observed 128 frames do so by a prediction, and predictive questions, which ask what happens then,
    read as many frames later; all other types read observed frames alone (the protocol of SlotFormer,
    arXiv 2210.05861, and of C-JEPA). With ``intervened``, counterfactual questions read the whole prediction without
    the object that they take away, T frames at a stride of T // F, unless no slot holds that object.

    Args:
        file: questions, with or without answers.
        slots: of all the videos that are asked about.
        frames: F.
        intervened: predictions without each object.

    Attributes:
        scene: (Q,) scene of each question.
        type: (Q,) index in ``TYPES``.
        first: (Q + 1,) first item of each question, and the number of all items.
        words: (I, 32) see ``Batch``.
        target: (I,) see ``Batch``.
        of_scene: the questions of each scene.
        most: questions that a scene has at most.
        starts: number of possible starts.
        removed: (Q,) slot that is taken away from what a question reads, or ``NOTHING``.
        programs: of each question, None where the file has none.

    Raises:
        ValueError: the file has flaws, unknown words or nothing in it, or a video has no slots, too few frames, or one
            of its objects taken away.
    """

    def __init__(
        self, file: QuestionFile, slots: VideoSlots, frames: int, intervened: Intervened | None = None
    ) -> None:
        questions = [
            (int(scene["scene_index"]), question) for scene in file.whole().scenes for question in scene["questions"]
        ]
        if not questions:
            raise ValueError(f"{file.path} holds no questions")
        if missing := sorted({scene for scene, _ in questions} - set(slots.scenes)):
            raise ValueError(
                f"{slots.folder} has no slots of {len(missing)} scenes of {file.path}, the first is {missing[0]}; "
                "extract slots of the whole data set"
            )
        slots.require_whole()
        if slots.frames < VISIBLE_FRAMES:
            raise ValueError(f"{slots.folder} has {slots.frames} frames per video, expected {VISIBLE_FRAMES} or more")
        if not 1 <= frames <= VISIBLE_FRAMES:
            raise ValueError(f"frames must be 1 to {VISIBLE_FRAMES}, got {frames}")
        self.slots, self.frames, self.intervened = slots, frames, intervened
        self.stride = VISIBLE_FRAMES // frames
        self.starts = VISIBLE_FRAMES - (frames - 1) * self.stride
        self.scene = np.array([scene for scene, _ in questions])
        order = self.scene.argsort(kind="stable")
        scenes, begins = np.unique(self.scene[order], return_index=True)
        self.of_scene = dict(zip(scenes.tolist(), np.split(order, begins[1:]), strict=True))
        self.most = max(map(len, self.of_scene.values()))
        self.type = np.array([TYPES.index(question["question_type"]) for _, question in questions])
        if intervened and any(s.array.shape[2:] != slots.array.shape[2:] for s in intervened.slots.values()):
            raise ValueError(f"{intervened.folder} and {slots.folder} hold slots of other numbers or widths")
        self.removed = np.full(len(questions), NOTHING)
        if intervened:
            told = [intervened.removed(int(scene["scene_index"]), scene["questions"]) for scene in file.scenes]
            self.removed[:] = [NOTHING if slot is None else slot for scene in told for slot in scene]
        encoded = [_encode(file, scene, question) for scene, question in questions]
        self.first = np.cumsum([0, *(len(words) for words, _ in encoded)])
        self.words = np.concatenate([words for words, _ in encoded])
        self.target = np.concatenate([target for _, target in encoded])
        self.programs: list[Program | None] = [question.get("program") for _, question in questions]

    def __len__(self) -> int:
        return len(self.scene)

    @property
    def descriptive(self) -> NDArray[np.bool_]:
        """(Q,) whether a question is descriptive."""
        chosen: NDArray[np.bool_] = self.type == TYPES.index("descriptive")
        return chosen

    @property
    def without_a_slot(self) -> int:
        """Counterfactual questions that read the observed video in place of a prediction: no slot holds the object."""
        asked = self.type == TYPES.index("counterfactual")
        return int((asked & (self.removed == NOTHING)).sum()) if self.intervened else 0

    def reading(self, question: int, start: int) -> Reading:
        """What a question reads."""
        removed, stride = int(self.removed[question]), self.stride
        if self.intervened and removed != NOTHING:
            stride = self.intervened.frames // self.frames
            start = start * (self.intervened.frames - (self.frames - 1) * stride) // self.starts
        elif TYPES[self.type[question]] == "predictive":
            start += self.slots.frames - VISIBLE_FRAMES
        return Reading(int(self.scene[question]), removed, range(start, start + (self.frames - 1) * stride + 1, stride))

    def read(self, reading: Reading) -> Tensor:
        """The slots (F, S, D) of a reading."""
        slots = self.intervened.slots[reading.removed] if self.intervened and reading.removed != NOTHING else self.slots
        return slots.read(reading.scene, slice(reading.frames.start, reading.frames.stop, reading.frames.step))

    def spread(self, count: int) -> list[int]:
        """Starts that ``count`` readings of every video begin at: the middle one, or some from the first to the last.

        Raises:
            ValueError: there are not as many.
        """
        if not 1 <= count <= self.starts:
            raise ValueError(
                f"{self.frames} frames of {VISIBLE_FRAMES} can be read from {self.starts} starts, got starts={count}"
            )
        return np.linspace(0, self.starts - 1, count).round().astype(int).tolist() if count > 1 else [self.starts // 2]

    def readings(self, questions: NDArray[np.int64], starts: NDArray[np.int64] | None = None) -> list[Reading]:
        """What each of some questions reads.

        Args:
            questions: Q numbers of questions.
            starts: first frames, 0 to ``self.starts - 1``; by default the middle one for all. Predictions without an
                object have another number of starts, of which the one as far along is taken.
        """
        if starts is None:
            starts = np.full(len(questions), self.spread(1))
        return [self.reading(int(q), int(start)) for q, start in zip(questions, starts, strict=True)]

    def batch(self, questions: NDArray[np.int64], readings: Sequence[Reading] | None = None) -> Batch:
        """Some questions and what each of them reads, by default ``self.readings(questions)``."""
        readings = readings or self.readings(questions)
        counts = self.first[questions + 1] - self.first[questions]
        items = np.concatenate([np.arange(self.first[q], self.first[q + 1]) for q in questions])
        place = {reading: number for number, reading in enumerate(dict.fromkeys(readings))}
        return Batch(
            torch.stack([self.read(reading) for reading in place]),
            torch.from_numpy(self.words[items].astype(np.int64)),
            torch.from_numpy(np.repeat([place[reading] for reading in readings], counts)),
            torch.from_numpy(np.repeat(self.descriptive[questions], counts)),
            torch.from_numpy(self.target[items].astype(np.int64)),
            tuple(place),
            tuple(self.programs[q] for q in questions if self.descriptive[q]),
        )

    def right(self, answers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(Q,) whether all items of a question are right, given numbers (I,) as in ``target``."""
        result: NDArray[np.bool_] = np.logical_and.reduceat(answers == self.target, self.first[:-1])
        return result


def _encode(file: QuestionFile, scene: int, question: Json) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """Words (items, 32) and targets (items,) of one question."""
    try:
        if question["question_type"] == "descriptive":
            target = encode_answer(question["answer"]) if "answer" in question else UNKNOWN
            return encode_question(question["question"])[None].astype(np.uint8), np.array([target], np.int8)
        words = [encode_question(question["question"], choice["choice"]) for choice in question["choices"]]
        targets = [CHOICES.index(c["answer"]) if "answer" in c else UNKNOWN for c in question["choices"]]
    except ValueError as error:
        raise ValueError(f"{file.path}: scene {scene}, question {question['question_id']}: {error}") from error
    return np.stack(words).astype(np.uint8), np.array(targets, np.int8)
