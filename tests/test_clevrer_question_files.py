"""CLEVRER question files and the audit of what they give away."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

from envs.clevrer.audit import audit, distributions, main
from envs.clevrer.dataset import question_file
from envs.clevrer.questions import Candidate, Option, read_questions, scene_entry, write_questions

Json = dict[str, Any]


def scene(index: int = 0) -> Json:
    """A scene with a question of each kind."""
    program = ["objects", "null", "filter_moving", "count"]
    options = (
        Option("The cube and the sphere collide", ["all_events", "unique"], "wrong", ()),
        Option("The cube collides with the cylinder", ["all_events", "unique"], "correct", ()),
    )
    next_event = Candidate("predictive", "What will happen next?", ["unseen_events", "belong_to"], options=options)
    return scene_entry(index, [Candidate("count", "How many objects are moving?", program, "2"), next_event])


def test_entries_have_the_official_form() -> None:
    assert scene(12) == {
        "scene_index": 12,
        "video_filename": "video_00012.mp4",
        "questions": [
            {
                "question_id": 0,
                "question": "How many objects are moving?",
                "question_type": "descriptive",
                "question_subtype": "count",
                "program": ["objects", "null", "filter_moving", "count"],
                "answer": "2",
            },
            {
                "question_id": 1,
                "question": "What will happen next?",
                "question_type": "predictive",
                "program": ["unseen_events", "belong_to"],
                "choices": [
                    {
                        "choice_id": 0,
                        "choice": "The cube and the sphere collide",
                        "program": ["all_events", "unique"],
                        "answer": "wrong",
                    },
                    {
                        "choice_id": 1,
                        "choice": "The cube collides with the cylinder",
                        "program": ["all_events", "unique"],
                        "answer": "correct",
                    },
                ],
            },
        ],
    }


def test_what_is_written_is_read(tmp_path: Path) -> None:
    scenes = [scene(0), scene(1)]
    write_questions(tmp_path, "train", scenes)
    file = read_questions(tmp_path / "train.json")
    assert file.scenes == scenes and not file.problems
    assert [path.name for path in tmp_path.iterdir()] == ["train.json"]


def test_a_test_file_does_not_tell_the_answers(tmp_path: Path) -> None:
    write_questions(tmp_path, "test", [scene()])
    text = (tmp_path / "test.json").read_text()
    assert "program" not in text and "answer" not in text
    file = read_questions(tmp_path / "test.json", answers=False)
    assert not file.problems
    assert [question["question"] for question in file.scenes[0]["questions"]] == [
        "How many objects are moving?",
        "What will happen next?",
    ]
    assert read_questions(tmp_path / "test_answers.json").scenes == [scene()]
    assert len(read_questions(tmp_path / "test.json").problems) == 2


BREAKS = {
    "a question needs question_id": lambda entry: entry["questions"][0].pop("question_id"),
    "question 0: answer must be one of .* got 'six'": lambda entry: entry["questions"][0].update(answer="six"),
    r"a question needs program \(list\), got None": lambda entry: entry["questions"][0].pop("program"),
    "question 1: question_type must be one of": lambda entry: entry["questions"][1].update(question_type="causal"),
    "question 1: choices must be a list": lambda entry: entry["questions"][1].pop("choices"),
    "question 1: choices must be a list that is not empty": lambda entry: entry["questions"][1].update(choices=[]),
    "question 1: a choice needs choice": lambda entry: entry["questions"][1]["choices"][0].pop("choice"),
    "question 1: answer of choice 1 must be correct or wrong": lambda entry: entry["questions"][1]["choices"][1].pop(
        "answer"
    ),
    r"question 0: program with unknown words \['explode'\]": lambda entry: entry["questions"][0].update(
        program=["objects", "explode", "count"]
    ),
    r"question 1: program of choice 1 with unknown words \[3\]": lambda entry: entry["questions"][1]["choices"][
        1
    ].update(program=[3]),
    r"question 0: answer must be one of .* got \['yes'\]": lambda entry: entry["questions"][0].update(answer=["yes"]),
    "a question must be an object, got list": lambda entry: entry["questions"].__setitem__(1, []),
}


@pytest.mark.parametrize("message", BREAKS)
def test_a_broken_question_is_refused_or_reported_and_left_out(tmp_path: Path, message: str) -> None:
    broken = copy.deepcopy(scene(7))
    BREAKS[message](broken)
    with pytest.raises(ValueError, match=f"train.json: scene 7: .*{message}"):
        write_questions(tmp_path, "train", [scene(3), broken])
    assert not list(tmp_path.iterdir())

    path = tmp_path / "train.json"
    path.write_text(json.dumps([scene(3), broken]))
    file = read_questions(path)
    (problem,) = file.problems
    with pytest.raises(ValueError, match=f"train.json: scene 7: .*{message}"):
        raise ValueError(problem)
    assert [len(entry["questions"]) for entry in file.scenes] == [2, 1]


def test_a_broken_scene_is_reported_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps([{"scene_index": "one"}, scene(3)]))
    file = read_questions(path)
    assert file.scenes == [scene(3)]
    assert file.problems == [
        f"{path}: entry 0: a scene needs scene_index (int), got 'one'; the scene is left out",
    ]


def test_a_missing_subtype_is_told_by_the_program(tmp_path: Path) -> None:
    entry = scene()
    del entry["questions"][0]["question_subtype"]
    path = tmp_path / "validation.json"
    path.write_text(json.dumps([entry]))
    assert read_questions(path).scenes == [scene()]


@pytest.mark.parametrize(("text", "message"), [('[{"scene', "not valid JSON"), ("{}", "must hold a list of scenes")])
def test_what_is_no_question_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "train.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"train.json.*{message}"):
        read_questions(path)


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown split 'val'"):
        write_questions(tmp_path, "val", [])


COLOURS = ("red", "blue", "green", "gray")


def guessable(scenes: int, telling: bool, seed: int) -> list[Json]:
    """Scenes whose answers follow from the words, or are tossed."""
    rng = random.Random(seed)
    made = []
    for index in range(scenes):
        colour, other = rng.choice(COLOURS), rng.choice(COLOURS)
        yes = colour in ("red", "blue") if telling else rng.random() < 0.5
        exist = Candidate("exist", f"Are there any moving {colour} cubes?", ["exist"], "yes" if yes else "no")
        options = []
        for named in (colour, other):
            right = named == colour if telling else rng.random() < 0.5
            text = f"the presence of the {named} sphere"
            options.append(Option(text, ["unique"], "correct" if right else "wrong", ()))
        effect = f"the collision between the {colour} cube and the sphere"
        question = f"Which of the following is responsible for {effect}?"
        made.append(
            scene_entry(index, [exist, Candidate("explanatory", question, ["belong_to"], options=tuple(options))])
        )
    return made


def test_the_classifier_finds_what_words_give_away() -> None:
    telling = audit(guessable(150, True, seed=0), guessable(100, True, seed=1))
    assert [(score.type, score.unit, score.number) for score in telling] == [
        ("descriptive", "question", 100),
        ("explanatory", "question", 100),
        ("explanatory", "choice", 200),
    ]
    assert all(score.words > 0.95 for score in telling)
    assert all(score.majority < 0.75 for score in telling)
    assert telling[1].coin == 0.25


def test_the_classifier_finds_nothing_where_nothing_is() -> None:
    tossed = audit(guessable(200, False, seed=0), guessable(200, False, seed=1))
    assert all(
        abs(score.words - (0.25 if score.type != "descriptive" and score.unit == "question" else 0.5)) < 0.12
        for score in tossed
    )


def test_distributions_count_answers_by_subtype() -> None:
    assert distributions([scene(0), scene(1)]) == {"count": {"2": 2}, "predictive": {"correct": 2, "wrong": 2}}


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, seed in (("train", 0), ("val", 1)):
        (tmp_path / f"{split}.json").write_text(json.dumps([*guessable(20, True, seed), {"scene_index": 20}]))
    main([str(tmp_path), "--json", str(tmp_path / "audit.json")])
    printed = capsys.readouterr()
    assert "20 training and 20 validation scenes, 80 questions" in printed.out
    assert "descriptive, per question" in printed.out and "34.7" in printed.out
    assert "val.json: entry 20: a scene needs video_filename" in printed.err
    assert len(json.loads((tmp_path / "audit.json").read_text())["scores"]) == 3


def test_the_command_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "no train questions: expected" in capsys.readouterr().err
    (tmp_path / "questions").mkdir()
    (tmp_path / "questions" / "val.json").write_text("[]")
    assert question_file(tmp_path, "validation") == tmp_path / "questions" / "val.json"
