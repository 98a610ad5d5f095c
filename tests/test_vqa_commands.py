"""Training and evaluating the answers to CLEVRER questions, by the documented commands."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from asked_videos import TINY, stage, write_asked_videos
from commands import run
from torch import Tensor

from cjepa_agent.data.video_slots import META, VideoSlots
from cjepa_agent.evaluate import evaluate
from cjepa_agent.evaluation import vqa as task
from cjepa_agent.evaluation.config import EvaluateConfig
from cjepa_agent.files import read_json, write_json
from cjepa_agent.training.vqa_stage import VQAStage, VQATrainingConfig
from cjepa_agent.vqa.aloe import ALOEConfig
from cjepa_agent.vqa.checkpoint import CONFIG, load, save
from cjepa_agent.vqa.data import Reading
from cjepa_agent.vqa.submission import grade, read_submission, submission
from envs.clevrer.dataset import Dataset
from envs.clevrer.questions import write_questions


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_asked_videos(tmp_path_factory.mktemp("clevrer"))


@pytest.fixture(scope="module")
def slots(data: Path) -> Path:
    return data / "slots"


@pytest.fixture(scope="module")
def intervened(data: Path) -> Path:
    return data / "intervened"


@pytest.fixture(scope="module")
def trained(data: Path, slots: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights by the documented command."""
    out = tmp_path_factory.mktemp("run")
    run(
        "cjepa_agent.train", "stage=vqa", "trainer=vqa", f"data={data}", f"slots={slots}", f"out={out}",
        "aloe.layers=1", "aloe.width=16", "aloe.heads=2", "aloe.mlp=16", "aloe.frames=4", "aloe.tubelet=2",
        "trainer.steps=2", "trainer.batch=4",
    )  # fmt: skip
    return out / "checkpoint"


def settings(trained: Path, data: Path, slots: Path, out: Path) -> EvaluateConfig:
    return EvaluateConfig(
        task="vqa", weights=str(trained), data=str(data), slots=str(slots), split="validation", out=str(out)
    )


def test_train_and_evaluate(trained: Path, data: Path, slots: Path, tmp_path: Path) -> None:
    done = run(
        "cjepa_agent.evaluate", "task=vqa", f"weights={trained}", f"data={data}", f"slots={slots}", "split=validation",
        f"out={tmp_path}",
    )  # fmt: skip
    report = json.loads((tmp_path / "vqa.json").read_text())
    assert report["model"]["training"]["slots"] == {"dataset": "tiny"} == report["model"]["evaluated_slots"]
    rows = {(row["group"], row["name"], row["unit"]): row for row in report["accuracy"]}
    whole = rows["type", "all", "question"]
    questions = [q for scene in Dataset(data).questions("validation").scenes for q in scene["questions"]]
    assert whole["number"] == len(questions) and whole["low"] <= whole["accuracy"] <= whole["high"]
    assert f"{whole['accuracy']:.1f} %" in done.stdout and whole["baseline"] is not None
    with (tmp_path / "vqa.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == sum(len(question.get("choices", [0])) for question in questions)
    right = sum(line["right"] == "1" for line in lines if line["type"] == "counterfactual")
    assert right == rows["type", "counterfactual", "choice"]["right"]
    assert sum(by_given.get(truth, 0) for truth, by_given in report["confusion"]["counterfactual"].items()) == right
    page = (tmp_path / "vqa.html").read_text()
    assert "data:image/png" in page and "truth" in page
    # The submission that was written scores the same, and without a model.
    scored = task.run(
        replace(settings(trained, data, slots, tmp_path / "again"), submission=str(tmp_path / "vqa_submission.json"))
    )
    again = json.loads((tmp_path / "again" / "vqa.json").read_text())
    assert again["accuracy"] == report["accuracy"] and f"{whole['accuracy']:.1f} %" in scored


def test_intervened_predictions_change_counterfactual_answers_alone(
    data: Path, slots: Path, intervened: Path, tmp_path: Path
) -> None:
    kinds = [q["question_type"] for scene in Dataset(data).questions("validation").scenes for q in scene["questions"]]
    changed = set()
    for seed in range(4):  # a random model may give one answer to everything
        model = stage(data, seed=seed).model
        for weight in model.parameters():
            weight.data += 0.3 * torch.randn_like(weight)
        save(model, tmp_path / "aloe", {})
        submissions = []
        for given in ("", str(intervened)):
            config = settings(tmp_path / "aloe", data, slots, tmp_path / "out")
            config = replace(config, intervened=given, foreign_slots=True)
            task.run(config)
            submissions.append(read_submission(tmp_path / "out" / "vqa_submission.json"))
            report = json.loads((tmp_path / "out" / "vqa.json").read_text())
            assert (report["model"]["evaluated_intervened"] is None) == (not given)
        one, other = ([q for scene in answers for q in scene["questions"]] for answers in submissions)
        changed |= {kind for kind, a, b in zip(kinds, one, other, strict=True) if a != b}
    assert changed == {"counterfactual"}


def test_other_videos_than_those_learned_from_are_refused(
    trained: Path, data: Path, slots: Path, intervened: Path, tmp_path: Path
) -> None:
    learned = shutil.copytree(trained, tmp_path / "aloe")
    told = read_json(learned / CONFIG)
    made = {"checkpoint": "one", "remove": "drop", "downstream": True}
    config = settings(learned, data, slots, tmp_path / "out")
    with pytest.raises(ValueError, match="learned counterfactual questions from videos made by None; give the same"):
        task.run(replace(config, intervened=str(intervened)))
    write_json(learned / CONFIG, {**told, "training": {**told["training"], "intervened": {"0": made}}})
    for given in ("", str(intervened)):
        with pytest.raises(
            ValueError,
            match=r"made by \{'frames': (None|180), 'checkpoint': 'one', 'remove': 'drop', 'downstream': True\}",
        ):
            task.run(replace(config, intervened=given))
    made = {"intervened": {"0": read_json(intervened / "without_0" / META)["identity"]}, "intervened_frames": 160}
    write_json(learned / CONFIG, {**told, "training": {**told["training"], **made}})
    with pytest.raises(ValueError, match="made by {'frames': 180.*made by {'frames': 160"):
        task.run(replace(config, intervened=str(intervened)))
    write_json(learned / CONFIG, {**told, "training": {**told["training"], "frames": 160}})
    with pytest.raises(ValueError, match="'frames': 128.*'frames': 160"):
        task.run(config)
    assert "counterfactual" in task.run(replace(config, foreign_slots=True))


def test_answers_are_compared_question_by_question(trained: Path, data: Path, slots: Path, tmp_path: Path) -> None:
    config = settings(trained, data, slots, tmp_path / "model")
    task.run(config)
    path = tmp_path / "model" / "vqa.json"
    answers = read_json(path)["right"]
    scored = replace(config, submission=str(tmp_path / "right.json"), out=str(tmp_path / "right"), against=str(path))
    asked = Dataset(data).questions("validation").scenes
    graded = grade(asked, read_submission(path.with_name("vqa_submission.json")))
    write_json(Path(scored.submission), submission(asked, (answer for item in graded for answer in item.expected)))
    shown = task.run(scored)
    for kind, difference in read_json(tmp_path / "right" / "vqa.json")["against"].items():
        wrong = 100 * answers[kind].count("0") / len(answers[kind])
        assert difference["mean"] == pytest.approx(wrong) and difference["number"] == len(answers[kind])
        assert difference["low"] <= wrong <= difference["high"] and f"{wrong:+.1f} (" in shown
    with pytest.raises(ValueError, match="no answers to the same questions"):
        task.run(replace(config, episodes=1, against=str(path)))
    write_json(other := tmp_path / "other.json", {**read_json(path), "texts": "of questions with the same numbers"})
    with pytest.raises(ValueError, match="no answers to the same questions"):
        task.run(replace(config, against=str(other)))
    unasked = replace(config, out=str(tmp_path / "none"), against=str(path.with_name("vqa_submission.json")))
    with pytest.raises(ValueError, match="tells no single answers"):
        task.run(unasked)
    assert not Path(unasked.out).exists()


def test_a_test_file_without_answers_gives_a_submission_alone(trained: Path, data: Path, tmp_path: Path) -> None:
    scenes = Dataset(data).questions("validation").scenes
    moved = [{**scene, "scene_index": scene["scene_index"] + 5000} for scene in scenes]
    write_questions(tmp_path, "test", moved)
    (tmp_path / "test_answers.json").unlink()
    (tmp_path / "annotation_test").symlink_to(data / "annotation_train")
    videos: Iterator[Tensor] = iter(torch.zeros(2, 128, 3, 16))
    VideoSlots.write(tmp_path / "slots", {}, [15000, 15001], (128, 3, 16), videos)
    config = replace(settings(trained, tmp_path, tmp_path / "slots", tmp_path / "out"), split="test")
    assert "nothing to score" in task.run(config)
    assert [scene["scene_index"] for scene in read_submission(tmp_path / "out" / "vqa_submission.json")] == [
        15000,
        15001,
    ]
    assert not (tmp_path / "out" / "vqa.json").exists()


def test_flawed_training_questions_end_an_evaluation_before_it_answers(
    trained: Path, data: Path, slots: Path, tmp_path: Path
) -> None:
    flawed = Path(shutil.copytree(data, tmp_path / "flawed"))
    scenes = read_json(flawed / "questions" / "train.json")
    write_json(flawed / "questions" / "train.json", [{**scene, "questions": [{}]} for scene in scenes])
    with pytest.raises(ValueError, match=r"train\.json"):
        task.run(settings(trained, flawed, slots, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_videos_without_an_object_are_no_observed_ones(trained: Path, data: Path, slots: Path, tmp_path: Path) -> None:
    without = Path(shutil.copytree(slots, tmp_path / "without_0"))
    meta = read_json(without / META)
    write_json(without / META, {**meta, "identity": {**meta["identity"], "remove": "drop"}})
    for name in ("vqa", "intervention", "segmentation"):
        with pytest.raises(ValueError, match="holds videos without an object"):
            evaluate(replace(settings(trained, data, without, tmp_path / "out"), task=name))


@pytest.mark.parametrize("questions", [1, 2])
def test_processes_shuffle_each_video_as_one_alone_does(
    data: Path, slots: Path, questions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = VQAStage(Dataset(data), VideoSlots(slots), TINY, VQATrainingConfig(questions=questions), 0, {})
    seen: list[Tensor] = []
    given = made.model.forward
    monkeypatch.setattr(
        made.model, "forward", lambda v, w, owner, *r: (seen.append(v[owner]), given(v, w, owner, *r))[1]
    )
    # As after a rollout, predictive questions read other frames than the others.
    monkeypatch.setattr(made.train, "reading", lambda q, start: Reading(int(made.train.scene[q]), -1, range(q, q + 4)))
    for rows in (slice(0, 8), slice(0, 4), slice(4, 8)):
        made.loss(made.model, 0, 8, rows, torch.Generator().manual_seed(3))
    alone, *parts = seen
    assert torch.equal(alone, torch.cat(parts))


def test_shuffled_slots_stay_together_over_a_video(data: Path, slots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    for shuffle in (False, True, True):
        made = VQAStage(Dataset(data), VideoSlots(slots), TINY, VQATrainingConfig(shuffle=shuffle), 0, {})
        given = made.model.forward
        monkeypatch.setattr(
            made.model, "forward", lambda video, *rest, given=given: (seen.append(video), given(video, *rest))[1]
        )
        made.loss(made.model, 0, 8, slice(0, 8), torch.Generator().manual_seed(3))
    plain, mixed, again = seen
    assert torch.equal(mixed, again) and not torch.equal(plain, mixed)
    for before, after in zip(plain, mixed, strict=True):
        order = [next(i for i in range(3) if torch.equal(before[0, i], after[0, j])) for j in range(3)]
        assert sorted(order) == [0, 1, 2] and torch.equal(before[:, order], after)


def test_training_goes_on_from_trained_weights(trained: Path, data: Path, slots: Path) -> None:
    before = load(trained)

    def start(config: ALOEConfig) -> VQAStage:
        return VQAStage(Dataset(data), VideoSlots(slots), config, VQATrainingConfig(), 1, {}, trained)

    started = start(before.config)
    for name, weight in started.model.state_dict().items():
        assert torch.equal(weight, before.state_dict()[name])
    assert started.recipe["init"]["command"]["stage"] == "vqa"
    assert start(replace(before.config, dropout=0.5)).model.config.dropout == 0.5
    with pytest.raises(ValueError, match="init is .*set the same aloe="):
        start(replace(before.config, layers=3))


def test_rollouts_of_another_checkpoint_are_refused(trained: Path, data: Path, slots: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(slots, tmp_path / "other"))
    meta = json.loads((other / "slots.json").read_text())
    meta["identity"] = {"slots": meta["identity"], "observed": 128, "checkpoint": "abc"}
    (other / "slots.json").write_text(json.dumps(meta))
    config = settings(trained, data, other, tmp_path / "out")
    with pytest.raises(ValueError, match=r"other was made by .*'predictor': 'abc'.* learned from .*'predictor': None"):
        task.run(config)
    assert not (tmp_path / "out").exists()
    assert "all" in task.run(replace(config, foreign_slots=True))


def test_the_first_videos_alone(trained: Path, data: Path, slots: Path, tmp_path: Path) -> None:
    config = settings(trained, data, slots, tmp_path)
    task.run(replace(config, episodes=1))
    assert [scene["scene_index"] for scene in read_submission(tmp_path / "vqa_submission.json")] == [10000]
    made = VQAStage(Dataset(data), VideoSlots(slots), TINY, VQATrainingConfig(limit=1), 0, {})
    assert set(made.train.scene) == {0} and set(made.held_out.scene) == {10000}


def test_missing_weights_are_named(data: Path, slots: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere is neither a checkpoint folder nor a Hub id"):
        task.run(settings(tmp_path / "nowhere", data, slots, tmp_path / "out"))


def test_slots_of_another_encoder_are_refused(trained: Path, data: Path, tmp_path: Path) -> None:
    VideoSlots.write(tmp_path, {}, [10000, 10001], (128, 3, 8), iter(torch.zeros(2, 128, 3, 8)))
    with pytest.raises(ValueError, match=r"\(3, 8\), but .* was trained on \(3, 16\)"):
        task.run(settings(trained, data, tmp_path, tmp_path / "out"))
