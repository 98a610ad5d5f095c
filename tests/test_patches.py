"""Patch tokens in place of slots, DINO-WM: what they depend on, how they are normalised, and the whole pipeline."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run
from moving_episodes import write_moving_episodes
from omegaconf import OmegaConf
from tiny_model import SETTINGS
from torch import Tensor

from cjepa_agent.agent import CJEPAAgent
from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.data.episodes import EpisodeFile
from cjepa_agent.data.slot_data import SlotData
from cjepa_agent.encoders import patches
from cjepa_agent.encoders.autoencoder import SlotAutoencoder
from cjepa_agent.encoders.base import grid_coordinates
from cjepa_agent.encoders.dinov2 import DINOv2
from cjepa_agent.encoders.kinds import encoder_config
from cjepa_agent.encoders.patches import DINOv2PatchConfig, PatchConfig, PatchDecoder
from cjepa_agent.evaluation.config import EvaluateConfig
from cjepa_agent.evaluation.planning import PlanningEvaluation
from cjepa_agent.extract import ExtractConfig, extract
from cjepa_agent.latent import Latent
from cjepa_agent.manifest import draw
from cjepa_agent.planning import LatentPlanner, ObjectiveSettings, PlanStart
from cjepa_agent.predictors.oc_dino_wm import OCDINOWMConfig
from cjepa_agent.train import TrainConfig, train
from cjepa_agent.training.encoder_stage import EncoderStage
from cjepa_agent.training.loop import TrainerConfig
from cjepa_agent.training.objectives import SlotTrainingConfig
from cjepa_agent.training.predictor_stage import DynamicsTrainingConfig, fitted_world_model
from cjepa_agent.world_model import WorldModel, WorldModelConfig
from configs.command import build
from planners import ActionPrior

TINY = PatchConfig(slot_dim=8, image_size=32, patch=8, depth=1, heads=2, decoder_width=8)
PREDICTOR = OCDINOWMConfig(depth=1, width=16, heads=2, mlp=16, history=3)


def frames(count: int, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)


def world_model() -> WorldModel:
    torch.manual_seed(0)
    model = WorldModel(WorldModelConfig(encoder=TINY, predictor=PREDICTOR)).eval()
    for parameter in model.predictor.parameters():  # the output heads start at zero, which would hide every dependence
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_tokens_are_the_same_again_and_alone_as_in_a_batch() -> None:
    model, scene, proprio = world_model(), frames(3), torch.zeros(3, 4)
    tokens = model.encode(scene, proprio).slots
    assert tokens.shape == (3, 16, 8) and torch.equal(tokens, model.encode(scene, proprio).slots)
    for index in range(3):
        alone = model.encode(scene[index : index + 1], proprio[:1]).slots
        assert torch.equal(alone[0], tokens[index])
    assert model.encode(frames(1, size=40), proprio[:1]).slots.shape == (1, 16, 8)
    with pytest.raises(ValueError, match="uint8"):
        model.encode(scene.float(), proprio)


def test_a_token_belongs_to_its_patch() -> None:
    encoder, decoder = TINY.build()
    pixels = torch.zeros(1, 3, 32, 32, requires_grad=True)
    token = encoder(pixels).slots[0, 6]  # the second row's third patch
    gradient = torch.autograd.grad(token.square().sum(), pixels)[0].abs().sum((0, 1))
    own = gradient.unfold(0, 8, 8).unfold(1, 8, 8).mean((2, 3))
    assert own.argmax() == 6 and (own > 0).all(), "patches see each other"
    painted, masks = decoder.paint(encoder(pixels).slots, grid_coordinates(32).unsqueeze(0))
    assert painted.shape == (1, 32 * 32, 3) and masks.shape == (1, 16, 32 * 32)
    image = masks[0, 6].view(32, 32)
    assert image.sum() == 64 and image[8:16, 16:24].all()


@torch.no_grad()
def test_decoder_paints_a_token_on_its_patch_and_the_two_around_it() -> None:
    torch.manual_seed(0)
    decoder, slots, points = PatchDecoder(TINY), torch.randn(1, 16, 8), grid_coordinates(32).unsqueeze(0)
    changed = slots.clone()
    changed[0, 3] += 1  # the first row's last patch
    difference = (decoder(changed, points) - decoder(slots, points)).abs().sum(-1).view(4, 8, 4, 8).sum((1, 3))
    assert (difference > 0).tolist() == [[False, True, True, True]] * 3 + [[False] * 4]


def test_frames_see_themselves_and_the_past_but_never_the_future() -> None:
    predictor, generator = world_model().predictor, torch.Generator().manual_seed(0)
    slots = torch.randn(1, 3, 16, 8, generator=generator, requires_grad=True)
    past = Latent(slots, torch.randn(1, 3, 4, generator=generator))
    outputs = predictor(past, torch.randn(1, 3, 10, generator=generator), torch.zeros(1, 3, 16, dtype=torch.bool))
    residual = outputs.slots - slots
    for frame in range(3):
        for token in (0, 9):
            reads = torch.autograd.grad(residual[0, frame, token].square().sum(), slots, retain_graph=True)[0]
            seen = reads[0].abs().amax(-1) > 0
            assert seen[: frame + 1].all() and not seen[frame + 1 :].any()


@torch.no_grad()
def test_patches_have_an_order_that_predictions_depend_on() -> None:
    predictor, generator = world_model().predictor, torch.Generator().manual_seed(0)
    past = Latent(torch.randn(1, 2, 16, 8, generator=generator), torch.zeros(1, 2, 4))
    actions, order = torch.zeros(1, 2, 10), torch.arange(15, -1, -1)
    plain, turned = predictor(past, actions), predictor(Latent(past.slots[:, :, order], past.proprio), actions)
    assert not predictor.orderless and (turned.slots - plain.slots[:, :, order]).abs().max() > 1e-3


@torch.no_grad()
def test_plans_are_judged_by_all_patches_in_place_and_proprioception() -> None:
    model, generator = world_model(), torch.Generator().manual_seed(0)
    prior = ActionPrior.fit(torch.randn(50, 10, generator=generator), -torch.ones(10), torch.ones(10))
    planner = LatentPlanner(model, prior, SETTINGS, ObjectiveSettings())
    history = Latent(torch.randn(1, 1, 16, 8, generator=generator), torch.randn(1, 1, 4, generator=generator))
    start, goal = PlanStart(history, torch.empty(1, 0, 10)), Latent(torch.randn(1, 16, 8), torch.randn(1, 4))
    actions = torch.rand(1, 5, 3, 10, generator=generator)
    end = model.rollout(history, start.taken, actions).select((slice(None), slice(None), -1))
    seen, felt = end.slots - goal.slots[:, None], end.proprio - goal.proprio
    expected = seen.square().mean((-2, -1)) + felt.square().mean(-1)
    torch.testing.assert_close(planner.cost(start, goal, actions), expected)
    with pytest.raises(ValueError, match=r"roles are \{\}; use objects=all, .* objectives=all of evaluate"):
        LatentPlanner(model, prior, SETTINGS, ObjectiveSettings(objects="block"))
    with pytest.raises(ValueError, match="matching takes up to 12 slots, this checkpoint has 16 tokens"):
        LatentPlanner(model, prior, SETTINGS, ObjectiveSettings(matching=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": 6}, "image_size 32 is not a multiple of encoder.patch 6"),
        ({"heads": 3}, "slot_dim 8 is not a multiple of encoder.heads 3"),
        ({"patch": 0}, "must be positive"),
        ({"positions": 0}, "must be positive"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_a_kind_is_chosen_with_all_its_keys() -> None:
    for kind, message in (("patches", r"has no \['n_slots'\]; .* by encoder=patches"), ("state", "expected one of")):
        with pytest.raises(ValueError, match=message):
            build(TrainConfig, OmegaConf.create({"encoder": {"kind": kind, "n_slots": 4}}))


def test_dino_wm_has_196_tokens_of_384_numbers() -> None:
    config = DINOv2PatchConfig()
    assert (config.n_slots, config.slot_dim) == (196, 384) and encoder_config(asdict(config)) == config
    with torch.device("meta"):
        own, published = config.build()[0].backbone.state_dict(), DINOv2().state_dict()
    assert {name: t.shape for name, t in own.items()} == {name: t.shape for name, t in published.items()}
    titles = [WorldModelConfig(replace(TINY, registers=count), PREDICTOR).title for count in (0, 4)]
    assert titles == ["DINO-WM", "DINO-WM-Reg"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with six short episodes of something moving, and a pair to plan for."""
    folder = tmp_path_factory.mktemp("patches")
    write_moving_episodes(folder / "data.h5", 32, 30)
    draw(EpisodeFile(folder / "data.h5"), "strict", "test", 0, 1, 25).write(folder)
    return folder


def stage(data: Path, config: PatchConfig) -> EncoderStage:
    return EncoderStage(
        EpisodeFile(data / "data.h5"), config, SlotTrainingConfig(points=32, uniform=16), seed=0, recipe={}
    )


def test_training_reconstructs_frames(data: Path) -> None:
    training, generator = stage(data, TINY), torch.Generator().manual_seed(0)
    before = training.validate(training.model)["pixels"]
    optimizer = torch.optim.Adam(training.model.parameters(), lr=1e-2)
    for step in range(30):
        optimizer.zero_grad()
        training.loss(training.model, step, 8, slice(0, 8), generator)["total"].backward()
        optimizer.step()
    assert training.validate(training.model)["pixels"] < 0.5 * before


def test_dinov2_stays_as_it_is_while_its_decoder_learns(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    network = DINOv2(width=8, depth=1, heads=2, patch=8, positions=3)
    monkeypatch.setattr(patches, "pretrained", {"some/dinov2": network}.__getitem__)
    training = stage(data, replace(TINY, positions=3, weights="some/dinov2"))
    assert all(map(torch.equal, training.model.encoder.backbone.parameters(), network.parameters()))
    training.loss(training.model, 0, 4, slice(0, 4), torch.Generator().manual_seed(0))["total"].backward()
    assert all(p.grad is None and not p.requires_grad for p in training.model.encoder.parameters())
    assert all(p.grad is not None for p in training.model.decoder.parameters())
    with pytest.raises(ValueError, match=r"some/dinov2 .*pos_embed"):
        stage(data, replace(TINY, weights="some/dinov2"))


@pytest.fixture(scope="module")
def checkpoint(data: Path) -> Path:
    """A checkpoint that the commands made."""
    sizes = [f"encoder.{name}={value}" for name, value in asdict(TINY).items() if name not in ("kind", "positions")]
    run(
        "cjepa_agent.train", "stage=encoder", "encoder=patches", "trainer=encoder", "data=data.h5", "out=encoder",
        "trainer.steps=2", "trainer.batch=2", "trainer.precision=32-true", *sizes,
        folder=data,
    )  # fmt: skip
    extract(ExtractConfig(data / "data.h5", data / "encoder", data / "tokens", stride=5))
    dynamics = DynamicsTrainingConfig(windows=4, rollout_from=0.5, rollout_batch=2)
    trainer = TrainerConfig(steps=2, batch=2, optimizer="adamw", precision="32-true", accelerator="cpu")
    train(
        TrainConfig(
            "predictor", data / "data.h5", data / "tokens", data / "run", predictor=PREDICTOR, dynamics=dynamics,
            trainer=trainer,
        )
    )  # fmt: skip
    return data / "run/checkpoint"


def test_checkpoint_round_trip(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    first = Checkpoint.from_pretrained(checkpoint)
    config = first.model.config
    assert (config.encoder, config.roles, config.title) == (TINY, {}, "DINO-WM")
    assert SlotAutoencoder.load(data / "encoder").is_of(first.model)
    first.save_pretrained(tmp_path)
    again, scene = Checkpoint.from_pretrained(tmp_path), (frames(2), torch.zeros(2, 4))
    assert all(map(torch.equal, first.model.encode(*scene), again.model.encode(*scene)))
    assert WorldModelConfig.from_dict(json.loads(json.dumps(asdict(config)))) == config
    card = (tmp_path / "README.md").read_text()
    assert "16 patch tokens" in card and "# DINO-WM world model" in card and "object-centric" not in card
    stored = SlotData(EpisodeFile(data / "data.h5"), data / "tokens").frames(np.array([5, 30])).slots
    pixels = torch.from_numpy(EpisodeFile(data / "data.h5").read_all("pixels")[[5, 30]])
    torch.testing.assert_close(stored, first.model.encoder.read(pixels), atol=5e-3, rtol=0)


def test_the_change_over_a_plan_is_of_size_one(checkpoint: Path, data: Path) -> None:
    slots, dynamics = SlotData(EpisodeFile(data / "data.h5"), data / "tokens"), DynamicsTrainingConfig()
    model = fitted_world_model(slots, SlotAutoencoder.load(data / "tokens"), PREDICTOR, dynamics, 0)
    starts = slots.window_starts("train", dynamics.rollout_blocks + 1, dynamics.action_block)
    now, later = (slots.frames(starts + ahead) for ahead in (0, dynamics.rollout_blocks * dynamics.action_block))
    change = model.latent(*later).slots - model.latent(*now).slots
    assert change.square().mean().item() == pytest.approx(1.0, rel=1e-3)
    means = model.latent(*now).slots.mean(0)
    assert means.abs().max() < 1e-3, "each patch has its own mean, for it stays where it is"


def test_agent_acts_and_draws_what_it_imagines(checkpoint: Path) -> None:
    agent = CJEPAAgent.from_pretrained(checkpoint, replace(SETTINGS, context=2))
    pixels, proprio = frames(1)[0].numpy(), np.zeros(4, np.float32)
    observation = {"pixels": pixels, "goal_pixels": pixels, "proprio": proprio, "goal_proprio": proprio}
    actions = np.stack([agent.predict(observation)[0] for _ in range(7)])  # the second plan has two blocks left
    assert actions.shape == (7, 2) and np.isfinite(actions).all()
    imagined = agent.imagination(size=20)
    assert imagined.frames.shape == (2, 20, 20, 3) and imagined.masks.shape == (2, 16, 20, 20)


def test_evaluation_asks_for_an_objective_that_patches_have(checkpoint: Path, data: Path) -> None:
    with pytest.raises(ValueError, match=r"objects=block .* objectives=all"):
        PlanningEvaluation(
            EvaluateConfig(weights=str(checkpoint), rules=("strict",), seeds=(0,), manifests=str(data), episodes=1)
        )
    run(
        "cjepa_agent.evaluate", "weights=run/checkpoint", "objectives=all", "rules=[strict]", "manifests=.",
        "seeds=[0]", "episodes=1", "budget=5", "videos=1", "baselines=false", "oracle_episodes=0", "planner=default",
        "planner.cem.n_samples=4", "planner.cem.n_elites=2", "planner.cem.n_iterations=1", folder=data,
    )  # fmt: skip
    (row,) = json.loads((data / "results/pusht_planning.json").read_text())["rows"]
    assert row["controller"] == "DINO-WM" and row["planning_target"] == "all slots + 1 proprio, last step"
    assert (data / "videos/pusht_strict_0.mp4").stat().st_size > 0
