"""Objects read out of slots that no one knows the meaning of: state slots, turned, and shuffled in each video."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from perfect_predictor import perfect_findings, true_slots
from torch import Tensor

from cjepa_agent.collect import collect
from cjepa_agent.collecting.clevrer import CLEVRERCollection
from cjepa_agent.data.video_slots import VideoSlots
from cjepa_agent.encoders.autoencoder import SlotAutoencoder
from cjepa_agent.encoders.base import POSITION_DIM
from cjepa_agent.encoders.clevrer_state import CLEVRERStateDecoder, SceneReading, scene_states
from cjepa_agent.encoders.kinds import EncoderConfig
from cjepa_agent.encoders.slot_attention import SlotDecoder
from cjepa_agent.encoders.state import appearance_basis
from cjepa_agent.evaluation import findings, intervention
from cjepa_agent.evaluation import rollout as rollout_task
from cjepa_agent.evaluation.config import EvaluateConfig
from cjepa_agent.evaluation.findings import Findings
from cjepa_agent.predictors.cjepa import PredictorConfig
from cjepa_agent.predictors.oc_dino_wm import OCDINOWMConfig
from cjepa_agent.predictors.slotformer import SlotFormerConfig
from cjepa_agent.reading import readout
from cjepa_agent.reading.slot_reader import NO_SLOT, SlotReader, by_object, objects_of, slot_reader
from cjepa_agent.rollout import RolloutConfig, rollout
from cjepa_agent.train import TrainConfig, train
from cjepa_agent.training.loop import TrainerConfig
from cjepa_agent.training.predictor_stage import DynamicsTrainingConfig
from cjepa_agent.video_prediction import in_view, object_slots, require_removal, resimulated
from cjepa_agent.vqa.data import NOTHING, SlotQuestions
from cjepa_agent.vqa.intervened import Intervened
from cjepa_agent.world_model import WorldModel, WorldModelConfig
from configs.presets import preset
from envs.clevrer.dataset import Dataset, split_of
from envs.clevrer.questions.executor import removed_object
from envs.clevrer.shapes import RADIUS

ENCODER = EncoderConfig(n_slots=7)  # of pixels, as far as anyone asks
ROTATION = torch.linalg.qr(torch.randn(128, 128, generator=torch.Generator().manual_seed(1)))[0]
IDENTITY = {"encoder": "turned and shuffled"}


def order(scene: int) -> Tensor:
    """The object (6 is the background) in each slot of a scene."""
    return torch.randperm(7, generator=torch.Generator().manual_seed(scene))


def encode(scene: int, true: Tensor) -> Tensor:
    return true[:, order(scene)] @ ROTATION


def slot_of(scene: int, id: int) -> int:
    return order(scene).tolist().index(id)


def draw(self: SlotDecoder, slots: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """What a decoder of these slots would draw."""
    true = slots @ ROTATION.T
    background = (true[..., POSITION_DIM:] @ appearance_basis(128 - POSITION_DIM, 2).T)[..., 1]
    last = background.argsort(dim=-1, stable=True)
    colours, masks = CLEVRERStateDecoder()(true.take_along_dim(last.unsqueeze(-1), 1), points)
    back = last.argsort(dim=-1).unsqueeze(-1)
    return colours.take_along_dim(back, 1), masks.take_along_dim(back, 1)


@pytest.fixture(scope="module", autouse=True)
def decoder() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SlotDecoder, "forward", draw)
        patch.setattr(readout, "STEPS", 1200)  # these slots are easily read
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clevrer") / "data"
    collect(CLEVRERCollection(out=folder, videos=32, workers=1, pictures=False))
    return folder


def write(folder: Path, data: Path, scenes: list[int], without: dict[int, int] | None = None) -> Path:
    """Slots of scenes; ``without`` names objects that the encoder has overlooked."""
    videos = []
    for scene in scenes:
        true = true_slots(Dataset(data).trajectory(scene))
        if without and scene in without:
            true[:, without[scene]] = 0.0
        videos.append(encode(scene, true))
    VideoSlots.write(folder, IDENTITY, scenes, (128, 7, 128), videos, dtype=np.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        SlotAutoencoder(ENCODER).save(folder)
    (folder / "recipe.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def mixed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dataset = Dataset(data)
    scenes = sorted(scene for split in ("train", "validation") for scene in dataset.scenes("annotation", split))
    return write(tmp_path_factory.mktemp("mixed") / "slots", data, scenes)


@pytest.fixture(scope="module")
def model() -> WorldModel:
    torch.manual_seed(0)
    predictor = PredictorConfig(depth=1, width=32, heads=2, mlp=32, history=3, future=4)
    return WorldModel(WorldModelConfig(ENCODER, predictor, proprio_dim=0, env_action_dim=0, action_block=2)).eval()


@pytest.fixture(scope="module")
def reader(mixed: Path, data: Path, decoder: object) -> SlotReader:
    return slot_reader(SlotAutoencoder.load(mixed), VideoSlots(mixed), Dataset(data))


def held_out(mixed: Path) -> list[int]:
    return [scene for scene in VideoSlots(mixed).scenes if split_of(scene) == "validation"]


class TestReader:
    def test_held_out_objects_are_found_in_their_slots(self, reader: SlotReader, mixed: Path, data: Path) -> None:
        for scene in held_out(mixed):
            trajectory = Dataset(data).trajectory(scene)
            states = scene_states(trajectory, 128)
            holders = reader.holders(VideoSlots(mixed).read(scene), states)
            seen = set(np.flatnonzero(states[..., 0].any(axis=0)).tolist())
            assert holders.tolist() == [slot_of(scene, id) if id in seen else NO_SLOT for id in range(6)]

    def test_what_is_read_of_held_out_scenes(self, reader: SlotReader, mixed: Path, data: Path) -> None:
        away, present, named = [], [], []
        for scene in held_out(mixed):
            states = torch.from_numpy(scene_states(Dataset(data).trajectory(scene), 128))
            holders = torch.tensor([slot_of(scene, id) for id in range(6)])
            reading = objects_of(reader.read(VideoSlots(mixed).read(scene)), holders)
            there = states[..., 0] > 0
            away.append((reading.position - states[..., 1:3]).norm(dim=-1)[there] / RADIUS)
            present.append(((reading.presence > 0.5) == there).flatten())
            named.append((torch.stack([reading.shape, reading.colour, reading.material], -1) == states[..., 4:])[there])
        assert torch.cat(away).mean() < 0.15
        assert torch.cat(present).float().mean() > 0.99 and torch.cat(named).float().mean() > 0.9

    def test_it_is_fitted_on_training_scenes_alone(
        self, mixed: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(readout, "STEPS", 5)
        source, autoencoder, dataset = VideoSlots(mixed), SlotAutoencoder.load(mixed), Dataset(data)
        before = slot_reader(autoencoder, source, dataset).identity
        training = [scene for scene in source.scenes if split_of(scene) == "train"]
        fewer = VideoSlots(write(tmp_path / "fewer", data, training))
        asked: list[int] = []

        class Watched(Dataset):
            def trajectory(self, scene: int):  # type: ignore[no-untyped-def]
                asked.append(scene)
                return super().trajectory(scene)

        assert slot_reader(autoencoder, fewer, Watched(data)).identity == before and asked == training
        assert slot_reader(autoencoder, fewer, dataset, seed=1).identity != before
        held = VideoSlots(write(tmp_path / "held", data, held_out(mixed)))
        with pytest.raises(ValueError, match="no scene of the training split"):
            slot_reader(autoencoder, held, dataset)

    def test_slots_of_nothing_are_refused(self, mixed: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def even(self: SlotDecoder, slots: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
            return slots[..., :3], torch.full((*slots.shape[:2], points.shape[1]), 1 / 7)

        monkeypatch.setattr(SlotDecoder, "forward", even)
        with pytest.raises(ValueError, match="no slot holds an object in any of .* train the encoder longer"):
            slot_reader(SlotAutoencoder.load(mixed), VideoSlots(mixed), Dataset(data))

    def test_patches_are_refused(self, mixed: Path, data: Path) -> None:
        from cjepa_agent.encoders.kinds import encoder_config
        from cjepa_agent.encoders.patches import PatchTokenConfig

        patches = encoder_config({"kind": "patches"})
        assert isinstance(patches, PatchTokenConfig)
        with pytest.raises(ValueError, match="holds patches, none of which is an object"):
            slot_reader(SlotAutoencoder(patches), VideoSlots(mixed), Dataset(data))

    def test_objects_without_a_slot(self) -> None:
        values = torch.arange(12.0).view(2, 6)[:, :4]
        holders = torch.tensor([2, NO_SLOT, 0, 3, NO_SLOT, 1])
        assert by_object(values, holders, -1, -5.0).tolist() == [[2, -5, 0, 3, -5, 1], [8, -5, 6, 9, -5, 7]]
        reading = SceneReading(torch.ones(2, 4, 2), *(torch.ones(2, 4) for _ in range(5)))
        made = objects_of(reading, holders)
        assert made.presence.tolist() == 2 * [[1, 0, 1, 1, 0, 1]]
        assert made.position.isnan().any(-1).tolist() == 2 * [[False, True, False, False, True, False]]


class TestInView:
    def test_objects_are_shown_until_they_have_been_in_view_and_the_background_is_predicted(
        self, model: WorldModel, reader: SlotReader, mixed: Path, data: Path
    ) -> None:
        scene = held_out(mixed)[0]
        video = VideoSlots(mixed).read(scene).unsqueeze(0)
        _, predicted = resimulated(model, video, 128, reader=reader)
        inside = scene_states(Dataset(data).trajectory(scene), 128)[..., 0] > 0
        late = [id for id in range(6) if inside[:, id].any() and not inside[:20, id].any()]
        assert late
        for id in late:
            first = int(predicted[0, :, slot_of(scene, id)].int().argmax())
            assert 4 <= first - int(inside[:, id].argmax()) <= 18
        assert predicted[0, 6:, slot_of(scene, 6)].all()
        assert resimulated(model, video, 128)[1][0, 6:].all() and in_view(model, video).all()
        assert list(object_slots(model)) == list(range(7))

    def test_objects_cannot_be_taken_away_in_every_way(self, model: WorldModel) -> None:
        state = EncoderConfig(kind="clevrer_state", n_slots=7).build()[0]
        ordered, plain = (kind().build(7, 128, 0, 0) for kind in (OCDINOWMConfig, SlotFormerConfig))
        for encoder, predictor, how in ((model.encoder, model.predictor, "drop"), (state, ordered, "empty")):
            require_removal(encoder, predictor, how)
        with pytest.raises(ValueError, match=r"only slots of encoder=state have an empty .* one of \['drop', 'mask'\]"):
            require_removal(model.encoder, model.predictor, "empty")
        with pytest.raises(ValueError, match=r"nothing can be hidden from SlotFormer; give one of \['drop', 'empty'\]"):
            require_removal(state, plain, "mask")
        with pytest.raises(ValueError, match=r"OCDINOWM tells slots apart, so that none .* one of \['empty'\]"):
            require_removal(state, ordered, "drop")


def perfect(model: WorldModel, reader: SlotReader, data: Path, slots: Path) -> Findings:
    """Findings on a predictor that is always right."""

    def object_of(scene: int, slot: int) -> int:
        return int(order(scene)[slot])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(findings, "slot_reader", lambda *_: reader)
        return perfect_findings(patch, model, Dataset(data), VideoSlots(slots), encode, object_of)


class TestFindings:
    @pytest.fixture(scope="class")
    def whole(self, model: WorldModel, reader: SlotReader, data: Path, mixed: Path) -> Findings:
        return perfect(model, reader, data, mixed)

    def test_a_perfect_predictor_is_nearly_perfect(self, whole: Findings, data: Path, mixed: Path) -> None:
        report = intervention.summary(whole, 0)
        assert report["objects"]["without_a_slot"] == 0 and report["objects"]["reading_error_radii"]["mean"] < 0.15
        for name, errors in report["position_error_radii"].items():
            assert errors["predicted"]["mean"] < 0.2, name
        assert report["influence"]["shift"]["AUROC"] > 0.97
        for when, scores in report["collision_pairs"].items():
            assert scores["predicted"]["F1"] > scores["true positions"]["F1"] - 0.08, when
        dataset = Dataset(data)
        every = {
            (scene, id)
            for scene in held_out(mixed)
            for id in (dataset.counterfactuals(scene) or pytest.fail("no counterfactuals")).without
        }
        assert {(removed.scene, removed.id) for removed in whole.removed} == every

    def test_an_object_without_a_slot_is_told_and_counts_as_not_predicted(
        self, whole: Findings, model: WorldModel, reader: SlotReader, data: Path, mixed: Path, tmp_path: Path
    ) -> None:
        scene, id = next((r.scene, r.id) for r in whole.removed if r.influenced.any())
        lost = write(tmp_path / "lost", data, VideoSlots(mixed).scenes, {scene: id})
        found = perfect(model, reader, data, lost)
        assert found.seen.count(False) == 1 and len(found.seen) == len(whole.seen)
        assert len(found.read) == len(found.seen) - 1 and len(found.factual) == len(whole.factual) - 1
        assert {(r.scene, r.id) for r in found.removed} == {(r.scene, r.id) for r in whole.removed}
        for removed in found.removed:
            if removed.scene == scene:
                assert not removed.counted[id]
                if removed.id == id:
                    assert not removed.shift.any() and not removed.apart.any() and removed.influenced.any()
                    moved = removed.counted & removed.influenced
                    assert np.allclose(removed.error[moved], removed.unchanged[moved], atol=0.5)
        total, before = found.factual_pairs["predicted"], whole.factual_pairs["predicted"]
        assert total.missed > before.missed
        for kind, by in found.answers.items():
            assert all(len(right) == len(whole.answers[kind][name]) for name, right in by.items())


@pytest.fixture(scope="module")
def trained(mixed: Path, tmp_path_factory: pytest.TempPathFactory, decoder: object) -> Path:
    folder = tmp_path_factory.mktemp("run")
    predictor = replace(preset(PredictorConfig, "predictor", "clevrer"), depth=1, width=32, heads=2, mlp=32)
    dynamics = replace(preset(DynamicsTrainingConfig, "dynamics", "clevrer"), windows=8, rollout_batch=4)
    trainer = TrainerConfig(
        steps=3, batch=4, optimizer="adamw", warmup=1, ema=0.0, precision="32-true", accelerator="cpu"
    )
    train(
        TrainConfig(data=Path("none"), slots=mixed, out=folder, predictor=predictor, dynamics=dynamics, trainer=trainer)
    )
    return folder / "checkpoint"


class TestCommands:
    def test_intervention(self, data: Path, mixed: Path, trained: Path, tmp_path: Path) -> None:
        config = EvaluateConfig(
            "intervention", weights=str(trained), data=str(data), slots=str(mixed), split="validation",
            episodes=20, out=str(tmp_path),
        )  # fmt: skip
        assert "error of reading observed slots" in intervention.run(config)
        report = json.loads((tmp_path / "intervention.json").read_text())
        assert report["objects"]["without_a_slot"] == 0 and 0 < report["influence"]["attention, mean"]["AUROC"] < 1
        with pytest.raises(ValueError, match="only slots of encoder=state have an empty slot"):
            intervention.run(replace(config, removal="empty"))

    def test_rollout(self, data: Path, mixed: Path, tmp_path: Path) -> None:
        rollout(RolloutConfig("copy", mixed, tmp_path / "copy"))
        config = EvaluateConfig(
            "rollout", slots=str(tmp_path / "copy"), data=str(data), split="validation", out=str(tmp_path)
        )
        assert "objects without a slot: 0 of" in rollout_task.run(config)
        report = json.loads((tmp_path / "rollout.json").read_text())
        assert report["mean_position_error_radii"]
        for row in report["mean_position_error_radii"]:
            assert row["predicted"] == pytest.approx(row["copied"], abs=0.2)

    def test_counterfactual_questions_read_the_prediction_without_their_object(
        self, data: Path, mixed: Path, trained: Path, tmp_path: Path
    ) -> None:
        file, dataset = Dataset(data).questions("validation"), Dataset(data)
        counterfactual = [
            (int(scene["scene_index"]), question)
            for scene in file.scenes
            for question in scene["questions"]
            if question["question_type"] == "counterfactual"
        ]
        scene, first = counterfactual[0]
        overlooked = removed_object(dataset.facts(scene), first["program"])
        lost = write(tmp_path / "lost", data, VideoSlots(mixed).scenes, {scene: overlooked})
        settings = RolloutConfig(
            str(trained), lost, tmp_path / "without", frames=128, remove="drop", data=data, batch=128
        )
        rollout(settings)
        assert sorted(path.name for path in settings.out.iterdir()) == [f"without_{slot}" for slot in range(7)]
        made = VideoSlots(settings.out / "without_2")
        assert len(made.identity["reader"]) == 64 and not made.array[:, :, 2].any()
        with pytest.raises(ValueError, match="choose another out="):
            rollout(replace(settings, data=None))
        asked = SlotQuestions(file, VideoSlots(lost), 4, Intervened(settings.out, dataset, VideoSlots(lost)))
        told = asked.removed[[number for number, kind in enumerate(asked.type) if kind == 3]]
        expected = [(s, removed_object(dataset.facts(s), question["program"])) for s, question in counterfactual]
        assert told.tolist() == [NOTHING if (s, id) == (scene, overlooked) else slot_of(s, id) for s, id in expected]
        assert asked.without_a_slot == expected.count((scene, overlooked)) >= 1
        other = VideoSlots(lost)
        other.identity = {"encoder": "another"}
        with pytest.raises(ValueError, match="slots and predictions of the same extraction"):
            Intervened(settings.out, dataset, other)
