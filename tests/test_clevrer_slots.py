"""CLEVRER from data set to rollouts: privileged slots, extraction, training without actions, rollouts."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clevrer_scenes import chain, random_scenes
from torch import Tensor

from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.data.episodes import EpisodeFile, write_episodes
from cjepa_agent.data.slot_data import VideoSlotData, open_slots
from cjepa_agent.data.video_slots import VideoSlots
from cjepa_agent.encoders.autoencoder import SlotAutoencoder
from cjepa_agent.encoders.base import centroid_of, grid_coordinates
from cjepa_agent.encoders.clevrer_state import CLEVRERStateDecoder, CLEVRERStateEncoder, read_scene, scene_states
from cjepa_agent.encoders.kinds import EncoderConfig
from cjepa_agent.evaluation.rollout import position_errors, predicted_pairs
from cjepa_agent.extract import ExtractConfig, extract
from cjepa_agent.predictors.cjepa import PredictorConfig
from cjepa_agent.predictors.masking import MaskConfig
from cjepa_agent.reading.collisions import colliding_pairs
from cjepa_agent.rollout import RolloutConfig, rollout
from cjepa_agent.train import TrainConfig, train
from cjepa_agent.training.ctt import CTTConfig
from cjepa_agent.training.loop import TrainerConfig
from cjepa_agent.training.objectives import SlotTrainingConfig
from cjepa_agent.training.predictor_stage import DynamicsTrainingConfig, PredictorStage
from cjepa_agent.video_prediction import continued, object_slots
from cjepa_agent.world_model import WorldModel, WorldModelConfig
from configs.presets import preset
from envs.clevrer import simulate
from envs.clevrer.annotation import annotate
from envs.clevrer.camera import REFERENCE
from envs.clevrer.dataset import Dataset, scene_paths
from envs.clevrer.scene import COLOURS, MATERIALS, SHAPES
from envs.clevrer.video import encode_video

SCENES = (0, 1, 2, 10000, 10001, 15000)
STATE_ENCODER = EncoderConfig(kind="clevrer_state", n_slots=7)
CONFIG = WorldModelConfig(
    encoder=STATE_ENCODER,
    predictor=PredictorConfig(depth=2, width=32, heads=2, mlp=32, history=3, future=4),
    proprio_dim=0,
    env_action_dim=0,
    action_block=2,
)
TRAINER = TrainerConfig(
    steps=20, batch=8, optimizer="adamw", lr=3e-3, warmup=1, ema=0.0, precision="32-true", accelerator="cpu",
    log_every=5, validate_every=20,
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of six annotated scenes without pictures."""
    folder = tmp_path_factory.mktemp("clevrer")
    for scene, (_, trajectory) in zip(SCENES, random_scenes()[: len(SCENES)], strict=True):
        path = scene_paths(folder, "annotation", scene)[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(annotate(trajectory, scene)))
    return folder


@pytest.fixture(scope="module")
def trained(slots: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(training(slots, folder))
    return folder


def training(slots: Path, out: Path, **changes: object) -> TrainConfig:
    predictor = replace(preset(PredictorConfig, "predictor", "clevrer"), depth=1, width=32, heads=2, mlp=32)
    dynamics = replace(preset(DynamicsTrainingConfig, "dynamics", "clevrer"), windows=16, rollout_batch=4)
    config = TrainConfig(
        data=Path("none"), slots=slots, out=out, predictor=predictor, dynamics=dynamics, mask=MaskConfig(4),
        trainer=TRAINER,
    )  # fmt: skip
    return replace(config, **changes)  # type: ignore[arg-type]


def predictor_stage(config: TrainConfig) -> PredictorStage:
    data, autoencoder = open_slots(config.data, config.slots), SlotAutoencoder.load(config.slots)
    return PredictorStage(data, autoencoder, config.predictor, config.mask, config.dynamics, config.trainer, {})


def random_model(seed: int = 0) -> WorldModel:
    torch.manual_seed(seed)
    model = WorldModel(CONFIG)
    for parameter in model.predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.processor.slot_mean.copy_(torch.rand(128).expand(7, -1))
    model.processor.slot_scale.copy_(torch.rand(128) + 0.5)
    return model.eval()


def video(frames: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, frames, 7, 128, generator=torch.Generator().manual_seed(1))


class TestStateSlots:
    @pytest.mark.parametrize("number", range(0, 30, 3))
    def test_all_that_the_camera_sees_can_be_read_back(self, number: int) -> None:
        scene, trajectory = random_scenes()[number]
        states = scene_states(trajectory, 180)
        read = read_scene(CLEVRERStateEncoder().read(torch.from_numpy(states)).half().float())
        for column, item in enumerate(scene.objects):
            inside = trajectory.inside[:, column]
            assert np.array_equal(read.presence[:, item.id].numpy() > 0.5, inside)
            found = read.position[inside, item.id].numpy()
            assert np.abs(found - trajectory.location[inside, column, :2]).max(initial=0) < 2e-3
            for names, index, name in (
                (SHAPES, read.shape, item.shape),
                (COLOURS, read.colour, item.colour),
                (MATERIALS, read.material, item.material),
            ):
                assert {names[i] for i in index[inside, item.id]} <= {name}
            if item.shape == "cube":
                turn = 4 * (read.angle[inside, item.id].numpy() - trajectory.orientation[inside, column, 2])
                assert np.abs(np.sin(turn / 2)).max(initial=0) < 2e-3

    def test_slots_are_empty_where_there_is_nothing_to_see(self) -> None:
        _, trajectory = random_scenes()[0]
        made = CLEVRERStateEncoder().read(torch.from_numpy(scene_states(trajectory, 180)))
        absent = [id for id in range(6) if id not in trajectory.ids]
        assert absent and not made[:, absent].any()
        for column, id in enumerate(trajectory.ids):
            assert torch.equal(made[:, id].any(-1), torch.from_numpy(trajectory.inside[:, column]))
        assert (made[:, 6] == made[0, 6]).all() and made[0, 6].any()

    def test_a_slot_keeps_its_object_when_another_one_is_removed(self) -> None:
        encoder, whole, without = CLEVRERStateEncoder(), simulate(chain()), simulate(chain(), {0: 0})
        before, after = (encoder.read(torch.from_numpy(scene_states(t, 180))) for t in (whole, without))
        assert not after[:, 0].any()
        assert torch.equal(before[:, [3, 4]], after[:, [3, 4]])
        assert not torch.equal(before[:, 1], after[:, 1])

    def test_centroids_are_where_other_encoders_have_them(self) -> None:
        states = torch.from_numpy(scene_states(random_scenes()[1][1], 20))
        encoding = CLEVRERStateEncoder()(states)
        present = states[..., 0] > 0
        assert torch.allclose(centroid_of(encoding.slots)[:, :6][present], encoding.centroid[:, :6][present], atol=1e-5)

    def test_drawings_show_objects_where_the_camera_sees_them(self) -> None:
        trajectory = simulate(chain())
        drawn, masks = CLEVRERStateDecoder()(
            CLEVRERStateEncoder().read(torch.from_numpy(scene_states(trajectory, 1))), grid_coordinates(64).unsqueeze(0)
        )
        assert drawn.shape == (1, 7, 3) and torch.allclose(masks.sum(1), torch.ones(1, 64 * 64), atol=1e-4)
        pixels, _ = REFERENCE.project(trajectory.location[0])
        for column, id in enumerate(trajectory.ids):
            if trajectory.inside[0, column]:
                x, y = (int(64 * share) for share in pixels[column] / (480, 320))
                assert masks[0, id].view(64, 64)[y, x] > 0.5

    @pytest.mark.parametrize("bad", [torch.zeros(2, 7), torch.zeros(2, 6, 7).long()])
    def test_other_states_are_refused(self, bad: Tensor) -> None:
        with pytest.raises(ValueError, match=r"states must be float \(B, 6, 7\)"):
            CLEVRERStateEncoder().read(bad)


class TestExtraction:
    def test_slots_are_those_of_the_trajectories(self, slots: Path) -> None:
        stored = VideoSlots(slots)
        assert stored.scenes == list(SCENES) and stored.frames == 128
        states = torch.from_numpy(scene_states(random_scenes()[4][1], 128))
        assert torch.equal(stored.read(10001), CLEVRERStateEncoder().read(states).half().float())

    def test_an_interrupted_run_goes_on(
        self, data: Path, slots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = ExtractConfig(data=data, encoder=Path("state"), out=tmp_path / "slots")
        plain = VideoSlots.write

        def killed(*arguments: object, every: int = 50) -> None:
            *rest, videos = arguments
            plain(*rest, (slots for _, slots in zip(range(4), videos)), every=2)  # type: ignore[arg-type] # noqa: B905

        monkeypatch.setattr(VideoSlots, "write", staticmethod(killed))
        extract(config)
        with pytest.raises(ValueError, match="has 4 of 6 videos"):
            VideoSlots(config.out)
        monkeypatch.undo()
        extract(config)
        assert (config.out / "slots.npy").read_bytes() == (slots / "slots.npy").read_bytes()

    def test_broken_scenes_are_left_out(self, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        shutil.copytree(data, tmp_path / "data")
        scene_paths(tmp_path / "data", "annotation", 10000)[0].write_text("{")
        extract(ExtractConfig(data=tmp_path / "data", encoder=Path("state"), out=tmp_path / "slots"))
        assert VideoSlots(tmp_path / "slots").scenes == [scene for scene in SCENES if scene != 10000]
        assert "left out: " in capsys.readouterr().out
        assert "scene 10000" in json.loads((tmp_path / "slots/scenes.json").read_text())["left_out"]["10000"]

    def test_of_some_splits(self, data: Path, tmp_path: Path) -> None:
        config = ExtractConfig(data=data, encoder=Path("state"), out=tmp_path / "slots", splits=("validation", "train"))
        extract(config)
        assert VideoSlots(config.out).scenes == [scene for scene in SCENES if scene < 15000]
        with pytest.raises(ValueError, match=r"splits has \['dev'\]; expected some of"):
            extract(replace(config, splits=("dev",)))

    def test_slots_of_something_else_stay(self, data: Path, slots: Path, tmp_path: Path) -> None:
        before = (slots / "slots.npy").read_bytes()
        with pytest.raises(ValueError, match="choose another out="):
            extract(ExtractConfig(data=data, encoder=Path("state"), out=slots, episodes=1))
        assert (slots / "slots.npy").read_bytes() == before
        with pytest.raises(ValueError, match="stride=2"):
            extract(ExtractConfig(data=data, encoder=Path("state"), out=tmp_path, stride=2))

    def test_pixels_by_a_trained_encoder(self, tmp_path: Path) -> None:
        """Trained on frames.h5, applied to them and, where there are none, to the videos."""
        rng, folder = np.random.default_rng(0), tmp_path / "data"
        frames = {scene: rng.integers(0, 256, (128, 16, 16, 3), np.uint8) for scene in (0, 10000, 15000)}
        episodes = []
        for number, (scene, pixels) in enumerate(frames.items()):
            path = scene_paths(folder, "video", scene)[0]
            path.parent.mkdir(parents=True)
            path.write_bytes(encode_video(pixels))
            rows = np.ones(128, np.int32)
            episodes.append(
                {
                    "pixels": pixels,
                    "action": np.zeros((128, 1), np.float32),
                    "scene": rows * scene,
                    "split": (rows * number).astype(np.int8),
                }
            )
        write_episodes(folder / "frames.h5", episodes)
        encoder = EncoderConfig(n_slots=3, slot_dim=16, image_size=16, width=8, iterations=1, decoder_width=8)
        train(
            TrainConfig(
                "encoder", folder, out=tmp_path / "encoder", encoder=encoder, slot_training=SlotTrainingConfig(32, 8),
                trainer=replace(TRAINER, steps=2, batch=2),
            )
        )  # fmt: skip
        extract(ExtractConfig(data=folder, encoder=tmp_path / "encoder", out=tmp_path / "slots"))
        with torch.no_grad():
            model = SlotAutoencoder.load(tmp_path / "encoder").encoder
            expected = model.read(torch.from_numpy(frames[15000]))
        assert torch.allclose(VideoSlots(tmp_path / "slots").read(15000), expected, atol=5e-3)
        rows, truth = np.array([300, 5]), [frames[15000][44], frames[0][5]]
        assert np.array_equal(open_slots(folder, tmp_path / "slots").pixels(rows), np.stack(truth))
        dynamics = {"action_block": 2, "single_frame": 0.0, "windows": 4, "rollout_from": 0.0, "rollout_batch": 2}
        drawn = DynamicsTrainingConfig(image_weight=1.0, image_frames=3, image_points=8, **dynamics)
        short = replace(TRAINER, steps=2, log_every=1)
        config = training(tmp_path / "slots", tmp_path / "run", dynamics=drawn, mask=MaskConfig(1), trainer=short)
        config = replace(config, ctt=CTTConfig(sufficiency_weight=0.1, invariance_weight=0.2, start=0.0))
        train(replace(config, data=folder))
        logged = {line.split(",")[1] for line in (tmp_path / "run/train.csv").read_text().splitlines()}
        assert {"image", "rollout_image", "sufficiency", "invariance"} <= logged
        with pytest.raises(FileNotFoundError, match="no CLEVRER data set at none"):
            train(replace(config, out=tmp_path / "blind"))
        (folder / "frames.h5").unlink()
        extract(ExtractConfig(data=folder, encoder=tmp_path / "encoder", out=tmp_path / "lossy", episodes=1))
        assert VideoSlots(tmp_path / "lossy").scenes == [0, 10000, 15000]
        decoded = open_slots(folder, tmp_path / "lossy").pixels(rows)
        assert np.array_equal(decoded[0], Dataset(folder).video(15000)[44])


class TestTraining:
    def test_windows_stay_inside_their_video_and_split(self, slots: Path) -> None:
        windows = open_slots(Path("none"), slots)
        starts = windows.window_starts("validation", frames=16, block=2)
        assert isinstance(windows, VideoSlotData) and len(starts) == 2 * 98
        assert set(starts // 128) == {3, 4} and (starts % 128 + 30 < 128).all()
        latent, actions = windows.windows(np.array([130]), frames=3, block=2)
        assert torch.equal(latent.slots[0], VideoSlots(slots).read(1)[[2, 4, 6]])
        assert latent.proprio.shape == (1, 3, 0) and actions.shape == (1, 2, 0)

    def test_the_command_makes_a_model_of_videos(self, trained: Path) -> None:
        checkpoint = Checkpoint.from_pretrained(trained / "checkpoint")
        config = checkpoint.model.config
        assert (config.proprio_dim, config.action_dim, config.action_block, config.predictor.future) == (0, 0, 2, 10)
        assert checkpoint.prior is None and config.roles == {}
        with pytest.raises(ValueError, match="knows no actions"):
            _ = checkpoint.action_prior
        assert (checkpoint.model.processor.slot_mean == checkpoint.model.processor.slot_mean[0]).all()
        card = (trained / "checkpoint/README.md").read_text()
        assert "cjepa_agent.rollout" in card and "**Privileged" in card and "push-t" not in card

    def test_validation_compares_with_copying(self, slots: Path, trained: Path, tmp_path: Path) -> None:
        """Before any training the residual predictor does copy the last frame of its history."""
        stage = predictor_stage(training(slots, tmp_path))
        before = stage.validate(stage.model)
        with (trained / "validation.csv").open() as file:
            after = {name: float(value) for _, name, value in csv.reader(file)}
        for step in range(1, 17):
            assert before[f"against_copy_{step}"] == pytest.approx(1.0) and before[f"rollout_{step}"] > 0
            assert np.isfinite(after[f"against_copy_{step}"]) and after[f"against_copy_{step}"] != 1.0

    def test_the_seed_is_dropouts_too(self, slots: Path, tmp_path: Path) -> None:
        config = training(slots, tmp_path)
        losses = []
        for dropout, before in ((0.5, 1), (0.5, 2), (0.0, 3)):
            torch.manual_seed(before)
            stage = predictor_stage(replace(config, predictor=replace(config.predictor, dropout=dropout)))
            torch.nn.init.eye_(stage.world_model.predictor.head_slot.weight)  # zero until it is trained
            terms = stage.loss(stage.model.train(), 0, 8, slice(0, 8), torch.Generator().manual_seed(0))
            losses.append(terms["total"].item())
        assert losses[0] == losses[1] != losses[2]

    def test_normalised_slots_have_unit_variance_half_of_it_in_places(self, trained: Path, slots: Path) -> None:
        model = Checkpoint.from_pretrained(trained / "checkpoint").model
        fitted = 128 - 16 * 2  # frames of a video from which a rollout of 16 blocks can start
        stored = torch.from_numpy(VideoSlots(slots).array[:3, :fitted].astype(np.float32)).flatten(0, 1)
        normal = model.latent(stored, stored.new_empty(len(stored), 0)).slots.flatten(0, 1)
        place, appearance = (part.var(0).sum() / 128 for part in normal.split([12, 116], dim=1))
        assert place.item() == pytest.approx(0.5, rel=1e-3) and appearance.item() == pytest.approx(0.5, rel=1e-3)

    def test_a_history_that_is_too_short_is_refused(self, slots: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"predictor\.history is 3"):
            train(training(slots, tmp_path, predictor=PredictorConfig(history=3, future=10)))


class TestRollout:
    @pytest.mark.parametrize(("observed", "frames", "keep"), [(6, 7, 4), (9, 30, 4), (8, 8, 4), (9, 30, 3), (9, 30, 1)])
    def test_interleaved_runs(self, observed: int, frames: int, keep: int) -> None:
        """Against a loop over offsets, calls and frames."""
        model, given = random_model(), video(observed)
        assert model.keep == 4
        model.keep = keep
        expected = torch.zeros(2, frames, 7, 128)
        expected[:, :observed] = given
        for offset in range(2):
            window = [(given[:, observed - 6 + offset + 2 * k] - model.processor.slot_mean) * model.processor.slot_scale
                      for k in range(3)]  # fmt: skip
            sequence: list[Tensor] = []
            while len(sequence) < frames - observed:
                latent = model.latent(torch.zeros(2, 3, 7, 128), torch.zeros(2, 3, 0))
                latent = latent._replace(slots=torch.stack(window, dim=1))
                with torch.no_grad():
                    made = model.predictor(latent, torch.zeros(2, 6, 0), future=4).slots[:, :keep]
                sequence += list(made.unbind(1))
                window = [*window, *made.unbind(1)][-3:]
            for index in range(frames - observed):
                if index % 2 == offset:
                    raw = sequence[index // 2] / model.processor.slot_scale + model.processor.slot_mean
                    expected[:, observed + index] = raw
        assert torch.allclose(continued(model, given, frames), expected, atol=1e-4)

    def test_observed_frames_are_copied_and_frames_before_the_history_do_not_matter(self) -> None:
        model, given = random_model(), video(10)
        made = continued(model, given, 16)
        assert torch.equal(made[:, :10], given)
        assert torch.equal(made[:, 10:], continued(model, given[:, 4:], 12)[:, 6:])
        with pytest.raises(ValueError, match="needs 6 frames"):
            continued(model, given[:, :5], 16)

    def test_command(self, slots: Path, trained: Path, tmp_path: Path) -> None:
        config = RolloutConfig(str(trained / "checkpoint"), slots, tmp_path / "out", batch=2)
        rollout(config)
        made, source = VideoSlots(tmp_path / "out"), VideoSlots(slots)
        assert made.frames == 160 and made.scenes == source.scenes
        assert np.array_equal(made.array[:, :128], source.array)
        assert made.identity["slots"] == source.identity and len(made.identity["checkpoint"]) == 64
        before = (tmp_path / "out/slots.npy").read_bytes()
        meta = json.loads((tmp_path / "out/slots.json").read_text())
        (tmp_path / "out/slots.json").write_text(json.dumps({**meta, "done": 4}))
        rollout(config)
        assert (tmp_path / "out/slots.npy").read_bytes() == before
        for change in ({"checkpoint": "copy"}, {"keep": 6}):
            with pytest.raises(ValueError, match="choose another out="):
                rollout(replace(config, **change))  # type: ignore[arg-type]
        rollout(replace(config, keep=10))  # all that a call gives, as before
        with pytest.raises(ValueError, match="gives 10 frames per call, of which keep=11 cannot be kept"):
            rollout(replace(config, keep=11))
        shutil.copytree(trained / "checkpoint", tmp_path / "slower")
        settings = json.loads((tmp_path / "slower/config.json").read_text())
        settings["model"]["action_block"] = 1  # the same weights predict otherwise
        (tmp_path / "slower/config.json").write_text(json.dumps(settings))
        with pytest.raises(ValueError, match="choose another out="):
            rollout(replace(config, checkpoint=str(tmp_path / "slower")))

    @pytest.mark.parametrize("observed", [False, True])
    def test_without_each_object(self, slots: Path, trained: Path, tmp_path: Path, observed: bool) -> None:
        settings = RolloutConfig(str(trained / "checkpoint"), slots, tmp_path, frames=128, remove="drop")
        rollout(replace(settings, downstream=observed))
        assert sorted(path.name for path in tmp_path.iterdir()) == [f"without_{slot}" for slot in range(6)]
        made, video = VideoSlots(tmp_path / "without_3"), VideoSlots(slots)
        others = [0, 1, 2, 4, 5, 6]
        kept = (made.array[:, :, others] == video.array[:, :, others]).mean()
        assert (kept > 0.9) == observed, "a model that is hardly trained sees no difference"
        with pytest.raises(ValueError, match="choose another out="):
            rollout(replace(settings, downstream=not observed))
        assert made.frames == 128 and made.identity["slot"] == 3 and not made.array[:, :, 3].any()
        assert list(object_slots(random_model())) == [0, 1, 2, 3, 4, 5]
        before = {path: path.read_bytes() for path in tmp_path.glob("*/slots.npy")}
        for slot, done in ((1, 2), (4, 3)):  # as if killed there
            meta = tmp_path / f"without_{slot}" / "slots.json"
            meta.write_text(json.dumps({**json.loads(meta.read_text()), "done": done}))
        rollout(replace(settings, downstream=observed, batch=2))
        assert len(before) == 6 and all(path.read_bytes() == bytes for path, bytes in before.items())

    def test_copying(self, slots: Path, tmp_path: Path) -> None:
        rollout(RolloutConfig("copy", slots, tmp_path, frames=140))
        made = VideoSlots(tmp_path).array
        assert made.shape[1] == 140 and (made[:, 128:] == made[:, 127:128]).all()

    def test_predicted_frames_are_no_source(self, data: Path, slots: Path, tmp_path: Path) -> None:
        rollout(RolloutConfig("copy", slots, tmp_path / "made", frames=140))
        with pytest.raises(ValueError, match="were continued already"):
            rollout(RolloutConfig("copy", tmp_path / "made", tmp_path / "again"))
        with pytest.raises(ValueError, match="frames that a predictor made"):
            open_slots(data, tmp_path / "made")

    def test_some_videos_alone(self, slots: Path, tmp_path: Path) -> None:
        rollout(RolloutConfig("copy", slots, tmp_path, frames=128, splits=("validation", "train"), limit=1))
        made, source = VideoSlots(tmp_path), VideoSlots(slots)
        assert made.scenes == [0, 10000]
        assert all(torch.equal(made.read(scene), source.read(scene)) for scene in made.scenes)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"checkpoint": "pusht"}, "predicts what actions do"),
            ({"frames": 100}, "has 128 already"),
            ({"batch": 0}, "batch must be at least 1"),
            ({"checkpoint": "copy", "remove": "drop"}, "cannot tell what happens without"),
            ({"downstream": True}, "give remove=drop"),
            ({"keep": 6}, "checkpoint=copy calls no predictor"),
            ({"limit": -1}, "limit must be 0 or more"),
            ({"splits": ("train", "exam")}, r"splits has \['exam'\]"),
            ({"splits": ()}, "no video of"),
        ],
    )
    def test_refusals(self, slots: Path, tmp_path: Path, changes: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            rollout(RolloutConfig(**{"checkpoint": "copy", "slots": slots, "out": tmp_path, **changes}))  # type: ignore[arg-type]


class TestEvaluation:
    def test_true_positions_have_no_error_and_copies_that_of_standing_still(self) -> None:
        _, trajectory = random_scenes()[2]
        slots = CLEVRERStateEncoder().read(torch.from_numpy(scene_states(trajectory, 160)))
        own, still = position_errors(trajectory, read_scene(slots), 128)
        assert own.shape == (32, 6) and np.nanmax(own, initial=0) < 0.01
        column = int(np.flatnonzero(trajectory.inside[127] & trajectory.inside[159])[0])
        distance = np.linalg.norm(trajectory.location[159, column] - trajectory.location[127, column]) / 0.2
        assert still[31, trajectory.ids[column]] == pytest.approx(distance, abs=1e-4)
        assert np.array_equal(np.isnan(own), np.isnan(still))

    def test_pairs_that_meet(self) -> None:
        trajectory = simulate(chain())
        reading = read_scene(CLEVRERStateEncoder().read(torch.from_numpy(scene_states(trajectory, 180))))
        first, second = (
            next(c.frame for c in trajectory.collisions if set(c.ids) == set(pair)) for pair in ((0, 1), (1, 2))
        )
        happened = colliding_pairs(trajectory, 5, 180)
        assert {frozenset((0, 1)), frozenset((1, 2))} <= happened and first < second
        assert {frozenset((0, 1)), frozenset((1, 2))} <= predicted_pairs(reading, 5)
        assert frozenset((0, 1)) not in colliding_pairs(trajectory, first + 1, 180)

    def test_command(self, data: Path, slots: Path, tmp_path: Path) -> None:
        from cjepa_agent.evaluate import evaluate
        from cjepa_agent.evaluation.config import EvaluateConfig

        rollout(RolloutConfig("copy", slots, tmp_path / "copy"))
        config = EvaluateConfig(
            "rollout", slots=str(tmp_path / "copy"), data=str(data), split="train", out=str(tmp_path)
        )
        evaluate(config)
        report = json.loads((tmp_path / "rollout.json").read_text())
        assert report["scenes"] == 3
        for row in report["mean_position_error_radii"]:
            assert row["predicted"] == pytest.approx(row["copied"], abs=0.01)
        with pytest.raises(ValueError, match="holds observed slots"):
            evaluate(replace(config, slots=str(slots)))
        meta = tmp_path / "copy" / "slots.json"
        told = json.loads(meta.read_text())
        meta.write_text(json.dumps({**told, "identity": {**told["identity"], "remove": "drop"}}))
        with pytest.raises(ValueError, match="holds videos without an object"):
            evaluate(config)


def test_frames_of_a_data_set_folder(tmp_path: Path) -> None:
    from cjepa_agent.data.episodes import open_episodes

    episode = {"action": np.zeros((2, 1), np.float32)}
    write_episodes(tmp_path / "frames.h5", [episode])
    assert len(open_episodes(tmp_path)) == len(EpisodeFile(tmp_path / "frames.h5")) == 1
