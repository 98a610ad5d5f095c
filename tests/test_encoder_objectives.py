"""What encoders are trained for: losses against naive ones, properties of every objective, the way to a predictor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from commands import run
from moving_episodes import write_moving_episodes
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.data.episodes import EpisodeFile, write_episodes
from cjepa_agent.data.slot_data import SlotData
from cjepa_agent.data.video_slots import VideoSlots
from cjepa_agent.encoders.autoencoder import SlotAutoencoder
from cjepa_agent.encoders.kinds import PRIVILEGED, EncoderConfig, TrainedEncoderConfig
from cjepa_agent.encoders.patches import DINOv2PatchConfig, DINOv2RegistersConfig, PatchConfig
from cjepa_agent.encoders.still_camera import StillCameraConfig
from cjepa_agent.encoders.stosavi import StoSAViConfig
from cjepa_agent.encoders.videosaur import SmallVideoSAURConfig, VideoSAURConfig
from cjepa_agent.extract import ExtractConfig, extract
from cjepa_agent.predictors.cjepa import PredictorConfig
from cjepa_agent.train import TrainConfig, train
from cjepa_agent.training.encoder_stage import EncoderStage
from cjepa_agent.training.loop import TrainerConfig
from cjepa_agent.training.objectives import (
    OBJECTIVES,
    SlotTrainingConfig,
    draw_points,
    kernel_divergence,
    mixture_nll,
    temporal_similarity_loss,
)
from cjepa_agent.training.predictor_stage import DynamicsTrainingConfig
from envs.clevrer.dataset import scene_paths
from envs.clevrer.video import encode_video

TRAINING = SlotTrainingConfig(points=32, uniform=16, clip=3)
STOSAVI = StoSAViConfig(n_slots=3, slot_dim=16, width=8, image_size=32)
VIDEOSAUR = VideoSAURConfig(
    n_slots=3, slot_dim=16, image_size=32, patch=8, width=16, depth=2, heads=2, positions=4, decoder_width=32,
    weights="",
)  # fmt: skip
KINDS = {
    "slots": EncoderConfig(n_slots=3, slot_dim=16, image_size=32, width=8, decoder_width=8),
    "patches": PatchConfig(slot_dim=8, image_size=32, patch=8, depth=1, heads=2, decoder_width=8),
    "stosavi": STOSAVI,
    "videosaur": VIDEOSAUR,
    "still": StillCameraConfig(n_slots=3, slot_dim=40, image_size=32, width=8, decoder_width=8),
}
TRAINER = TrainerConfig(steps=2, batch=2, optimizer="adamw", precision="32-true", accelerator="cpu", ema=0.0)
PREDICTOR = PredictorConfig(depth=1, width=16, heads=2, mlp=16, history=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six episodes of 30 frames of 32 px in which everything moves."""
    path = tmp_path_factory.mktemp("objectives") / "data.h5"
    write_moving_episodes(path, 32, 30, speed=5)
    return path


def stage(data: Path, config: TrainedEncoderConfig, training: SlotTrainingConfig = TRAINING) -> EncoderStage:
    return EncoderStage(EpisodeFile(data), config, training, seed=0, recipe={})


def step(training: EncoderStage, rows: slice = slice(0, 4), seed: int = 0) -> dict[str, Tensor]:
    return training.loss(training.model, 0, 4, rows, torch.Generator().manual_seed(seed))


def trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def test_kernels_diverge_from_a_prior_of_the_same_mean() -> None:
    log_variance = torch.randn(2, 3, 4, 5, requires_grad=True)
    mean = torch.randn(2, 3, 4, 5)
    divergence = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(mean, 0.1))
    torch.testing.assert_close(kernel_divergence(log_variance), divergence.sum(-1).mean())
    assert kernel_divergence(torch.full((3, 5), 0.01).log()).item() == pytest.approx(0.0, abs=1e-6)


def test_similarity_is_the_cross_entropy_with_the_next_frames_patches() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, keys = torch.randn(2, 3, 4, 4, generator=generator), torch.randn(2, 3, 4, 5, generator=generator)
    keys[0, 0, 1], keys[0, 1] = -torch.ones(5), torch.rand(4, 5, generator=generator)  # opposed to all that follows
    total, rows = 0.0, 0
    for clip in range(2):
        for frame in range(2):
            for patch in range(4):
                own = keys[clip, frame, patch]
                cosines = [float(own @ other / own.norm() / other.norm()) for other in keys[clip, frame + 1]]
                weights = [np.exp(cosine / 0.2) if cosine >= 0 else 0.0 for cosine in cosines]
                weights = weights if sum(weights) else [1.0] * 4
                predicted = logits[clip, frame, patch].log_softmax(0)
                total -= sum(w / sum(weights) * float(p) for w, p in zip(weights, predicted, strict=True))
                rows += 1
    loss = temporal_similarity_loss(logits, keys, temperature=0.2)
    assert loss.item() == pytest.approx(total / rows, rel=1e-5)
    logits[:, -1] += 100 * torch.randn(4, 4, generator=generator)
    assert torch.equal(loss, temporal_similarity_loss(logits, keys, 0.2)), "nothing follows on the last frame"


def test_the_loss_of_stosavi_by_hand(data: Path) -> None:
    """Frame by frame and slot by slot, by the published interface of encoder and decoder."""
    training = stage(data, STOSAVI, replace(TRAINING, kl=0.5))
    clips, model = training.clips.read(np.array([3])), training.model
    noise = model.draw(clips, torch.Generator().manual_seed(1))
    frames = (clips[0] * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    slots = model.encoder.track(frames[None], noise)[0]
    error = 0.0
    for own, frame in zip(slots, clips[0], strict=True):
        colours, masks = model.decoder.draw(own.unsqueeze(0))
        painted = sum(masks[0, slot] * colours[0, slot] for slot in range(3))
        error += (painted / 2 + 0.5 - frame).square().mean() * 4 / 3
    latents = torch.cat([model.encoder.init_latents, model.encoder.predictor(slots[:-1])])
    divergence = kernel_divergence(model.encoder.kernel_dist_layer(latents).chunk(2, -1)[1])
    terms = model(clips, noise)
    torch.testing.assert_close(terms["reconstruction"], error)
    torch.testing.assert_close(terms["kl"], divergence)
    torch.testing.assert_close(terms["total"], error + 0.5 * divergence)


def test_the_loss_of_videosaur_by_hand(data: Path) -> None:
    training = stage(data, VIDEOSAUR, replace(TRAINING, similarity=0.5, temperature=0.3))
    clips, model = training.clips.read(np.array([3])), training.model
    noise = model.draw(clips, torch.Generator().manual_seed(1))
    frames = (clips[0] * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    outputs = model.decoder.mix(model.encoder.track(frames[None], noise)[0])[0]
    backbone = model.encoder.backbone
    seen: list[Tensor] = []
    hook = backbone.blocks[-1].attn.qkv.register_forward_hook(lambda _, inputs, output: seen.append(output))
    features = backbone(backbone.normalised(clips[0]))
    hook.remove()
    keys = seen[0][:, 1:, 16:32]
    terms = model(clips, noise)
    torch.testing.assert_close(terms["reconstruction"], (outputs[..., :16] - features).square().mean())
    similarity = temporal_similarity_loss(outputs[None, ..., 16:], keys.unsqueeze(0), 0.3)
    torch.testing.assert_close(terms["similarity"], similarity)
    torch.testing.assert_close(terms["total"], terms["reconstruction"] + 0.5 * similarity)


def test_whatever_can_be_trained_has_an_objective() -> None:
    kinds = {config.kind for config in get_args(TrainedEncoderConfig)}
    assert kinds == set(OBJECTIVES) and not set(PRIVILEGED) & kinds


@pytest.mark.parametrize("kind", KINDS)
class TestObjective:
    def test_a_batch_is_the_mean_of_its_parts(self, data: Path, kind: str) -> None:
        """As processes see it that each have a part."""
        training = stage(data, KINDS[kind])
        whole, parts = step(training), [step(training, rows) for rows in (slice(0, 2), slice(2, 4))]
        for name, value in whole.items():
            torch.testing.assert_close(value, (parts[0][name] + parts[1][name]) / 2)

    def test_chance_comes_from_the_generator(self, data: Path, kind: str) -> None:
        training, state = stage(data, KINDS[kind]), torch.get_rng_state()
        first, again, other = (step(training, seed=seed)["total"].item() for seed in (0, 0, 1))
        assert first == again != other and torch.equal(torch.get_rng_state(), state)
        assert training.validate(training.model) == training.validate(training.model)

    def test_everything_that_is_trained_has_a_gradient(self, data: Path, kind: str) -> None:
        training = stage(data, KINDS[kind])
        step(training)["total"].backward()
        assert [name for name, parameter in trained(training.model) if parameter.grad is None] == []

    def test_the_loss_falls(self, data: Path, kind: str) -> None:
        training = stage(data, KINDS[kind])
        before = training.validate(training.model)
        optimizer = torch.optim.Adam([parameter for _, parameter in trained(training.model)], lr=3e-3)
        for number in range(30):
            optimizer.zero_grad()
            step(training, seed=number % 2)["total"].backward()
            optimizer.step()
        after = training.validate(training.model)
        name = {"slots": "pixels", "patches": "pixels", "still": "pixels"}.get(kind, "reconstruction")
        assert after[name] < 0.7 * before[name]


def test_clips_stay_inside_their_episode(data: Path) -> None:
    file = EpisodeFile(data)
    training = stage(data, STOSAVI, replace(TRAINING, clip=4, stride=3))
    assert len(training.clips) == len(file.episodes("train")) * (30 - 9)
    second = file.episodes("train")[1]
    expected = torch.from_numpy(file.read("pixels", int(second))[20::3][:4]).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(training.clips.read(np.array([21 + 20]))[0], expected)
    with pytest.raises(ValueError, match=r"no episode of 31 frames.* set slot_training\.clip"):
        stage(data, STOSAVI, replace(TRAINING, clip=31))


def test_features_stay_as_they_are(data: Path) -> None:
    training = stage(data, VIDEOSAUR)
    before = [parameter.clone() for parameter in training.model.encoder.backbone.parameters()]
    optimizer = torch.optim.Adam(training.model.parameters(), lr=1e-2)
    step(training)["total"].backward()
    optimizer.step()
    assert all(map(torch.equal, training.model.encoder.backbone.parameters(), before))


def test_videosaur_on_patches_of_ours(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    own = SlotAutoencoder(PatchConfig(slot_dim=16, image_size=32, patch=8, depth=2, heads=2, decoder_width=8))
    own.save(tmp_path / "patches")
    backbone = stage(data, replace(VIDEOSAUR, weights=str(tmp_path / "patches"))).model.encoder.backbone
    pixels = torch.rand(1, 3, 32, 32)
    assert torch.equal(backbone(pixels), own.encoder.backbone(pixels))
    with pytest.raises(ValueError, match="has 2 attention heads, encoder.heads is 4"):
        stage(data, replace(VIDEOSAUR, heads=4, weights=str(tmp_path / "patches")))
    with pytest.raises(ValueError, match=r"does not fit its configuration: .*blocks\.1"):
        stage(data, replace(VIDEOSAUR, depth=1, weights=str(tmp_path / "patches")))
    SlotAutoencoder(STOSAVI).save(tmp_path / "slots")
    with pytest.raises(ValueError, match="encoder of patches: encoder.kind is .stosavi.; expected one of"):
        stage(data, replace(VIDEOSAUR, weights=str(tmp_path / "slots")))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SlotTrainingConfig(clip=1), "clip must be at least 2"),
        (lambda: SlotTrainingConfig(temperature=0.0), "temperature must be positive"),
        (lambda: replace(STOSAVI, image_size=20), "multiple of 8"),
        (lambda: replace(STOSAVI, width=0), "must be positive"),
        (lambda: replace(VIDEOSAUR, depth=0), "must be positive"),
        (lambda: OBJECTIVES["videosaur"](replace(VIDEOSAUR, outputs=5), TRAINING), "training needs 32, .* leave it"),
        (lambda: replace(DINOv2PatchConfig(), registers=-1), "must be positive"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_kinds_have_the_sizes_of_what_they_are_for() -> None:
    with torch.device("meta"):
        registers = DINOv2RegistersConfig().backbone()
        small, patches = SmallVideoSAURConfig().build()[0].backbone.state_dict(), PatchConfig().backbone().state_dict()
    assert registers.reg_token.shape == (1, 4, 384), "as Meta's"
    assert {name: tensor.shape for name, tensor in small.items()} == {name: t.shape for name, t in patches.items()}


@pytest.mark.parametrize(
    "arguments",
    [
        ("encoder=savi", "encoder.image_size=32", "encoder.n_slots=3", "encoder.slot_dim=16"),
        ("encoder=videosaur_small", "encoder.image_size=32", "encoder.slot_dim=16", "encoder.n_slots=3"),
    ],
)
def test_push_t_from_frames_to_a_world_model(data: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """By the command in mixed precision, which is the default."""
    run(
        "cjepa_agent.train", "stage=encoder", *arguments, "trainer=encoder", f"data={data}", "out=encoder",
        "trainer.steps=2", "trainer.batch=2", "trainer.accelerator=cpu", "slot_training.clip=2",
        folder=tmp_path,
    )  # fmt: skip
    extract(ExtractConfig(data, tmp_path / "encoder", tmp_path / "slots", stride=5))
    dynamics = DynamicsTrainingConfig(windows=4, rollout_from=0.5, rollout_batch=2, rollout_blocks=2)
    train(
        TrainConfig(
            "predictor", data, tmp_path / "slots", tmp_path / "run", predictor=PREDICTOR, dynamics=dynamics,
            trainer=TRAINER,
        )
    )  # fmt: skip
    model = Checkpoint.from_pretrained(tmp_path / "run/checkpoint").model
    assert model.config.roles == {}, "its slots do not say where they are"
    frames = torch.from_numpy(EpisodeFile(data).read("pixels", 2)[::5])
    stored = SlotData(EpisodeFile(data), tmp_path / "slots").frames(np.arange(60, 90, 5)).slots
    with torch.no_grad():
        torch.testing.assert_close(stored, model.encoder.track(frames[None])[0], atol=5e-3, rtol=5e-3)
    latent = model.encode(frames[:2], torch.zeros(2, 4))
    painted, masks = model.decode(latent, size=32)
    assert painted.shape == (2, 32, 32, 3) and masks.shape == (2, 3, 32, 32)


@pytest.mark.parametrize("kind", ["stosavi", "videosaur"])
def test_clevrer_videos_to_a_predictor(tmp_path: Path, kind: str) -> None:
    rng, folder, episodes = np.random.default_rng(0), tmp_path / "data", []
    for number, scene in enumerate((0, 10000, 15000)):
        pixels = rng.integers(0, 256, (128, 16, 16, 3), np.uint8)
        path = scene_paths(folder, "video", scene)[0]
        path.parent.mkdir(parents=True)
        path.write_bytes(encode_video(pixels))
        rows = np.ones(128, np.int32)
        columns = {"action": np.zeros((128, 1), np.float32), "split": (rows * number).astype(np.int8)}
        episodes.append({"pixels": pixels, "scene": rows * scene, **columns})
    write_episodes(folder / "frames.h5", episodes)
    sizes = {"image_size": 16, "positions": 2} if kind == "videosaur" else {"image_size": 16}
    encoder = replace(KINDS[kind], **sizes)
    train(
        TrainConfig(
            "encoder", folder, out=tmp_path / "encoder", encoder=encoder, slot_training=TRAINING, trainer=TRAINER
        )
    )
    extract(ExtractConfig(data=folder, encoder=tmp_path / "encoder", out=tmp_path / "slots"))
    dynamics = DynamicsTrainingConfig(windows=4, rollout_from=0.5, rollout_batch=2, rollout_blocks=2, action_block=2)
    train(
        TrainConfig(
            "predictor", folder, tmp_path / "slots", tmp_path / "run", predictor=PREDICTOR, dynamics=dynamics,
            trainer=TRAINER,
        )
    )  # fmt: skip
    model = Checkpoint.from_pretrained(tmp_path / "run/checkpoint").model
    slots = VideoSlots(tmp_path / "slots").read(0)
    latent = model.latent(slots, torch.zeros(128, 0))
    assert latent.slots.flatten(0, 1).var(0).mean().item() == pytest.approx(1.0, rel=0.1), "slots are of size one"


def test_points_are_drawn_where_something_stands_out() -> None:
    contrast = torch.zeros(1, 1, 64, 64)
    contrast[:, :, 10:12, 10:12] = 2.6
    config = SlotTrainingConfig(points=300, uniform=100)
    index = draw_points(contrast, config, torch.Generator().manual_seed(0))[0]
    inside = ((index // 64 - 10).clamp(0, 1) == index // 64 - 10) & ((index % 64 - 10).clamp(0, 1) == index % 64 - 10)
    assert 150 < inside.sum() < 250


def test_mixture_prefers_one_slot_per_pixel_to_a_blend() -> None:
    grey = torch.full((1, 1, 3), 0.5)
    black_and_white = torch.tensor([[[[0.0] * 3], [[1.0] * 3]]])
    blend = mixture_nll(grey, black_and_white, torch.full((1, 2, 1), 0.5), sigma=0.1)
    own = mixture_nll(grey, torch.tensor([[[[0.5] * 3], [[1.0] * 3]]]), torch.full((1, 2, 1), 0.5), sigma=0.1)
    assert own < 0.1 * blend
