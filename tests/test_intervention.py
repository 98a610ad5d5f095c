"""What would happen without an object: what is measured, and the study of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from perfect_predictor import perfect_findings, true_slots
from video_model import random_model

from benchmarks import causality, causality_page
from benchmarks.causality import CausalityBenchmark
from cjepa_agent.collect import collect
from cjepa_agent.collecting.clevrer import CLEVRERCollection
from cjepa_agent.data.video_slots import VideoSlots
from cjepa_agent.encoders.autoencoder import SlotAutoencoder
from cjepa_agent.encoders.clevrer_state import true_scene
from cjepa_agent.encoders.kinds import EncoderConfig
from cjepa_agent.evaluate import evaluate
from cjepa_agent.evaluation import findings, intervention
from cjepa_agent.evaluation.config import EvaluateConfig
from cjepa_agent.predictors.cjepa import PredictorConfig
from cjepa_agent.reading.collisions import pair_features, sum_of
from cjepa_agent.train import TrainConfig, train
from cjepa_agent.training.loop import TrainerConfig
from cjepa_agent.training.predictor_stage import DynamicsTrainingConfig
from cjepa_agent.training.vqa_stage import VQATrainingConfig
from cjepa_agent.vqa.grounded import GroundedALOEConfig
from configs.presets import preset
from envs.clevrer.dataset import Dataset, split_of

KINDS = ("counterfactual", "predictive")
TINY = TrainerConfig(steps=3, batch=4, optimizer="adamw", warmup=1, ema=0.0, precision="32-true", accelerator="cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clevrer") / "data"
    collect(CLEVRERCollection(out=folder, videos=10, width=16, height=16, workers=1))
    return folder


class TestMeasure:
    @pytest.fixture
    def perfect(self, data: Path, slots: Path, monkeypatch: pytest.MonkeyPatch) -> findings.Findings:
        return perfect_findings(
            monkeypatch, random_model(), Dataset(data), VideoSlots(slots), lambda _, true: true, lambda _, slot: slot
        )

    def test_a_perfect_predictor(self, perfect: findings.Findings, data: Path) -> None:
        assert max(error for _, error in perfect.factual) < 0.02
        for removed in perfect.removed:
            assert np.nanmax(removed.error[removed.counted], initial=0) < 0.02
            still = removed.counted & ~removed.influenced
            assert np.nanmax(removed.unchanged[still], initial=0) < 0.11
            assert not removed.counted[removed.id] and not removed.influenced[removed.id]
            moved = removed.counted & removed.influenced
            assert (removed.shift[moved] > 0.05).all()
        for influential in (True, False):
            own = {name: perfect.pairs[influential, name] for name in findings.SOURCES}
            assert own["predicted"] == own["downstream"] == own["true positions"] and own["predicted"].found
        # Where nobody is influenced, the removal takes away the pairs of the removed object alone.
        assert perfect.pairs[False, "unchanged"].wrong == perfect.pairs[False, "unchanged"].missed == 0
        report = intervention.summary(perfect, 0)
        asked = Dataset(data).questions("validation").scenes
        for kind in ("predictive", "counterfactual"):
            count = sum(q["question_type"] == kind for scene in asked for q in scene["questions"])
            assert all(len(own) == count for own in perfect.answers[kind].values())
            assert {tuple(of for of, _ in own) for own in perfect.answers[kind].values()} == {
                tuple(s["scene_index"] for s in asked for q in s["questions"] if q["question_type"] == kind)
            }
            if count:
                assert report["questions"][kind]["predicted"] == report["questions"][kind]["true positions"]
        assert report["influence"]["shift"]["AUROC"] > 0.99
        courses = report["position_error_by_frame"]
        assert all(len(course) == 128 for course in courses.values())
        for group in ("factual", "influenced", "not influenced"):
            assert max(error for error in courses[f"{group}, predicted"] if error is not None) < 0.03
        later = [error for error in courses["influenced, unchanged"] if error is not None]
        assert later[-1] > 1 > later[0]
        assert report["position_error_radii"]["not influenced"]["predicted"]["high"] < 0.02
        influenced = report["position_error_radii"]["influenced"]
        assert influenced["downstream"]["mean"] < 0.03 < influenced["unchanged"]["mean"]

    def test_influence_is_told_by_who_looks_at_what_is_removed(self, perfect: findings.Findings) -> None:
        attention = {removed.scene: np.zeros((2, 1, 6, 6)) for removed in perfect.removed}
        for removed in perfect.removed:
            attention[removed.scene][:, :, removed.influenced, removed.id] = 1.0
        perfect.attention, perfect.looked_at = list(attention.values()), list(attention)
        rng = np.random.default_rng(0)
        perfect.removed = [removed._replace(shift=rng.random(6)) for removed in perfect.removed]
        influence = intervention.summary(perfect, 0)["influence"]
        assert influence["attention, mean"]["AUROC"] == 1.0
        truth = np.concatenate([removed.influenced[removed.counted] for removed in perfect.removed])
        found = truth[np.argsort(-np.concatenate([removed.shift[removed.counted] for removed in perfect.removed]))]
        precision = np.cumsum(found) / np.arange(1, len(found) + 1)
        assert influence["shift"]["average_precision"] == pytest.approx(precision[found].mean())

    def test_courses_that_go_on_from_observed_ones_have_their_own_read_out(
        self, data: Path, slots: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, source, dataset = random_model(), VideoSlots(slots), Dataset(data)
        courses = {source.read(scene).numpy().tobytes(): dataset.trajectory(scene) for scene in source.scenes}
        monkeypatch.setattr(  # perfect where it goes on, random from the beginning
            findings,
            "continued",
            lambda _, given, frames: torch.stack([true_slots(courses[own.numpy().tobytes()], frames) for own in given]),
        )
        training, held_out = ([s for s in source.scenes if split_of(s) == own] for own in ("train", "validation"))
        readouts = findings.fit_readouts(model, source, dataset, training, 0)
        features = [pair_features(true_scene(dataset.trajectory(scene), 180)) for scene in held_out]
        assert [readouts.continued(own) for own in features] == [readouts.true(own) for own in features]
        assert [readouts.predicted(own) for own in features] != [readouts.true(own) for own in features]
        blind = readouts._replace(predicted=lambda _: {}, continued=lambda _: {})  # type: ignore[arg-type]
        for trusting, told_by, other in (
            ("predicted", "predicted", "downstream"),
            ("continued", "downstream", "predicted"),
        ):
            own = blind._replace(**{trusting: lambda features: dict.fromkeys(features.pairs, 0)})
            found = findings.measure(model, source, dataset, held_out, own, "drop")
            told = {name: sum_of(found.pairs[moved, name] for moved in (True, False)) for name in findings.SOURCES}
            assert told[told_by].found + told[told_by].wrong > 0
            assert told[other].found + told[other].wrong == 0

    def test_scenes_are_measured_alike_alone_and_beside_others(self, data: Path, slots: Path) -> None:
        model, source, dataset = random_model(), VideoSlots(slots), Dataset(data)
        training = [scene for scene in source.scenes if split_of(scene) == "train"]
        readouts = findings.fit_readouts(model, source, dataset, training, 0)
        # Of a scene with many objects some are taken away that the other does not have.
        fewest, *_, most = sorted(source.scenes, key=lambda scene: len(dataset.trajectory(scene).ids))
        assert len(dataset.trajectory(fewest).ids) < len(dataset.trajectory(most).ids)
        together = findings.measure(model, source, dataset, [fewest, most], readouts, "drop").removed
        alone = findings.measure(model, source, dataset, [most], readouts, "drop").removed
        own = [removed for removed in together if removed.scene == most]
        assert len(own) == len(alone)
        for one, other in zip(own, alone, strict=True):
            assert one.apart.any()
            np.testing.assert_allclose(one.apart, other.apart, rtol=1e-3)

    def test_the_command(self, data: Path, slots: Path, tmp_path: Path) -> None:
        predictor = replace(preset(PredictorConfig, "predictor", "clevrer"), depth=1, width=32, heads=2, mlp=32)
        dynamics = replace(preset(DynamicsTrainingConfig, "dynamics", "clevrer"), windows=8, rollout_batch=4)
        run = TrainConfig(
            data=Path("none"),
            slots=slots,
            out=tmp_path / "run",
            predictor=predictor,
            dynamics=dynamics,
            trainer=TINY,
        )
        train(run)
        config = EvaluateConfig(
            "intervention",
            weights=str(tmp_path / "run/checkpoint"),
            data=str(data),
            slots=str(slots),
            split="validation",
            out=str(tmp_path),
            removal="empty",
        )
        evaluate(config)
        report = json.loads((tmp_path / "intervention.json").read_text())
        assert set(report["position_error_radii"]) == {"factual", "influenced", "not influenced"}
        assert 0 < report["influence"]["attention, mean"]["AUROC"] < 1 and report["config"]["removal"] == "empty"
        evaluate(replace(config, keep=4))
        sooner = json.loads((tmp_path / "intervention.json").read_text())
        assert sooner["config"]["keep"] == 4 and sooner["position_error_radii"] != report["position_error_radii"]
        with pytest.raises(ValueError, match="gives 10 frames per call"):
            evaluate(replace(config, keep=11))
        with pytest.raises(ValueError, match="predicts what actions do"):
            evaluate(replace(config, weights="pusht"))
        with pytest.raises(ValueError, match="removal"):
            replace(config, removal="burn")  # type: ignore[arg-type]


class TestStudy:
    def test_systems_that_need_an_empty_slot_are_refused_before_training(self, data: Path, tmp_path: Path) -> None:
        SlotAutoencoder(EncoderConfig(n_slots=7)).save(tmp_path / "slots")
        config = CausalityBenchmark(systems=("oc-jepa", "oc-dino-wm"), slots=tmp_path / "slots", runs=tmp_path / "runs")
        with pytest.raises(ValueError, match="only slots of encoder=state have an empty slot"):
            causality.run(replace(config, data=data, out=tmp_path, page=tmp_path / "causality.md"))
        assert not (tmp_path / "runs").exists()

    def test_the_command_trains_scores_and_resumes(self, data: Path, slots: Path, tmp_path: Path) -> None:
        config = CausalityBenchmark(
            systems=("oc-jepa", "c-jepa-2-token", "oc-dino-wm"),
            training_seeds=(0,),
            data=data,
            slots=slots,
            runs=tmp_path / "runs",
            predictor=replace(preset(PredictorConfig, "predictor", "clevrer"), depth=1, width=32, heads=2, mlp=32),
            dynamics=replace(preset(DynamicsTrainingConfig, "dynamics", "clevrer"), windows=8, rollout_batch=4),
            trainer=TINY,
            aloe_seeds=(0, 1),
            aloe=GroundedALOEConfig(layers=2, heads=2, width=16, mlp=16, head=16),
            vqa=VQATrainingConfig(questions=2, limit=1),
            aloe_trainer=replace(TINY, optimizer="adamw", ema=0.0),
            keep=6,
            every=2,
            out=tmp_path,
            page=tmp_path / "causality.md",
        )
        causality.run(config)
        before = (tmp_path / "benchmark_causality.json").read_text()
        entries = json.loads(before)["predictors"]
        assert set(entries) == {f"{name}, seed 0" for name in config.systems}
        page = (tmp_path / "causality.md").read_text()
        assert (tmp_path / "causality.png").read_bytes().startswith(b"\x89PNG") and "(causality.png)" in page
        assert "| c-jepa-2-token | counterfactual | downstream | 1 |" in page and "| oc-jepa | 0 |" in page
        assert "| c-jepa-2-token | descriptive | ALOE | 1 |" in page
        line, *_ = [line for line in page.splitlines() if line.startswith("| c-jepa-2-token | 1 |")]
        assert line.endswith(" | 80.80 / 65.82 |")
        scene = Dataset(data).questions("validation").scenes[0]
        for entry in entries.values():
            assert len(entry["aloe"]) == 2
            for kind, right in entry["aloe"][0].items():
                count = sum(question["question_type"] == kind for question in scene["questions"])
                assert len(right) == count and entry["asked_aloe"][kind] == (
                    {str(scene["scene_index"]): count} if count else {}
                )
        assert not list((tmp_path / "runs").glob("*/intervened")), "videos of a scored predictor are not kept"
        scored = {entry["system"]: (entry["removal"], entry["keep"]) for entry in entries.values()}
        assert scored == {"oc-jepa": ("drop", 6), "c-jepa-2-token": ("drop", 6), "oc-dino-wm": ("empty", 1)}
        assert "6 are kept" in page and "every 2 steps" in page and "a read-out for videos that go on" not in page
        assert "a read-out for videos that go on" in causality_page.note(
            [entries["oc-jepa, seed 0"], {k: v for k, v in entries["oc-jepa, seed 0"].items() if "fitted_on" not in k}]
        )
        causality.run(config)
        assert (tmp_path / "benchmark_causality.json").read_text() == before
        with pytest.raises(ValueError, match="give another out"):
            causality.run(replace(config, removal="empty"))
        with pytest.raises(ValueError, match="give another out"):
            causality.run(replace(config, keep=0))

    def test_masks_and_losses_that_slots_do_not_allow_are_refused_before_training(
        self, data: Path, slots: Path, tmp_path: Path
    ) -> None:
        config = CausalityBenchmark(data=data, slots=slots, runs=tmp_path / "runs", out=tmp_path)
        for name, message in (("c-jepa-9", "hides 9 objects, but .* holds 7 slots"), ("ocvp-image", "learned to draw")):
            with pytest.raises(ValueError, match=message):
                causality.run(replace(config, systems=("oc-jepa", name)))
        with pytest.raises(ValueError, match=r"keep=11 is more than the predictor.future=10"):
            replace(config, predictor=preset(PredictorConfig, "predictor", "clevrer"), keep=11)
        with pytest.raises(ValueError, match="every=7 is more than the 6 that are kept"):
            replace(config, predictor=preset(PredictorConfig, "predictor", "clevrer"), keep=6, every=7)
        assert not (tmp_path / "runs").exists()

    def test_an_aloe_is_found_by_what_it_learned_from_alone(self, tmp_path: Path) -> None:
        config = CausalityBenchmark(aloe_seeds=(0,))
        others = [
            config.answering(tmp_path, 1, "drop"),
            config.answering(tmp_path, 0, "mask"),
            *(replace(config, **change).answering(tmp_path, 0, "drop") for change in (
                {"downstream": False}, {"aloe_init": "clevrer-aloe"}, {"aloe_trainer": TINY},
                {"vqa": VQATrainingConfig(limit=1)}, {"aloe": GroundedALOEConfig()},
            )),
        ]  # fmt: skip
        own = config.answering(tmp_path, 0, "drop").out
        assert len({own, *(other.out for other in others)}) == 1 + len(others)
        assert replace(config, split="test").answering(tmp_path, 0, "drop").out == own

    def test_settings_of_an_aloe_that_is_not_trained_do_not_part_results(self, slots: Path) -> None:
        config = CausalityBenchmark(slots=slots)
        other = replace(config, aloe=GroundedALOEConfig(), aloe_init="clevrer-aloe", downstream=False)
        assert config.identity() == other.identity()
        with_aloe = [replace(own, aloe_seeds=(0,)).identity() for own in (config, other)]
        assert with_aloe[0] != with_aloe[1]

    def test_contrasts_are_paired_by_question(self) -> None:
        def entry(system: str, right: list[int]) -> dict[str, object]:
            answers = {kind: dict.fromkeys(("predicted", "downstream"), right) for kind in KINDS}
            asked = dict.fromkeys(KINDS, {"7": 2, "11": len(right) - 2})
            return {"system": system, "training_seed": 0, "answers": answers, "asked": asked}

        text = causality_page.contrasts([entry("oc-jepa", [0, 0, 1, 1]), entry("c-jepa-3", [1, 1, 1, 1])], 0)
        assert "| c-jepa-3 | counterfactual | downstream | 1 | +50.0 (+0.0 to +100.0) |" in text
        assert causality_page.contrasts([entry("c-jepa-3", [1])], 0) == ""

    def test_influence_is_told_by_system_and_by_head(self, tmp_path: Path) -> None:
        def entry(system: str, seed: int, area: float, heads: dict[str, float]) -> dict[str, object]:
            scores = {"shift": area, "parting": 0.9, **heads}
            told = {name: {"AUROC": value, "average_precision": value / 2} for name, value in scores.items()}
            return {"system": system, "training_seed": seed, "influence": {"influenced": 0.25, **told}}

        heads = {"attention, mean": 0.6, "attention, layer 0, head 0": 0.7, "attention, layer 1, head 0": 0.4}
        entries = [entry("oc-jepa", 0, 0.7, heads), entry("oc-jepa", 1, 0.8, heads), entry("oc-dino-wm", 0, 0.6, {})]
        text = causality_page.influence_section(entries, tmp_path / "heads.png")
        assert "| oc-jepa | 2 | 0.750 | 0.375 | 0.900 | 0.450 | 0.600 | 0.300 |" in text and "share of 0.250" in text
        assert "| oc-dino-wm | 1 | 0.600 | 0.300 | 0.900 | 0.450 |  |  |" in text and "(heads.png)" in text
        assert plt.imread(tmp_path / "heads.png").std() > 0
        causality_page.influence_section(entries[2:], tmp_path / "nothing.png")  # none tells what it attends to
        assert causality_page.influence_section([{**entries[0], "influence": {}}], tmp_path / "none.png") == ""

    @pytest.mark.parametrize("bad", ["object", "c-jepa-2-block", "c-jepa-0-token", "dino-wm"])
    def test_unknown_systems_are_refused(self, bad: str) -> None:
        with pytest.raises(ValueError, match="systems has"):
            CausalityBenchmark(systems=(bad,))
