"""Submissions to CLEVRER's questions: their form, how they are scored, and the baseline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from clevrer_scenes import small_file

from cjepa_agent.vqa.scores import accuracies, confusion
from cjepa_agent.vqa.submission import grade, majority_submission, read_submission, submission

Json = dict[str, Any]


def two_scenes() -> list[Json]:
    scene = small_file().scenes[0]
    return [scene, {**scene, "scene_index": 3}]


def test_submissions_are_scored_by_hand(tmp_path: Path) -> None:
    entries = [
        {"scene_index": 3, "questions": [
            {"question_id": 1, "choices": [{"choice_id": 1, "answer": "correct"}, {"choice_id": 0, "answer": "wrong"}]},
            {"question_id": 0, "answer": "yes"}]},
        {"scene_index": 0, "questions": [
            {"question_id": 0, "answer": "2"},
            {"question_id": 1, "choices": [{"choice_id": i, "answer": "correct"} for i in (0, 1)]}]},
    ]  # fmt: skip
    (tmp_path / "submission.json").write_text(json.dumps(entries))
    graded = grade(two_scenes(), read_submission(tmp_path / "submission.json"))
    found = {(row.name, row.unit): (row.right, row.number) for row in accuracies(graded) if row.group == "type"}
    assert found == {
        ("descriptive", "question"): (1, 2),
        ("predictive", "question"): (1, 2),
        ("predictive", "choice"): (3, 4),
        ("all", "question"): (2, 4),
    }
    assert confusion(graded) == {
        "count": {"2": {"2": 1, "yes": 1}},
        "predictive": {"correct": {"correct": 2}, "wrong": {"correct": 1, "wrong": 1}},
    }
    assert {row.name for row in accuracies(graded) if row.group == "subtype"} == {"count"}
    assert "how many objects are moving when the video ends" in {row.name for row in accuracies(graded)}


def test_submissions_have_the_official_form() -> None:
    entries = submission(two_scenes()[:1], iter(["2", "wrong", "correct"]))
    assert entries == [
        {"scene_index": 0, "questions": [
            {"question_id": 0, "answer": "2"},
            {"question_id": 1, "choices": [
                {"choice_id": 0, "answer": "wrong"}, {"choice_id": 1, "answer": "correct"}]}]}
    ]  # fmt: skip
    assert all(item.right for item in grade(two_scenes()[:1], entries))


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (["7", "wrong", "correct"], "has '7' at scene 0, question 0"),
        (["2", "wrong", "yes"], "has 'yes' at scene 0, question 1, choice 1"),
    ],
)
def test_answers_that_there_are_not(answers: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grade(two_scenes()[:1], submission(two_scenes()[:1], iter(answers)))


def test_submissions_must_be_whole_and_in_form(tmp_path: Path) -> None:
    entries = submission(two_scenes()[:1], iter(["2", "wrong", "correct"]))
    with pytest.raises(ValueError, match="lacks the answer of scene 3, question 0"):
        grade(two_scenes(), entries)
    with pytest.raises(ValueError, match="one answer there"):
        grade(two_scenes()[:1], entries * 2)
    with pytest.raises(ValueError, match="not in CLEVRER's form at entry"):
        grade(two_scenes(), [{"scene": 0}])
    (tmp_path / "submission.json").write_text("{}")
    with pytest.raises(ValueError, match="must hold a list"):
        read_submission(tmp_path / "submission.json")


def test_the_majority_baseline_answers_by_template() -> None:
    train = [*two_scenes(), *two_scenes()]
    entries = majority_submission(train, two_scenes())
    assert entries
    graded = grade(two_scenes(), entries)
    assert [item.given for item in graded] == [("2",), ("wrong", "correct")] * 2
    descriptive = [{**scene, "questions": scene["questions"][:1]} for scene in train]
    assert majority_submission(descriptive, two_scenes()) is None
