"""``task=vqa``: answers to CLEVRER's questions, per question and per choice, beside what is right without the video."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cjepa_agent.data.video_slots import VideoSlots
from cjepa_agent.evaluation.config import EvaluateConfig
from cjepa_agent.evaluation.report import write_page
from cjepa_agent.evaluation.results import plain_table
from cjepa_agent.evaluation.vqa_examples import write_examples
from cjepa_agent.files import read_json, write_json
from cjepa_agent.intervals import paired_difference, points_text
from cjepa_agent.paths import cache_folder
from cjepa_agent.provenance import provenance
from cjepa_agent.vqa.answerer import predict
from cjepa_agent.vqa.checkpoint import CONFIG, find, load
from cjepa_agent.vqa.data import CHOICES, SlotQuestions
from cjepa_agent.vqa.intervened import Intervened
from cjepa_agent.vqa.scores import accuracies, confusion, table
from cjepa_agent.vqa.submission import Graded, grade, has_answers, majority_submission, read_submission, submission
from envs.clevrer.dataset import Dataset
from envs.clevrer.questions.files import TYPES, Json, QuestionFile
from envs.clevrer.questions.vocabulary import ANSWER_VOCABULARY
from envs.files import atomic


def run(config: EvaluateConfig) -> str:
    """Answer or read answers, score them, write files to ``config.out``, return the table.

    Written are ``vqa_submission.json`` (a model's answers, in CLEVRER's form) and, where the right answers are known,
    ``vqa.json`` (accuracies, confusions), ``vqa.csv`` (a line per question or choice) and ``vqa.html`` (the table,
    examples).
    """
    out = Path(config.out)
    data = Dataset(Path(config.data or cache_folder() / "clevrer"))
    file = data.questions(config.split).whole().first(config.episodes)
    numbers = [
        [scene["scene_index"], question["question_id"]] for scene in file.scenes for question in scene["questions"]
    ]
    texts = [
        [question["question"], *(choice["choice"] for choice in question.get("choices", ()))]
        for scene in file.scenes
        for question in scene["questions"]
    ]
    asked = {name: _digest(values) for name, values in (("asked", numbers), ("texts", texts))}
    other = other_answers(Path(config.against), asked) if config.against else None
    # Before the answers, which take long: the training questions may have flaws.
    baseline = majority_baseline(data, file.scenes) if has_answers(file.scenes) else None
    examinee = None if config.submission else Examinee(config, data, file)
    entries = examinee.submission() if examinee else read_submission(Path(config.submission))
    written = []
    if examinee:
        written.append(out / "vqa_submission.json")
        write_json(written[0], entries)
    if not has_answers(file.scenes):
        if not examinee:
            raise ValueError(f"{file.path} tells no answers to score {config.submission} by")
        return f"{file.path} tells no answers; nothing to score\n\n{_listed(written)}"
    graded = grade(file.scenes, entries, config.submission or "the submission")
    rows = accuracies(graded, baseline)
    header, cells = table(rows)
    answers = right_by_type(graded)
    against = compared(graded, other, config.seed) if other else {}
    report = {
        "config": config.record(),
        "model": examinee.record() if examinee else None,
        "accuracy": [row.summary() for row in rows],
        "against": against,
        "confusion": confusion(graded),
        **asked,
        "right": answers,
        "provenance": provenance(),
    }
    write_json(out / "vqa.json", report)
    write_csv(out / "vqa.csv", file.scenes, graded)
    media = write_examples(out, data, examinee.model, examinee.questions, file.scenes, graded) if examinee else []
    details = {name: report[name] for name in ("confusion", "config", "model", "provenance")}
    page = write_page(out / "vqa.html", f"CLEVRER questions, {config.split}", header, cells, media, details)
    tables = [plain_table(header, cells)]
    if against:
        differences = [[kind, points_text(difference)] for kind, difference in against.items()]
        tables.append(plain_table(["questions", f"points against {config.against}"], differences))
    return "\n\n".join([*tables, _listed([*written, out / "vqa.json", out / "vqa.csv", page])])


def right_by_type(graded: Sequence[Graded]) -> dict[str, str]:
    """For each type of question a 1 for each that is answered right, else a 0, in the order of the file."""
    return {kind: "".join(str(int(item.right)) for item in graded if item.type == kind) for kind in TYPES}


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def other_answers(path: Path, asked: Mapping[str, str]) -> Mapping[str, Any]:
    """Another ``vqa.json``, to be compared with, of the questions with the digests ``asked`` of numbers and texts.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it tells no single answers, or those to other questions.
    """
    other = read_json(path)
    if not isinstance(other, dict) or not {"asked", "right"} <= other.keys():
        raise ValueError(f"{path} tells no single answers; against= takes the vqa.json of another evaluation")
    if any(other.get(name, value) != value for name, value in asked.items()):  # older files have no ``texts``
        raise ValueError(
            f"{path} holds no answers to the same questions; evaluate both on the same data, split, episodes"
        )
    return other


def compared(graded: Sequence[Graded], other: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Difference from other answers, in points, by type; paired by question, with intervals of scenes."""
    differences = {}
    for kind in TYPES:
        if own := [item for item in graded if item.type == kind]:
            right, before = [item.right for item in own], list(map(int, other["right"][kind]))
            differences[kind] = paired_difference(right, before, seed, [item.scene for item in own])
    return differences


def majority_baseline(data: Dataset, scenes: Sequence[Json]) -> list[Graded] | None:
    """The answers of the majority per template of the training questions, None without those."""
    try:
        entries = majority_submission(data.questions("train").whole().scenes, scenes)
    except FileNotFoundError:
        return None
    return grade(scenes, entries) if entries else None


class Examinee:
    """A trained model with the questions it is asked.

    Args:
        config: its ``weights``, ``slots``, ``intervened``, ``starts`` and ``device`` are read.
        data: the data set that they are of.
        file: the questions.

    Raises:
        FileNotFoundError: weights or slots are missing.
        ValueError: weights, slots and questions do not fit.
    """

    def __init__(self, config: EvaluateConfig, data: Dataset, file: QuestionFile) -> None:
        self.folder, self.scenes = find(config.weights), file.scenes
        self.model = load(self.folder).to(config.device)
        self.slots = VideoSlots(Path(config.slots or cache_folder() / "clevrer_slots"))
        found, expected = self.slots.array.shape[2:], (self.model.n_slots, self.model.slot_dim)
        if found != expected:
            raise ValueError(
                f"{self.slots.folder} holds slots (S, D) {found}, but {self.folder} was trained on {expected}; "
                "give the slots of the same encoder"
            )
        intervened = Intervened(Path(config.intervened), data, self.slots) if config.intervened else None
        if not config.foreign_slots:
            self._require_learned(intervened)
        self.questions = SlotQuestions(file, self.slots, self.model.config.frames, intervened)
        self.starts = config.starts

    def _require_learned(self, intervened: Intervened | None) -> None:
        """Raise ValueError unless the model learned from such slots."""
        training = read_json(self.folder / CONFIG)["training"]
        frames = training.get("frames", self.slots.frames)  # older records do not tell
        learned = {**makers(training.get("slots", {})), "frames": frames}
        given = {**makers(self.slots.identity), "frames": self.slots.frames}
        advice = "give the same, or foreign_slots=true to see how well answers carry over"
        if learned != given:
            raise ValueError(
                f"{self.slots.folder} was made by {given}, but {self.folder} learned from slots made by {learned}; "
                f"{advice}"
            )
        given_frames = intervened.frames if intervened else None
        learned_without = removal_makers(training.get("intervened"), training.get("intervened_frames", given_frames))
        given_without = removal_makers(intervened.identity if intervened else None, given_frames)
        if learned_without != given_without:
            raise ValueError(
                f"intervened={intervened.folder if intervened else ''} was made by {given_without}, but {self.folder} "
                f"learned counterfactual questions from videos made by {learned_without}; {advice}"
            )

    def submission(self) -> list[Json]:
        """The model's answers."""
        answers = predict(self.model, self.questions, starts=self.starts)
        descriptive = np.repeat(self.questions.descriptive, np.diff(self.questions.first))
        return submission(self.scenes, _words(answers, descriptive))

    def record(self) -> dict[str, Any]:
        """How the model came about, and what it reads."""
        return {
            **read_json(self.folder / CONFIG),
            "evaluated_slots": self.slots.identity,
            "evaluated_intervened": self.questions.intervened.identity if self.questions.intervened else None,
            "questions_whose_object_has_no_slot": self.questions.without_a_slot,
        }


def makers(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Digests of encoder and predictor in the identity of slots, None where there is none."""
    return {"encoder": identity.get("slots", identity).get("encoder"), "predictor": identity.get("checkpoint")}


def removal_makers(identity: Mapping[Any, Mapping[str, Any]] | None, frames: int | None) -> dict[str, Any] | None:
    """Digest of the predictor in the identity of predictions without each object, how these were made and how long."""
    if not identity:
        return None
    own = next(iter(identity.values()))
    return {"frames": frames} | {key: own.get(key) for key in ("checkpoint", "remove", "downstream")}


def _words(answers: NDArray[np.int64], descriptive: NDArray[np.bool_]) -> Iterator[str]:
    names = list(ANSWER_VOCABULARY)
    return (names[a] if d else CHOICES[a] for a, d in zip(answers, descriptive, strict=True))


def write_csv(path: Path, scenes: Sequence[Json], graded: Sequence[Graded]) -> None:
    """One line per descriptive question, and per choice of the others."""
    questions = [question for scene in scenes for question in scene["questions"]]
    with atomic(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(
            ["scene", "question_id", "choice_id", "type", "subtype", "question", "choice", "answer", "truth", "right"]
        )
        for item, question in zip(graded, questions, strict=True):
            choices = question.get("choices", [{"choice_id": "", "choice": ""}])
            for choice, given, expected in zip(choices, item.given, item.expected, strict=True):
                writer.writerow(
                    [
                        item.scene, item.question_id, choice["choice_id"], item.type, item.subtype,
                        question["question"], choice["choice"], given, expected, int(given == expected),
                    ]
                )  # fmt: skip


def _listed(paths: Sequence[Path]) -> str:
    return "\n".join(["written:", *(f"  {path}" for path in paths)])
