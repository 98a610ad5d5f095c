"""CLEVRER's question files: a list of scenes, each with its questions, in one JSON file per split.

A test file holds no programs and no answers; ours come with a second file, ``test_answers.json``, that holds all. The
released files are read as they are: what is not as it should be is reported and left out, and the rest is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from envs.clevrer.questions.executor import unknown_tokens
from envs.clevrer.questions.generate import Candidate
from envs.clevrer.questions.vocabulary import ANSWERS_OF
from envs.files import atomic

SPLITS = ("train", "validation", "test")
TYPES = ("descriptive", "explanatory", "predictive", "counterfactual")
ANSWERS = frozenset(answer for answers in ANSWERS_OF.values() for answer in answers)
HIDDEN = ("program", "answer", "question_subtype")  # left out of a test file

Json = dict[str, Any]


@dataclass(frozen=True)
class QuestionFile:
    """What was read: scenes in the official form, and one line about each thing that was left out."""

    path: Path
    scenes: list[Json]
    problems: list[str]

    def whole(self) -> QuestionFile:
        """The same, if nothing was left out, which would count neither in training nor in a score.

        Raises:
            ValueError: something was.
        """
        if self.problems:
            more = f" (and {len(self.problems) - 1} more)" * (len(self.problems) > 1)
            raise ValueError(f"{self.problems[0]}{more}; correct the file first")
        return self

    def first(self, scenes: int | None) -> QuestionFile:
        """The same with the questions about so many of its first scenes; all for None or 0."""
        return replace(self, scenes=self.scenes[: scenes or None])


def scene_entry(scene_index: int, questions: Sequence[Candidate]) -> Json:
    """A scene of a question file, its questions numbered in the given order."""
    return {
        "scene_index": scene_index,
        "video_filename": f"video_{scene_index:05d}.mp4",
        "questions": [_question_entry(number, question) for number, question in enumerate(questions)],
    }


def _question_entry(number: int, question: Candidate) -> Json:
    entry: Json = {"question_id": number, "question": question.text}
    if question.subtype in ANSWERS_OF:
        entry |= {"question_type": "descriptive", "question_subtype": question.subtype}
        return entry | {"program": question.program, "answer": question.answer}
    choices = [
        {"choice_id": index, "choice": option.text, "program": option.program, "answer": option.answer}
        for index, option in enumerate(question.options)
    ]
    return entry | {"question_type": question.subtype, "program": question.program, "choices": choices}


def write_questions(folder: Path, split: str, scenes: Sequence[Json]) -> None:
    """Write ``folder/<split>.json``, for the test split without answers and with ``test_answers.json`` beside it.

    Raises:
        ValueError: for an unknown split, or if a scene is not as the schema has it; nothing is written then.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; expected one of {list(SPLITS)}")
    path = folder / f"{split}.json"
    problems = [problem for scene in scenes for problem in _scene_problems(scene, answers=True)]
    if problems:
        raise ValueError(f"{path}: {problems[0]}" + f" (and {len(problems) - 1} more)" * (len(problems) > 1))
    if split == "test":
        _write(folder / "test_answers.json", scenes)
        scenes = [
            scene | {"questions": [_without_answers(question) for question in scene["questions"]]} for scene in scenes
        ]
    _write(path, scenes)


def _without_answers(entry: Json) -> Json:
    kept = {key: value for key, value in entry.items() if key not in HIDDEN}
    if "choices" in kept:
        kept["choices"] = [_without_answers(choice) for choice in kept["choices"]]
    return kept


def _write(path: Path, scenes: Sequence[Json]) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(scenes))


def read_questions(path: Path, answers: bool = True) -> QuestionFile:
    """Read a question file of ours or a released one.

    A descriptive question without its subtype gets it from its program.

    Args:
        path: the file.
        answers: whether each question must have its program and answer; False for a test file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a list in JSON.
    """
    try:
        data = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON (truncated or another format): {error}") from error
    if not isinstance(data, list):
        raise ValueError(f"{path} must hold a list of scenes, got {type(data).__name__}")
    scenes: list[Json] = []
    problems: list[str] = []
    for place, scene in enumerate(data):
        broken = _entry_problem(scene)
        if broken:
            problems.append(f"{path}: entry {place}: {broken}; the scene is left out")
            continue
        questions = []
        for question in scene["questions"]:
            broken = _question_problem(question, answers)
            if broken:
                problems.append(f"{path}: scene {scene['scene_index']}: {broken}; the question is left out")
            else:
                questions.append(_with_subtype(question))
        scenes.append(scene | {"questions": questions})
    return QuestionFile(path, scenes, problems)


def _with_subtype(question: Json) -> Json:
    if question["question_type"] == "descriptive" and question.get("program"):
        return {"question_subtype": question["program"][-1]} | question
    return question


def _scene_problems(scene: Any, answers: bool) -> Iterator[str]:
    broken = _entry_problem(scene)
    if broken:
        yield broken
        return
    for question in scene["questions"]:
        broken = _question_problem(question, answers)
        if broken:
            yield f"scene {scene['scene_index']}: {broken}"


def _entry_problem(scene: Any) -> str | None:
    return _shape_problem("a scene", scene, {"scene_index": int, "video_filename": str, "questions": list})


def _question_problem(question: Any, answers: bool) -> str | None:
    fields = {"question_id": int, "question": str, "question_type": str} | ({"program": list} if answers else {})
    broken = _shape_problem("a question", question, fields)
    if broken:
        return broken
    name = f"question {question['question_id']}"
    program = question.get("program") or []
    if not isinstance(program, list):
        return f"{name}: program must be a list, got {program!r}"
    if unknown := unknown_tokens(program):
        return f"{name}: program with unknown words {unknown}"
    if question["question_type"] not in TYPES:
        return f"{name}: question_type must be one of {list(TYPES)}, got {question['question_type']!r}"
    if question["question_type"] == "descriptive":
        answer = question.get("answer")
        if answers and not (isinstance(answer, str) and answer in ANSWERS):
            return f"{name}: answer must be one of {sorted(ANSWERS)}, got {answer!r}"
        return None
    if not isinstance(question.get("choices"), list) or not question["choices"]:
        return f"{name}: choices must be a list that is not empty, got {question.get('choices')!r}"
    return next(_choice_problems(name, question["choices"], answers), None)


def _choice_problems(name: str, choices: Iterable[Any], answers: bool) -> Iterator[str]:
    for choice in choices:
        fields = {"choice_id": int, "choice": str} | ({"program": list} if answers else {})
        if broken := _shape_problem("a choice", choice, fields):
            yield f"{name}: {broken}"
            continue
        program = choice.get("program") or []
        if not isinstance(program, list):
            yield f"{name}: program of choice {choice['choice_id']} must be a list, got {program!r}"
        elif unknown := unknown_tokens(program):
            yield f"{name}: program of choice {choice['choice_id']} with unknown words {unknown}"
        elif answers and choice.get("answer") not in ("correct", "wrong"):
            number, answer = choice["choice_id"], choice.get("answer")
            yield f"{name}: answer of choice {number} must be correct or wrong, got {answer!r}"


def _shape_problem(what: str, value: Any, fields: dict[str, type]) -> str | None:
    if not isinstance(value, dict):
        return f"{what} must be an object, got {type(value).__name__}"
    for name, kind in fields.items():
        if not isinstance(value.get(name), kind):
            return f"{what} needs {name} ({kind.__name__}), got {value.get(name)!r}"
    return None
