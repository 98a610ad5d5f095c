"""What would happen without an object: predictions run again, collisions read from them, and what is measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from clevrer_scenes import chain, random_scenes
from perfect_predictor import perfect_findings, true_slots

from benchmarks import causality, causality_page
from benchmarks.causality import CausalityBenchmark
from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.collect import collect
from cjepa_agent.collecting.clevrer import CLEVRERCollection
from cjepa_agent.data.video_slots import VideoSlots
from cjepa_agent.encoders.autoencoder import SlotAutoencoder
from cjepa_agent.encoders.clevrer_state import read_scene, scene_states, true_scene
from cjepa_agent.encoders.kinds import EncoderConfig
from cjepa_agent.evaluate import evaluate
from cjepa_agent.evaluation import findings, intervention
from cjepa_agent.evaluation.config import EvaluateConfig
from cjepa_agent.latent import Latent
from cjepa_agent.predictors.cjepa import PredictorConfig
from cjepa_agent.predictors.slotformer import SlotFormerConfig
from cjepa_agent.reading.collisions import CollisionReadout, pair_features, sum_of
from cjepa_agent.rollout import RolloutConfig
from cjepa_agent.train import TrainConfig, train
from cjepa_agent.training.loop import TrainerConfig
from cjepa_agent.training.predictor_stage import DynamicsTrainingConfig
from cjepa_agent.training.vqa_stage import VQATrainingConfig
from cjepa_agent.video_prediction import downstream, expectations, resimulated
from cjepa_agent.vqa.grounded import GroundedALOEConfig
from cjepa_agent.world_model import WorldModel, WorldModelConfig
from configs.presets import preset
from envs.clevrer import simulate
from envs.clevrer.dataset import Dataset, split_of
from envs.clevrer.physics import FRAMES, VISIBLE_FRAMES
from envs.clevrer.shapes import RADIUS

CONFIG = WorldModelConfig(
    encoder=EncoderConfig(kind="clevrer_state", n_slots=7),
    predictor=PredictorConfig(depth=2, width=32, heads=2, mlp=32, history=3, future=4),
    proprio_dim=0,
    env_action_dim=0,
    action_block=2,
)
KINDS = ("counterfactual", "predictive")
TINY = TrainerConfig(steps=3, batch=4, optimizer="adamw", warmup=1, ema=0.0, precision="32-true", accelerator="cpu")


def random_model() -> WorldModel:
    torch.manual_seed(0)
    model = WorldModel(CONFIG)
    for parameter in model.predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clevrer") / "data"
    collect(CLEVRERCollection(out=folder, videos=10, width=16, height=16, workers=1))
    return folder


class TestForecast:
    def test_known_cells_are_put_in_and_seen_by_the_next_call(self) -> None:
        model = random_model()
        history, later = (
            Latent(torch.randn(2, n, 7, 128, generator=torch.Generator().manual_seed(n)), torch.zeros(2, n, 0))
            for n in (3, 8)
        )
        nothing = torch.zeros(2, 8, 7, dtype=torch.bool)
        with torch.no_grad():
            plain = model.forecast(history, 8)
            assert torch.equal(model.forecast(history, 8, given=later, known=nothing).slots, plain.slots)
            known = nothing.clone()
            known[:, 2, 5] = True
            made = model.forecast(history, 8, given=later, known=known).slots
        assert torch.equal(made[:, 2, 5], later.slots[:, 2, 5])
        others = torch.ones(8, 7, dtype=torch.bool)
        others[2, 5] = False
        assert torch.equal(made[:, :4][:, others[:4]], plain.slots[:, :4][:, others[:4]])
        assert not torch.allclose(made[:, 4:], plain.slots[:, 4:])


class TestResimulation:
    @pytest.mark.parametrize("keep", [4, 3])
    def test_objects_are_shown_until_a_call_begins_after_a_whole_history_of_them(self, keep: int) -> None:
        trajectory, model = random_scenes()[5][1], random_model()
        slots, model.keep = true_slots(trajectory), keep
        made, predicted = resimulated(model, slots.unsqueeze(0), FRAMES)
        assert made.shape == (1, FRAMES, 7, 128) and predicted.shape == (1, FRAMES, 7)
        inside = scene_states(trajectory, FRAMES)[..., 0] > 0
        for id in range(6):
            entry = int(inside[:128, id].argmax()) if inside[:128, id].any() else 128
            for frame in range(FRAMES):
                begin = 2 * (3 + (frame // 2 - 3) // keep * keep) + frame % 2  # of the call that predicts it
                foretold = begin >= max(entry, 0) + 6 or frame >= 128
                assert predicted[0, frame, id] == foretold
                if frame < 128:
                    assert torch.equal(made[0, frame, id], slots[frame, id]) != foretold

    @pytest.mark.parametrize("how", ["drop", "empty", "mask"])
    def test_what_is_removed_has_no_influence(self, how: str) -> None:
        model, slots = random_model(), true_slots(random_scenes()[5][1]).unsqueeze(0)
        other = slots.clone()
        other[:, :, 0, :12] *= -1.0  # elsewhere, but as long in view
        whole, _ = resimulated(model, slots, 140)
        made, again = (resimulated(model, given, 140, 0, how)[0] for given in (slots, other))  # type: ignore[arg-type]
        assert torch.equal(made[:, :, 1:], again[:, :, 1:])
        assert not made[:, :, 0].any()
        changed = downstream(model, slots, 140, 0, how).slots  # type: ignore[arg-type]
        assert not changed[:, :, 0].any() and changed[:, :, 1:].any()
        if how == "empty":
            emptied = slots.clone()
            emptied[:, :, 0] = 0.0
            assert torch.equal(made[:, :, 1:], resimulated(model, emptied, 140)[0][:, :, 1:])
        assert not torch.allclose(made[:, 20:, 1:], whole[:, 20:, 1:])

    def test_a_batch_gives_what_each_video_gives_alone(self) -> None:
        model, videos = random_model(), torch.stack([true_slots(t) for _, t in random_scenes()[:3]])
        together, _ = resimulated(model, videos, 150, 1)
        alone, _ = resimulated(model, videos[2:], 150, 1)
        assert torch.allclose(together[2:], alone, atol=1e-5)

    @pytest.mark.parametrize(("removed", "how"), [(-1, "drop"), (7, "drop"), (0, "emty")])
    def test_what_is_not_there_cannot_be_taken_away(self, removed: int, how: str) -> None:
        for function in (resimulated, downstream):
            with pytest.raises(ValueError, match="must be one of 7 slots, by one of"):
                function(random_model(), torch.zeros(1, 12, 7, 128), 20, removed, how)  # type: ignore[operator]

    def test_short_videos_are_refused(self) -> None:
        with pytest.raises(ValueError, match="needs 6 frames"):
            resimulated(random_model(), torch.zeros(1, 5, 7, 128), 20)


class TestDownstream:
    @pytest.mark.parametrize(("observed", "keep", "every"), [(128, 4, 0), (127, 4, 4), (128, 3, 0), (128, 3, 3)])
    @pytest.mark.parametrize("how", ["drop", "empty"])
    def test_without_tolerance_it_is_the_run_from_the_beginning(
        self, how: str, observed: int, keep: int, every: int
    ) -> None:
        model, videos = random_model(), torch.stack([true_slots(t)[:observed] for _, t in random_scenes()[3:5]])
        model.keep = keep
        again, predicted = resimulated(model, videos, 150, 1, how)  # type: ignore[arg-type]
        found = downstream(model, videos, 150, 1, how, tolerance=-1.0, every=every)  # type: ignore[arg-type]
        assert torch.equal(found.predicted[:, :, :6], predicted[:, :, :6])
        assert torch.allclose(found.slots, again, atol=1e-4)

    @pytest.mark.parametrize("observed", [128, 127])
    def test_what_does_not_change_is_as_observed(self, observed: int) -> None:
        model, video = random_model(), true_slots(random_scenes()[5][1])[:observed].unsqueeze(0)
        found = downstream(model, video, 150, 0, tolerance=torch.inf)
        assert torch.equal(found.slots[:, :observed, 1:], video[:, :, 1:]) and not found.slots[:, :, 0].any()
        assert not found.predicted[:, :observed].any() and found.predicted[:, observed:].all()

    def test_predictors_of_one_frame_are_compared_as_far_ahead_as_c_jepa(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.manual_seed(0)
        config = SlotFormerConfig(depth=1, width=32, heads=2, mlp=32, history=3)
        model, asked = WorldModel(replace(CONFIG, predictor=config)).eval(), []
        plain = model.forecast
        monkeypatch.setattr(model, "forecast", lambda *given: asked.append(given[1]) or plain(*given))
        video = true_slots(random_scenes()[5][1]).unsqueeze(0)
        copied = downstream(model, video, 150, 0).slots  # it predicts no change, whoever is there
        assert set(asked) == {10} and torch.equal(copied[:, :128, 1:], video[:, :, 1:])

    def test_objects_part_where_the_removal_tells(self) -> None:
        model, video = random_model(), true_slots(random_scenes()[5][1]).unsqueeze(0)
        reached = downstream(model, video, 150, 0, tolerance=torch.inf).apart[0]
        assert reached[0] == 0 and (reached[1:4] > 0).all()
        order = reached.argsort(descending=True)
        between = float(reached[order[:2]].mean())
        found = downstream(model, video, 128, 0, tolerance=between)
        parted = found.predicted[0].any(0)
        assert parted[order[0]]
        first = int(found.predicted[0, :, order[0]].int().argmax())
        assert torch.equal(found.slots[0, :first, 1:], video[0, :first, 1:])
        # Once parted, an object does not come back to the observed course.
        for slot in parted.nonzero().flatten():
            for offset in (0, 1):
                own = found.predicted[0, offset::2, slot]
                assert not own.any() or own[int(own.int().argmax()) :].all()

    def test_what_is_removed_has_no_influence_but_through_the_others(self) -> None:
        model, video = random_model(), true_slots(random_scenes()[5][1]).unsqueeze(0)
        other = video.clone()
        other[:, :, 0, :12] *= -1.0
        for tolerance in (-1.0, torch.inf):
            made, again = (downstream(model, given, 140, 0, tolerance=tolerance).slots for given in (video, other))
            assert torch.equal(made, again)

    def test_a_batch_gives_what_each_video_gives_alone(self) -> None:
        model, videos = random_model(), torch.stack([true_slots(t) for _, t in random_scenes()[:3]])
        together, alone = downstream(model, videos, 150, 1), downstream(model, videos[2:], 150, 1)
        assert torch.allclose(together.slots[2:], alone.slots, atol=1e-5)
        assert torch.allclose(together.apart[2:], alone.apart, rtol=1e-3)

    @pytest.mark.parametrize(("keep", "every"), [(4, 3), (4, 1), (3, 2)])
    def test_asked_more_often_all_that_comes_is_still_predicted(self, keep: int, every: int) -> None:
        model, video = random_model(), true_slots(random_scenes()[5][1]).unsqueeze(0)
        model.keep = keep
        found = downstream(model, video, 150, 0, tolerance=torch.inf, every=every)
        assert torch.equal(found.slots[:, :128, 1:], video[:, :, 1:]) and found.predicted[:, 128:].all()
        assert found.slots[:, 128:, 1:].any(-1).all(), "no frame after the observed ones stays empty"

    def test_what_parts_goes_on_from_the_observed_video(self) -> None:
        model, video = random_model(), true_slots(random_scenes()[5][1]).unsqueeze(0)
        reached = downstream(model, video, 128, 0, tolerance=torch.inf, every=1).apart[0]
        found = downstream(model, video, 128, 0, tolerance=float(reached.max()) / 2, every=1)
        observed, made = (
            model.latent(slots[0].unflatten(0, (64, 2)).transpose(0, 1), torch.zeros(2, 64, 0)).slots
            for slots in (video, found.slots)
        )
        checked = 0
        for offset in (0, 1):
            parted = found.predicted[0, offset::2]
            begin = int(parted.any(1).int().argmax())
            if parted[begin].any():
                window = Latent(observed[offset, None, begin - 3 : begin, 1:], torch.zeros(1, 3, 0))
                told = model.forecast(window, 1).slots[0, 0]
                own = parted[begin, 1:]
                assert torch.allclose(made[offset, begin, 1:][own], told[own], atol=1e-4)
                checked += 1
        assert checked

    def test_there_is_no_asking_after_more_than_is_kept(self) -> None:
        model, video = random_model(), true_slots(random_scenes()[5][1]).unsqueeze(0)
        for every in (-1, 5):
            with pytest.raises(ValueError, match=f"every={every} must be 0 to 4"):
                downstream(model, video, 140, 0, every=every)
        with pytest.raises(ValueError, match="every is of downstream=true"):
            RolloutConfig(remove="drop", every=2)

    def test_expectations_are_shared_by_all_removals(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, videos = random_model(), torch.stack([true_slots(t) for _, t in random_scenes()[:3]])
        expected, asked = expectations(model, videos), []
        for slot in (0, 2):
            own, shared = (downstream(model, videos[1:], 150, slot, expected=e) for e in (None, expected[1:]))
            assert torch.allclose(shared.slots, own.slots, atol=1e-5)
            assert torch.allclose(shared.apart, own.apart, rtol=1e-3)
        plain = model.forecast
        monkeypatch.setattr(model, "forecast", lambda *given: asked.append(given) or plain(*given))
        downstream(model, videos, 150, 0, expected=expected)
        assert len(asked) == -(-(150 // 2 - 3) // 4)  # one per call, all of the video without the object


@torch.no_grad()
def test_the_bundled_state_predictor_foretells_what_removals_change() -> None:
    model = Checkpoint.from_pretrained("clevrer-state").model
    model.keep = 6
    foretold, unchanged = [], []
    for scene, trajectory in random_scenes()[:4]:
        seen, slots = scene_states(trajectory, VISIBLE_FRAMES), true_slots(trajectory).unsqueeze(0)
        for removed in scene.ids:
            true = scene_states(simulate(scene, {removed: 0}), VISIBLE_FRAMES)
            moved = np.linalg.norm(true[..., 1:3] - seen[..., 1:3], axis=-1)
            changed = (true[..., 0] > 0) & (seen[..., 0] > 0) & (moved > RADIUS)
            if changed.any():
                told = read_scene(downstream(model, slots, VISIBLE_FRAMES, removed).slots[0]).position.numpy()
                foretold.append(np.linalg.norm(told - true[..., 1:3], axis=-1)[changed].mean())
                unchanged.append(moved[changed].mean())
    assert np.mean(foretold) < 0.5 * np.mean(unchanged)


class TestCollisions:
    def test_features_of_a_hit_and_of_passing_by(self) -> None:
        trajectory = simulate(chain())
        found = pair_features(read_scene(true_slots(trajectory, 180)))
        values = dict(zip(found.pairs, found.values, strict=True))
        frames = dict(zip(found.pairs, found.frame.tolist(), strict=True))
        hit = next(c for c in trajectory.collisions if set(c.ids) == {0, 1})
        distance, before, _, turned, most, cubes = values[frozenset((0, 1))]
        assert abs(frames[frozenset((0, 1))] - hit.frame) <= 2 and distance == pytest.approx(2.0, abs=0.3)
        assert before > distance + 0.5 and turned > 0.1 and most <= turned and cubes == 0
        assert values[frozenset((1, 2))][5] == 1

    def test_pairs_that_are_never_in_view_together_or_never_near_are_left_out(self) -> None:
        reading = read_scene(true_slots(simulate(chain()), 180))
        far = reading.position.clone()
        far[:, 4] = 40.0
        assert all(4 not in pair for pair in pair_features(reading._replace(position=far)).pairs)
        absent = reading.presence.clone()
        absent[:, 1] = 0.0
        assert all(1 not in pair for pair in pair_features(reading._replace(presence=absent)).pairs)

    def test_a_read_out_learns_from_true_courses(self) -> None:
        scenes = [t for _, t in random_scenes()]
        features = [pair_features(read_scene(true_slots(t, FRAMES))) for t in scenes]
        happened = [frozenset(frozenset(c.ids) for c in t.collisions) for t in scenes]
        readout = CollisionReadout(features[:20], happened[:20])
        wrong = sum(len(set(readout(f)) ^ h) for f, h in zip(features[20:], happened[20:], strict=True))
        assert wrong <= 0.3 * sum(len(h) for h in happened[20:])
        again = CollisionReadout(features[:20], happened[:20])
        assert all(readout(f) == again(f) for f in features[20:])

    def test_nothing_to_learn_is_refused(self) -> None:
        features = [pair_features(read_scene(true_slots(simulate(chain()), 180)))]
        with pytest.raises(ValueError, match="fit it on more scenes"):
            CollisionReadout(features, [frozenset()])


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
        for trusting, told_by, other in (
            ("predicted", "predicted", "downstream"),
            ("continued", "downstream", "predicted"),
        ):
            blind = readouts._replace(predicted=lambda _: {}, continued=lambda _: {})  # type: ignore[arg-type]
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
