"""Training: resumption, several processes, stages end to end on tiny data."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from commands import run
from moving_episodes import write_moving_episodes

from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.data.episodes import EpisodeFile, write_episodes
from cjepa_agent.data.slot_data import SlotData
from cjepa_agent.encoders.autoencoder import SlotAutoencoder
from cjepa_agent.encoders.kinds import EncoderConfig
from cjepa_agent.extract import STATE, ExtractConfig, extract
from cjepa_agent.latent import Latent
from cjepa_agent.predictors.cjepa import PredictorConfig
from cjepa_agent.predictors.kinds import AnyPredictorConfig
from cjepa_agent.predictors.masking import MaskConfig
from cjepa_agent.predictors.slotformer import SlotFormerConfig
from cjepa_agent.training.ctt import CTTConfig
from cjepa_agent.training.image_loss import PixelSampler, image_error
from cjepa_agent.training.loop import TrainerConfig, make_optimizers
from cjepa_agent.training.predictor_stage import DynamicsTrainingConfig, PredictorStage, find_roles, fitted_world_model

SMALL = ["encoder.width=16", "encoder.decoder_width=16", "encoder.slot_dim=32"]
TINY_PREDICTOR = ["predictor.depth=1", "predictor.width=32", "predictor.mlp=32", "dynamics.windows=16"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six episodes of 40 frames in which everything moves on a line."""
    path = tmp_path_factory.mktemp("data") / "tiny.h5"
    write_moving_episodes(path, 64, 40)
    return path


@pytest.fixture(scope="module")
def slots(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder trained for a few steps by the command, and slots extracted by the command."""
    folder = tmp_path_factory.mktemp("slots")
    run(
        "cjepa_agent.train", "stage=encoder", f"data={data}", f"out={folder / 'encoder'}", *SMALL,
        "trainer.steps=4", "trainer.batch=2", "trainer.log_every=2", "trainer.precision=32-true",
        "trainer.optimizer=adamw",
    )  # fmt: skip
    run("cjepa_agent.extract", f"data={data}", f"encoder={folder / 'encoder'}", f"out={folder / 'slots'}")
    return folder / "slots"


def predictor_run(data: Path, slots: Path, out: Path, *extra: str) -> list[str]:
    """Arguments of a training of six steps, with a checkpoint after every second."""
    return [
        "stage=predictor", f"data={data}", f"slots={slots}", f"out={out}",
        *TINY_PREDICTOR, "trainer.batch=8", "trainer.steps=6", "trainer.save_every=2", "trainer.validate_every=3",
        "trainer.log_every=1", "trainer.precision=32-true", "dynamics.rollout_batch=4", "dynamics.rollout_from=0.5",
        "dynamics.rollout_blocks=3", *extra,
    ]  # fmt: skip


def train_predictor(data: Path, slots: Path, out: Path, *extra: str, launcher: tuple[str, ...] = ()) -> None:
    run(*(launcher or ("cjepa_agent.train",)), *predictor_run(data, slots, out, *extra))


def losses(folder: Path) -> list[float]:
    with (folder / "train.csv").open() as file:
        return [float(value) for _, name, value in csv.reader(file) if name == "total"]


def test_extraction_stores_what_the_encoder_gives(data: Path, slots: Path) -> None:
    stored = SlotData(EpisodeFile(data), slots)
    frames = torch.from_numpy(EpisodeFile(data).read("pixels", 2)[:3]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        expected = SlotAutoencoder.load(slots).encoder(frames).slots
    assert torch.allclose(stored.frames(np.arange(80, 83)).slots, expected, atol=2e-3)


def test_slots_of_other_episodes_of_the_same_lengths_are_refused(data: Path, slots: Path, tmp_path: Path) -> None:
    own, folder = tmp_path / data.name, tmp_path / "slots"
    shutil.copy(data, own)
    shutil.copytree(slots, folder)
    again = ExtractConfig(data=own, encoder=slots.parent / "encoder", out=folder)
    extract(again)
    origin = SlotData(EpisodeFile(own), folder).origin
    assert origin == SlotData(EpisodeFile(data), slots).origin
    with h5py.File(own, "r+") as file:
        file["action"][3] += 0.25
    extract(replace(again, out=tmp_path / "anew"))
    changed = SlotData(EpisodeFile(own), tmp_path / "anew").origin
    assert changed != origin, "a training would go on with other episodes"
    with pytest.raises(ValueError, match="other actions than those of"):
        SlotData(EpisodeFile(own), folder)
    with pytest.raises(ValueError, match="slots of another dataset or encoder"):
        extract(again)
    with h5py.File(own, "r+") as file:
        del file["pixels"]
    with pytest.raises(ValueError, match="no column 'pixels', which encoder=.*encoder reads"):
        extract(replace(again, out=tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_an_extraction_goes_on_where_it_ended(data: Path, slots: Path, tmp_path: Path) -> None:
    begun = ExtractConfig(data=data, encoder=slots.parent / "encoder", out=tmp_path / "slots", episodes=2)
    extract(begun)
    with pytest.raises(ValueError, match="has no test episode"):
        SlotData(EpisodeFile(data), begun.out).window_starts("test", frames=2, block=5)
    first = np.load(begun.out / "slots.npy")
    np.save(begun.out / "slots.npy", np.where(np.arange(len(first))[:, None, None] < 80, 7, first).astype(np.float16))
    extract(replace(begun, episodes=0))
    assert (np.load(begun.out / "slots.npy")[:80] == 7).all(), "episodes that were done are not done again"
    np.testing.assert_array_equal(np.load(begun.out / "slots.npy")[80:], np.load(slots / "slots.npy")[80:])


def test_an_extraction_that_lost_slots_is_not_gone_on_with(data: Path, slots: Path, tmp_path: Path) -> None:
    begun = ExtractConfig(data=data, encoder=slots.parent / "encoder", out=tmp_path / "slots", episodes=2)
    extract(begun)
    whole = (begun.out / "slots.npy").read_bytes()
    (begun.out / "slots.npy").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="truncated or no array; delete its folder and make it again"):
        extract(replace(begun, episodes=0))
    np.save(begun.out / "slots.npy", np.zeros((3, 4, 5), np.float16))
    with pytest.raises(ValueError, match=r"float16 \(3, 4, 5\), expected float16 .*make it again"):
        extract(replace(begun, episodes=0))


def test_an_encoder_is_not_trained_on_with_other_frames_of_that_name(data: Path, tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), np.uint8)
    write_episodes(tmp_path / data.name, [{"pixels": frames, "action": np.zeros((40, 2), np.float32)}] * 6)
    common = [
        "stage=encoder", "trainer=encoder", f"out={tmp_path / 'run'}", *SMALL, "trainer.steps=2", "trainer.batch=2",
    ]  # fmt: skip
    run("cjepa_agent.train", f"data={data}", *common)
    refused = run("cjepa_agent.train", f"data={tmp_path / data.name}", *common, expect=2)
    assert "holds a training with" in refused.stderr and "content=" in refused.stderr


def test_actions_that_plans_cannot_reach_are_refused(data: Path, slots: Path) -> None:
    far = SlotData(EpisodeFile(data), slots)
    far.actions = 300 + 100 * far.actions
    encoder = SlotAutoencoder.load(slots)
    with pytest.raises(ValueError, match="more than half of its actions outside of -1 to 1"):
        fitted_world_model(far, encoder, PredictorConfig(depth=1, width=32, mlp=32), DynamicsTrainingConfig(), seed=0)


@pytest.mark.parametrize("name", ["saturation", "image_weight", "rollout_weight", "proprio_weight"])
def test_errors_are_not_maximised(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.* must be 0 or more"):
        DynamicsTrainingConfig(**{name: -0.5})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch must be"),
        ({"device": "gpu"}, "must be cpu or cuda"),
        ({"device": "cuda:7"}, "finds no GPU"),
    ],
)
def test_extraction_refuses_settings_out_of_range(change: dict[str, Any], message: str) -> None:
    if torch.cuda.is_available() and "GPU" in message:
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=message):
        extract(ExtractConfig(**change))


def test_windows_pair_frames_with_the_actions_between_them(data: Path, slots: Path) -> None:
    stored, file = SlotData(EpisodeFile(data), slots), EpisodeFile(data)
    latent, blocks = stored.windows(np.array([43]), frames=3, block=5)
    assert torch.equal(latent.proprio[0], torch.from_numpy(file.read("proprio", 1)[[3, 8, 13]]))
    assert torch.equal(blocks[0].reshape(10, 2), torch.from_numpy(file.read("action", 1)[3:13]))


def test_windows_stay_inside_their_episode(data: Path, slots: Path) -> None:
    starts = SlotData(EpisodeFile(data), slots).window_starts("all", frames=4, block=5)
    assert ((starts % 40) + 15 < 40).all() and len(starts) == 6 * 25


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_killed_run_resumes_to_the_same_weights(data: Path, slots: Path, tmp_path: Path, optimizer: str) -> None:
    settings = ("trainer.ema=0.9", f"trainer.optimizer={optimizer}")
    killed = tmp_path / "killed"
    train_predictor(data, slots, tmp_path / "whole", *settings)
    start_and_kill(killed, predictor_run(data, slots, killed, *settings))
    train_predictor(data, slots, killed, *settings)
    whole = Checkpoint.from_pretrained(tmp_path / "whole" / "checkpoint").model.state_dict()
    resumed = Checkpoint.from_pretrained(killed / "checkpoint").model.state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert losses(killed) == losses(tmp_path / "whole")


def test_a_killed_training_of_an_encoder_resumes_to_the_same_weights(data: Path, tmp_path: Path) -> None:
    def arguments(out: Path) -> list[str]:
        return [
            "stage=encoder", f"data={data}", f"out={out}", *SMALL, "slot_training.points=32", "slot_training.uniform=8",
            "trainer.steps=6", "trainer.batch=2", "trainer.save_every=2", "trainer.log_every=1", "trainer.ema=0.9",
            "trainer.precision=32-true", "trainer.optimizer=adamw",
        ]  # fmt: skip

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run("cjepa_agent.train", *arguments(whole))
    start_and_kill(killed, arguments(killed))
    run("cjepa_agent.train", *arguments(killed))
    resumed = SlotAutoencoder.load(killed).state_dict()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in SlotAutoencoder.load(whole).state_dict().items())
    assert losses(killed) == losses(whole)


def start_and_kill(folder: Path, arguments: list[str]) -> None:
    """A training of six steps, killed in the fifth, so that step 4 is the last checkpoint."""
    code = (
        "import sys, os\n"
        "from cjepa_agent.training import loop\n"
        "plain = loop.Run._milestones\n"
        "def milestones(self, log):\n"
        "    os._exit(9) if self.step == 5 else plain(self, log)\n"
        "loop.Run._milestones = milestones\n"
        "from cjepa_agent.train import main\n"
        "main()\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, env=environment, timeout=240)
    assert killed.returncode == 9, killed.stderr[-2000:]
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == 4


def test_two_processes_follow_the_loss_curve_of_one(data: Path, slots: Path, tmp_path: Path) -> None:
    launcher = ("torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "cjepa_agent.train")
    train_predictor(data, slots, tmp_path / "one")
    train_predictor(data, slots, tmp_path / "two", "trainer.accelerator=cpu", launcher=launcher)
    assert np.allclose(losses(tmp_path / "one"), losses(tmp_path / "two"), rtol=1e-4)


def test_a_broken_running_checkpoint_is_refused(data: Path, slots: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"nonsense")
    result = run(
        "cjepa_agent.train", "stage=predictor", f"data={data}", f"slots={slots}", f"out={tmp_path}", expect=2
    )  # fmt: skip
    assert "checkpoint.pt cannot be resumed from" in result.stderr


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("nonsense=1", "nonsense"),
        ("trainer.nonsense=1", "nonsense"),
        ("trainer.batch=0", "must be positive"),
        ("mask.kind=square", "mask.kind"),
        ("stage=vision", "stage"),
    ],
)
def test_bad_settings_are_refused(data: Path, slots: Path, tmp_path: Path, argument: str, message: str) -> None:
    result = run(
        "cjepa_agent.train", f"data={data}", f"slots={slots}", f"out={tmp_path}", argument, expect=None
    )  # fmt: skip
    assert result.returncode in (1, 2) and message in result.stderr


def test_slots_of_another_dataset_are_refused(data: Path, slots: Path, tmp_path: Path) -> None:
    columns = {"action": np.zeros((5, 2), np.float32), "proprio": np.zeros((5, 4), np.float32)}
    write_episodes(tmp_path / "other.h5", [columns])
    with pytest.raises(ValueError, match="240 frames.*has 5"):
        SlotData(EpisodeFile(tmp_path / "other.h5"), slots)


def test_checkpoint_records_its_recipe(data: Path, slots: Path, tmp_path: Path) -> None:
    train_predictor(data, slots, tmp_path, "mask.count=2")
    config = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    assert config["training"]["command"]["mask"]["count"] == 2
    assert config["training"]["encoder"]["command"]["stage"] == "encoder"


def test_training_goes_on_from_a_checkpoint(data: Path, slots: Path, tmp_path: Path) -> None:
    train_predictor(data, slots, tmp_path / "first")
    first = tmp_path / "first" / "checkpoint"
    run("cjepa_agent.extract", f"data={data}", f"encoder={first}", f"out={tmp_path / 'slots'}")
    before, after = (np.load(folder / "slots.npy") for folder in (slots, tmp_path / "slots"))
    assert np.array_equal(before, after), "the checkpoint's encoder is the one it was trained with"
    train_predictor(data, tmp_path / "slots", tmp_path / "same", f"init={first}", "trainer.lr=1e-12")
    start, same = (Checkpoint.from_pretrained(tmp_path / name / "checkpoint") for name in ("first", "same"))
    for name, tensor in start.model.state_dict().items():
        assert torch.allclose(tensor, same.model.state_dict()[name], rtol=0, atol=1e-8), name
    assert same.training["init"]["training"]["command"]["out"] == "first"
    assert same.training["command"]["init"] == "checkpoint", "a record must not tell a machine's folders"
    result = run(
        "cjepa_agent.train", f"data={data}", f"slots={slots}", f"out={tmp_path / 'other'}", f"init={first}", expect=2
    )  # fmt: skip
    assert "init has the predictor" in result.stderr


def test_every_term_is_logged_and_part_of_the_total(data: Path, slots: Path, tmp_path: Path) -> None:
    train_predictor(
        data, slots, tmp_path, "ctt=corrected", "ctt.start=0.34", "dynamics.single_frame=0", "dynamics.image_weight=3",
        "dynamics.image_frames=4", "dynamics.image_points=16",
    )  # fmt: skip
    steps: list[dict[str, float]] = [{} for _ in range(6)]
    for line in csv.reader((tmp_path / "train.csv").open()):
        steps[int(line[0]) - 1][line[1]] = float(line[2])
    weights = {
        "history": 1, "future": 1, "proprio": 1, "sufficiency": 0.1, "invariance": 0.2, "image": 3, "rollout": 1,
        "rollout_image": 3,
    }  # fmt: skip
    for number, step in enumerate(steps):
        assert ("sufficiency" in step) == ("invariance" in step) == (number >= 3) == ("rollout_image" in step)
        total = step.pop("total")
        assert step.keys() <= weights.keys() and step["image"] > 0
        assert total == pytest.approx(sum(weights[name] * value for name, value in step.items()), rel=1e-4)
    recorded = json.loads((tmp_path / "checkpoint" / "config.json").read_text())["training"]["command"]
    assert recorded["ctt"]["invariance_weight"] == 0.2 and recorded["dynamics"]["image_weight"] == 3


def predictor_stage(
    data: Path, slots: Path, predictor: AnyPredictorConfig, image_weight: float = 0.0, ctt: CTTConfig | None = None
) -> PredictorStage:
    """With single frames left out, and heads that do not predict zero."""
    dynamics = DynamicsTrainingConfig(
        single_frame=0.0, windows=4, rollout_blocks=3, rollout_from=0.0, rollout_batch=4, image_weight=image_weight,
        image_frames=4, image_points=16,
    )  # fmt: skip
    stage = PredictorStage(
        SlotData(EpisodeFile(data), slots), SlotAutoencoder.load(slots), predictor, MaskConfig(), dynamics,
        TrainerConfig(seed=3), {}, None, ctt,
    )  # fmt: skip
    for parameter in stage.world_model.predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    stage.model.eval()
    return stage


SMALL_PREDICTOR = PredictorConfig(depth=1, width=32, mlp=32)
TERMS = CTTConfig(sufficiency_weight=0.1, invariance_weight=0.2, start=0.0)


def test_terms_are_the_same_on_one_device_and_on_two(data: Path, slots: Path) -> None:
    """Means over samples, and drawn anew in each step, so that resumed runs and other processes draw the same."""

    def losses(rows: slice) -> dict[str, float]:
        stage = predictor_stage(data, slots, SMALL_PREDICTOR, 1.0, TERMS)
        terms = stage.loss(stage.model, 7, 8, rows, torch.Generator().manual_seed(0))
        return {name: float(value.detach()) for name, value in terms.items()}

    whole, first, second = losses(slice(0, 8)), losses(slice(0, 4)), losses(slice(4, 8))
    assert min(whole.values()) > 0 and {"invariance", "sufficiency", "image", "rollout_image"} < whole.keys()
    for name, value in whole.items():
        assert value == pytest.approx((first[name] + second[name]) / 2, rel=1e-4), name


def test_samples_go_to_the_device_of_the_model(data: Path, slots: Path) -> None:
    """A device without numbers stands for a GPU: it refuses tensors of the CPU all the same."""
    stage = predictor_stage(data, slots, SMALL_PREDICTOR, 1.0, TERMS)
    stage.model.to("meta")
    terms = stage.loss(stage.model, 7, 8, slice(0, 8), torch.Generator().manual_seed(0))
    assert {"invariance", "image", "rollout_image"} < terms.keys()
    assert {value.device.type for value in terms.values()} == {"meta"}
    with pytest.raises((RuntimeError, NotImplementedError), match="meta tensor"):  # only as a number is read at last
        stage.validate(stage.model)


def test_rollouts_are_shared_by_all_processes(data: Path, slots: Path) -> None:
    stage = predictor_stage(data, slots, SMALL_PREDICTOR)
    with pytest.raises(ValueError, match=r"rollout_batch 4 is not a multiple of 8 processes"):
        stage.loss(stage.model, 7, 8, slice(0, 1), torch.Generator().manual_seed(0))


def test_terms_leave_the_samples_as_they_are(data: Path, slots: Path) -> None:
    """Systems with and without them are trained on the same windows."""
    left, found = [], []
    for image_weight, ctt in ((0.0, None), (1.0, TERMS)):
        stage, generator = predictor_stage(data, slots, SMALL_PREDICTOR, image_weight, ctt), torch.Generator()
        found.append(stage.loss(stage.model, 0, 8, slice(0, 8), generator.manual_seed(0)))
        left.append(generator.get_state())
    assert torch.equal(*left) and all(torch.equal(value, found[1][name]) for name, value in list(found[0].items())[1:])


def test_terms_choose_something_else_in_every_step(data: Path, slots: Path) -> None:
    stage = predictor_stage(data, slots, SMALL_PREDICTOR, 1.0, TERMS)
    found = [
        stage.loss(stage.model, step, 8, slice(0, 8), torch.Generator().manual_seed(0)) for step in (0, 1, 1)
    ]  # fmt: skip
    for name in ("sufficiency", "image", "rollout_image"):
        assert found[0][name] != found[1][name] == found[2][name]


def test_image_loss_compares_drawn_predictions_with_the_frames(data: Path, slots: Path) -> None:
    stored, file, autoencoder = SlotData(EpisodeFile(data), slots), EpisodeFile(data), SlotAutoencoder.load(slots)
    rows = np.array([[3, 8], [47, 52], [101, 106], [230, 235], [10, 15]])
    sampler = PixelSampler(stored, autoencoder, frames=3, points=20)
    pixels = sampler.draw(rows, slice(0, 5), torch.Generator().manual_seed(0))
    assert pixels.sample.tolist() == [0, 2, 4] and pixels.colours.shape == (3, 20, 3)
    model = predictor_stage(data, slots, SMALL_PREDICTOR).world_model
    predicted = torch.randn(5, 2, 4, 32, requires_grad=True)
    errors = []
    for index, (sample, frame) in enumerate(zip(pixels.sample.tolist(), pixels.frame.tolist(), strict=True)):
        episode, step = divmod(int(rows[sample, frame]), 40)
        truth = file.read("pixels", episode)[step]
        drawn, _ = autoencoder.decoder.paint(
            model.processor.raw_slots(predicted[sample, frame][None]), pixels.points[index][None]
        )
        for point in range(20):
            x, y = ((pixels.points[index, point] + 1) * 32).long().tolist()
            colour = torch.from_numpy(truth[y, x]) / 255
            assert torch.allclose(pixels.colours[index, point], colour)
            errors.append((drawn[0, point] - colour).square().mean())
    error = image_error(model, predicted, pixels)
    assert error.item() == pytest.approx(float(torch.stack(errors).mean().detach()), rel=1e-4)
    error.backward()
    assert predicted.grad is not None and predicted.grad[[0, 2, 4]].abs().sum((1, 2, 3)).min() > 0
    assert not predicted.grad[[1, 3]].any() and all(p.grad is None for p in model.decoder.parameters())


def test_slotformer_learns_from_images_alone(data: Path, slots: Path) -> None:
    """Its gradient flows through rollout and decoder, while the decoder stays as it is."""
    stage = predictor_stage(data, slots, SlotFormerConfig(depth=1, width=32, mlp=32), 1.0)
    terms = stage.loss(stage.model, 0, 8, slice(0, 8), torch.Generator().manual_seed(0))
    (terms["image"] + terms["rollout_image"]).backward()
    assert float(stage.world_model.predictor.get_parameter("embed_token.weight").grad.abs().sum()) > 0
    assert all(p.grad is None for p in stage.world_model.decoder.parameters())


def test_terms_are_refused_where_there_is_nothing_to_compute_them_from(data: Path, slots: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"attention of C-JEPA's predictor, got SlotFormer; set predictor=default"):
        predictor_stage(data, slots, SlotFormerConfig(depth=1, width=32, mlp=32), ctt=TERMS)
    extract(ExtractConfig(data=data, encoder=STATE, out=tmp_path / "slots"))
    with pytest.raises(ValueError, match=r"that of encoder\.kind=state did not"):
        predictor_stage(data, tmp_path / "slots", SMALL_PREDICTOR, 1.0)
    file = EpisodeFile(data)
    episodes = [{name: file.read(name, e) for name in ("action", "proprio", "state")} for e in range(len(file))]
    write_episodes(tmp_path / "blind.h5", episodes)
    with pytest.raises(ValueError, match=r"blind\.h5 has no pixels"):
        predictor_stage(tmp_path / "blind.h5", slots, SMALL_PREDICTOR, 1.0)


def test_muon_trains_every_parameter_once(data: Path, slots: Path) -> None:
    trainer = TrainerConfig(optimizer="muon")
    autoencoder, dynamics = SlotAutoencoder.load(slots), DynamicsTrainingConfig(windows=16, rollout_blocks=3)
    stage = PredictorStage(
        SlotData(EpisodeFile(data), slots), autoencoder, PredictorConfig(depth=1), MaskConfig(), dynamics, trainer, {}
    )
    trained = [p for optimizer in make_optimizers(stage, trainer) for g in optimizer.param_groups for p in g["params"]]
    expected = {id(p) for p in stage.model.parameters() if p.requires_grad}
    assert len(trained) == len(expected) and {id(p) for p in trained} == expected


def test_muon_is_refused_where_there_are_no_hidden_matrices(data: Path, tmp_path: Path) -> None:
    result = run(
        "cjepa_agent.train", "stage=encoder", f"data={data}", f"out={tmp_path}", *SMALL, "trainer.optimizer=muon",
        expect=2,
    )  # fmt: skip
    assert "no hidden matrices" in result.stderr


def test_roles_are_found_from_data() -> None:
    rng = torch.Generator().manual_seed(0)
    place, later = (torch.rand(200, 4, 2, generator=rng) - 0.5 for _ in range(2))
    place[:, [0, 1]] = later[:, [0, 1]] = 0.1
    proprio = torch.cat([place[:, 3] * 256 + 256, torch.zeros(200, 2)], dim=1)

    def as_slots(centroid: torch.Tensor) -> torch.Tensor:
        phases = centroid.unsqueeze(-1) * torch.pi / 2 * torch.tensor([1.0, 2.0, 4.0])
        return torch.cat([torch.cat([phases.sin(), phases.cos()], -1).flatten(-2), torch.zeros(200, 4, 4)], -1)

    assert find_roles(Latent(as_slots(place), proprio), Latent(as_slots(later), proprio)) == {"agent": 3, "block": 2}


def test_encoder_folder_round_trip_and_refusals(tmp_path: Path) -> None:
    model = SlotAutoencoder(EncoderConfig(width=16, decoder_width=16, slot_dim=32))
    model.save(tmp_path)
    loaded = SlotAutoencoder.load(tmp_path)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    weights = (tmp_path / "encoder.safetensors").read_bytes()
    (tmp_path / "encoder.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="truncated"):
        SlotAutoencoder.load(tmp_path)
    (tmp_path / "encoder.safetensors").write_bytes(weights)
    (tmp_path / "encoder.json").write_text(json.dumps({"width": 8}))
    with pytest.raises(ValueError, match="does not fit"):
        SlotAutoencoder.load(tmp_path)
