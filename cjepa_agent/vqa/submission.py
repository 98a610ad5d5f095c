"""Answers in the form that CLEVRER's evaluation server takes, and which of them are right.

A submission is a list in JSON: ``{"scene_index": 15000, "questions": [...]}`` for each scene, with
``{"question_id": 0, "answer": "cube"}`` for each descriptive question, and
``{"question_id": 9, "choices": [{"choice_id": 0, "answer": "correct"}]}`` for each of the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cjepa_agent.files import read_json
from cjepa_agent.vqa.data import CHOICES
from envs.clevrer.audit import items_of, majority
from envs.clevrer.questions.files import ANSWERS, TYPES, Json
from envs.clevrer.questions.templates import template


@dataclass(frozen=True)
class Graded:
    """A question with the answers that were given to it.

    Attributes:
        scene, question_id: which question.
        type: of ``TYPES``.
        subtype: of a descriptive question, else empty.
        template: the question with every description replaced by "object".
        given: one answer, or one per choice.
        expected: the right ones.
    """

    scene: int
    question_id: int
    type: str
    subtype: str
    template: str
    given: tuple[str, ...]
    expected: tuple[str, ...]

    @property
    def hits(self) -> list[bool]:
        """Which of the answers are right."""
        return [given == expected for given, expected in zip(self.given, self.expected, strict=True)]

    @property
    def right(self) -> bool:
        """Whether all are."""
        return self.given == self.expected


def has_answers(scenes: Sequence[Json]) -> bool:
    """Whether the questions come with their answers."""
    return all("answer" in item for scene in scenes for question in scene["questions"] for item in _items(question))


def submission(scenes: Sequence[Json], answers: Iterator[str]) -> list[Json]:
    """The submission that gives ``answers`` to the questions and choices of ``scenes``, in their order."""
    return [
        {
            "scene_index": scene["scene_index"],
            "questions": [
                {
                    "question_id": question["question_id"],
                    "choices": [{"choice_id": c["choice_id"], "answer": next(answers)} for c in question["choices"]],
                }
                if "choices" in question
                else {"question_id": question["question_id"], "answer": next(answers)}
                for question in scene["questions"]
            ],
        }
        for scene in scenes
    ]


def majority_submission(train: Sequence[Json], scenes: Sequence[Json]) -> list[Json] | None:
    """The answers that are the most frequent for their templates in ``train``: what is right without the video.

    None where ``train`` has no questions of a type that is asked for.
    """
    answers: dict[str, Iterator[str]] = {}
    for type in TYPES:
        fitted, asked = items_of(train, type), items_of(scenes, type)
        if asked and not fitted:
            return None
        answers[type] = iter(majority(fitted)(asked))
    questions = [question for scene in scenes for question in scene["questions"]]
    return submission(
        scenes, (next(answers[question["question_type"]]) for question in questions for _ in _items(question))
    )


def read_submission(path: Path) -> list[Json]:
    """Read a submission; raises FileNotFoundError, or ValueError if it is no list in JSON."""
    entries = read_json(path)
    if not isinstance(entries, list):
        raise ValueError(f"{path} must hold a list of scenes, got {type(entries).__name__}")
    return entries


def grade(scenes: Sequence[Json], entries: Sequence[Json], name: str = "the submission") -> list[Graded]:
    """Every question of ``scenes``, in order, with its answers in a submission; answers to others are ignored.

    Args:
        scenes: questions of a file.
        entries: the submission.
        name: of the submission, for messages.

    Raises:
        ValueError: the submission is not in the right form, lacks an answer, or has one that there is not.
    """
    given = _given(entries, name)
    graded = []
    for scene in scenes:
        for question in scene["questions"]:
            place = (scene["scene_index"], question["question_id"])
            ids = [choice["choice_id"] for choice in question["choices"]] if "choices" in question else [None]
            missing = [id for id in ids if (*place, id) not in given]
            if missing:
                what = "the answer" if missing == [None] else f"answers to the choices {missing}"
                raise ValueError(f"{name} lacks {what} of scene {place[0]}, question {place[1]}")
            graded.append(
                Graded(
                    *place,
                    question["question_type"],
                    question.get("question_subtype", ""),
                    template(question["question"]),
                    tuple(given[(*place, id)] for id in ids),
                    tuple(item["answer"] for item in _items(question)),
                )
            )
    return graded


def _items(question: Json) -> list[Json]:
    """What is to be answered of a question: its choices, or itself."""
    items: list[Json] = question.get("choices", [question])
    return items


def _given(entries: Sequence[Json], name: str) -> Mapping[tuple[Any, Any, Any], str]:
    """Answers by scene, question and choice (None for a descriptive question)."""
    given: dict[tuple[Any, Any, Any], str] = {}
    for number, scene in enumerate(entries):
        try:
            for question in scene["questions"]:
                for item in _items(question):
                    known = CHOICES if "choices" in question else ANSWERS
                    place = (scene["scene_index"], question["question_id"], item.get("choice_id"))
                    if item["answer"] not in known or place in given:
                        raise ValueError(
                            f"{name} has {item['answer']!r} at scene {place[0]}, question {place[1]}, choice "
                            f"{place[2]}; expected one answer there, of {sorted(known)}"
                        )
                    given[place] = item["answer"]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{name} is not in CLEVRER's form at entry {number}: {error!r}") from error
    return given
