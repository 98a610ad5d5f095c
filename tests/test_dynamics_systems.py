"""The systems that C-JEPA is compared with: what their attention may see, parity, selection, training, planning."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import CONFIG, SETTINGS, tiny_checkpoint
from torch import Tensor

from benchmarks import systems
from benchmarks.systems import System, SystemsBenchmark, system
from cjepa_agent.agent import CJEPAAgent
from cjepa_agent.autoencoder import SlotAutoencoder
from cjepa_agent.autoregressive import AutoregressivePredictor
from cjepa_agent.checkpoint import BUNDLED, Checkpoint
from cjepa_agent.data import EpisodeFile, write_episodes
from cjepa_agent.dynamics import TransformerConfig
from cjepa_agent.extract import STATE, ExtractConfig, extract
from cjepa_agent.files import write_json
from cjepa_agent.latent import Latent
from cjepa_agent.losses import forecast_loss
from cjepa_agent.manifest import draw
from cjepa_agent.masking import MaskConfig
from cjepa_agent.oc_dino_wm import OCDINOWMConfig
from cjepa_agent.ocvp import OCVPConfig
from cjepa_agent.patches import PatchConfig
from cjepa_agent.predictor import PredictorConfig
from cjepa_agent.slotformer import SlotFormerConfig
from cjepa_agent.train import make_run
from cjepa_agent.training.loop import TrainerConfig
from cjepa_agent.training.predictor_stage import DynamicsTrainingConfig
from cjepa_agent.world_model import TrainedPredictorConfig, WorldModel, WorldModelConfig
from configs.presets import preset

S, D, P, A = 4, 16, 3, 6
SIZES = {"depth": 2, "width": 32, "heads": 2, "mlp": 48, "history": 4}
OC_DINO_WM, SLOTFORMER, OCVP = OCDINOWMConfig(**SIZES), SlotFormerConfig(**SIZES), OCVPConfig(**SIZES)
SYSTEMS = [OC_DINO_WM, SLOTFORMER, OCVP]
EQUIVARIANT = [SLOTFORMER, OCVP]
NOTHING_HIDDEN = torch.zeros(1, 1, 1, dtype=torch.bool)
State = dict[str, Tensor]

by_kind = pytest.mark.parametrize("config", SYSTEMS, ids=lambda config: config.kind)


def build(config: TrainedPredictorConfig) -> AutoregressivePredictor:
    torch.manual_seed(0)
    predictor = config.build(S, D, P, A).eval()
    for parameter in predictor.parameters():  # the output heads start at zero, which would hide every dependence
        torch.nn.init.normal_(parameter, std=0.2)
    assert isinstance(predictor, AutoregressivePredictor)
    return predictor


def history(frames: int = 4, batch: int = 2) -> tuple[Latent, Tensor]:
    generator = torch.Generator().manual_seed(1)
    slots, proprio = (torch.randn(batch, frames, *shape, generator=generator) for shape in ((S, D), (P,)))
    return Latent(slots, proprio), torch.randn(batch, frames, A, generator=generator)


@torch.no_grad()
def test_later_frames_never_change_earlier_outputs_of_oc_dino_wm() -> None:
    predictor, (past, actions) = build(OC_DINO_WM), history()
    outputs = predictor(past, actions, NOTHING_HIDDEN)
    assert outputs.slots.shape == (2, 4, S, D) and outputs.proprio.shape == (2, 4, P)
    for frame in range(4):
        changed = Latent(past.slots.clone(), past.proprio.clone())
        changed.slots[:, frame, 1] += 1.0
        after = predictor(changed, actions, NOTHING_HIDDEN).slots
        assert torch.equal(after[:, :frame], outputs.slots[:, :frame])
        # Slots of the same frame see the change, not only the one that it is of.
        assert (after[:, frame:] - outputs.slots[:, frame:]).abs().amax((0, 3)).min() > 1e-4
        later = actions.clone()
        later[:, frame] += 1.0
        acted = predictor(past, later, NOTHING_HIDDEN)
        assert torch.equal(acted.slots[:, :frame], outputs.slots[:, :frame])
        assert (acted.slots[:, frame:] - outputs.slots[:, frame:]).abs().amax((0, 3)).min() > 1e-4


@torch.no_grad()
def test_oc_dino_wm_sees_a_history_as_the_beginning_of_a_longer_one() -> None:
    predictor, (past, actions) = build(OC_DINO_WM), history()
    outputs = predictor(past, actions, NOTHING_HIDDEN)
    for frames in range(1, 5):
        alone = predictor(past.select((slice(None), slice(frames))), actions[:, :frames])
        torch.testing.assert_close(alone.slots[:, 0], outputs.slots[:, frames - 1])
        torch.testing.assert_close(alone.proprio[:, 0], outputs.proprio[:, frames - 1])


@torch.no_grad()
@pytest.mark.parametrize("config", EQUIVARIANT, ids=lambda config: config.kind)
@pytest.mark.parametrize("frames", [1, 3])
def test_permuted_slots_give_permuted_predictions(config: TrainedPredictorConfig, frames: int) -> None:
    predictor, (past, actions) = build(config), history(frames)
    order = torch.tensor([2, 0, 3, 1])
    plain = predictor(past, actions)
    permuted = predictor(Latent(past.slots[:, :, order], past.proprio), actions)
    torch.testing.assert_close(permuted.slots, plain.slots[:, :, order])
    torch.testing.assert_close(permuted.proprio, plain.proprio)
    assert (plain.slots[:, :, order] - plain.slots).abs().max() > 0.1


def linear(x: Tensor, state: State, name: str) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def norm(x: Tensor, state: State, name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def encoder_layer(x: Tensor, state: State, name: str, heads: int = 2) -> Tensor:
    """A pre-norm block with ReLU over one sequence (L, width), head by head."""
    width = x.shape[-1] // heads
    query, key, value = (
        norm(x, state, f"{name}.norm1") @ state[f"{name}.self_attn.in_proj_weight"].T
        + state[f"{name}.self_attn.in_proj_bias"]
    ).chunk(3, dim=-1)
    mixed = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        weights = (query[:, part] @ key[:, part].T / math.sqrt(width)).softmax(-1)
        mixed.append(weights @ value[:, part])
    x = x + linear(torch.cat(mixed, dim=-1), state, f"{name}.self_attn.out_proj")
    inner = linear(norm(x, state, f"{name}.norm2"), state, f"{name}.linear1").clamp(min=0)
    return x + linear(inner, state, f"{name}.linear2")


def tokens(past: Latent, actions: Tensor, index: int, state: State) -> Tensor:
    """Tokens (T, S, width) with the sinusoidal encoding of the time that is left until now."""
    frames, width = actions.shape[1], SIZES["width"]
    rows = []
    for frame in range(frames):
        left = frames - 1 - frame
        angles = [left / 10000 ** (2 * i / width) for i in range(width // 2)]
        time = torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles])
        for slot in range(S):
            cell = torch.cat([past.slots[index, frame, slot], past.proprio[index, frame], actions[index, frame]])
            rows.append(linear(cell, state, "embed_token") + time)
    return torch.stack(rows).view(frames, S, width)


def slotformer(x: Tensor, state: State) -> Tensor:
    sequence = x.flatten(0, 1)
    for layer in range(2):
        sequence = encoder_layer(sequence, state, f"blocks.layers.{layer}")
    return sequence.view_as(x)


def ocvp_seq(x: Tensor, state: State) -> Tensor:
    for layer in range(2):
        x = torch.stack([encoder_layer(frame, state, f"blocks.{layer}.objects") for frame in x])
        x = torch.stack([encoder_layer(x[:, slot], state, f"blocks.{layer}.time") for slot in range(S)], dim=1)
    return x


@torch.no_grad()
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("frames", [1, 2, 4])
@pytest.mark.parametrize(
    ("config", "reference"), [(SLOTFORMER, slotformer), (OCVP, ocvp_seq)], ids=["slotformer", "ocvp"]
)
def test_parity(config: TrainedPredictorConfig, reference, frames: int, residual: bool) -> None:
    predictor, (past, actions) = build(replace(config, residual=residual)), history(frames)
    state = predictor.state_dict()
    found = predictor(past, actions)
    for index in range(2):
        now = reference(tokens(past, actions, index, state), state)[-1]
        slots, proprio = linear(now, state, "head_slot"), linear(now.mean(0), state, "head_proprio")
        if residual:
            slots, proprio = slots + past.slots[index, -1], proprio + past.proprio[index, -1]
        torch.testing.assert_close(found.slots[index, 0], slots, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.proprio[index, 0], proprio, rtol=1e-4, atol=1e-4)


@by_kind
def test_predictions_depend_on_actions_and_proprioception(config: TrainedPredictorConfig) -> None:
    predictor, (past, actions) = build(config), history()
    inputs = [past.slots.requires_grad_(), past.proprio.requires_grad_(), actions.requires_grad_()]
    slots = predictor(past, actions).slots - (past.slots[:, -1:] if config.residual else 0)
    for gradient in torch.autograd.grad(slots.square().sum(), inputs):
        assert (gradient.flatten(2).abs().amax(-1) > 1e-6).all(), "every frame counts"


@by_kind
def test_new_predictors_with_a_residual_copy_the_last_frame(config: TrainedPredictorConfig) -> None:
    past, actions = history()
    predicted = config.build(S, D, P, A).eval()(past, actions)
    assert torch.equal(predicted.slots, past.slots[:, -1:]) and torch.equal(predicted.proprio, past.proprio[:, -1:])


@by_kind
def test_refuses_what_does_not_fit(config: TrainedPredictorConfig) -> None:
    predictor, (past, actions) = build(config), history()
    with pytest.raises(ValueError, match="need 4 action blocks, got 3"):
        predictor(past, actions[:, :3])
    with pytest.raises(ValueError, match="2 future frames"):
        predictor(past, actions, future=2)
    more = Latent(past.slots[:, :, [0, 1, 2, 3, 3]], past.proprio)
    with pytest.raises(ValueError, match="5 slots, the predictor 4"):
        predictor(more, actions)
    with pytest.raises(ValueError, match=r"5 frames; this predictor takes 1\.\.4"):
        predictor(*history(5))


@by_kind
def test_slots_are_left_out_only_where_they_have_no_order(config: TrainedPredictorConfig) -> None:
    predictor, (past, actions) = build(config), history()
    fewer = Latent(past.slots[:, :, :3], past.proprio)
    if predictor.orderless:
        assert predictor(fewer, actions).slots.shape[2] == 3
    else:
        with pytest.raises(ValueError, match="3 slots, the predictor 4"):
            predictor(fewer, actions)


@pytest.mark.parametrize("config", EQUIVARIANT, ids=lambda config: config.kind)
def test_odd_widths_are_refused(config: TrainedPredictorConfig) -> None:
    with pytest.raises(ValueError, match="width must be even"):
        build(replace(config, width=33, heads=3))


def test_forecast_loss_is_over_the_frames_that_are_predicted() -> None:
    target, _ = history(4)
    for frames in (1, 3):
        last = target.select((slice(None), slice(-frames, None)))
        terms = forecast_loss(Latent(last.slots + 2.0, last.proprio + 3.0), target, proprio_weight=0.5)
        assert terms.future.item() == pytest.approx(4.0) and terms.proprio.item() == pytest.approx(9.0)
        assert terms.total.item() == pytest.approx(4 + 4.5) and terms.history == 0


def world_model(config: TrainedPredictorConfig) -> WorldModel:
    model = tiny_checkpoint().model
    torch.manual_seed(0)
    replaced = WorldModel(replace(CONFIG, predictor=config)).eval()
    replaced.processor.load_state_dict(model.processor.state_dict())
    for parameter in replaced.predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return replaced


@torch.no_grad()
@by_kind
@pytest.mark.parametrize("frames", [1, 2])
def test_rollouts_are_the_same_alone_and_in_a_batch(config: TrainedPredictorConfig, frames: int) -> None:
    model, generator = world_model(config), torch.Generator().manual_seed(0)
    slots, proprio = torch.randn(3, frames, 3, 20, generator=generator), torch.randn(3, frames, 4, generator=generator)
    past = torch.randn(3, frames - 1, 10, generator=generator)
    actions = torch.randn(3, 5, 6, 10, generator=generator)
    start = model.latent(slots, proprio)
    path = model.rollout(start, past, actions)
    assert path.slots.shape == (3, 5, 6, 3, 20) and path.proprio.shape == (3, 5, 6, 4)
    for env in range(3):
        part = slice(env, env + 1)
        for candidate in range(0, 5, 2):
            alone = model.rollout(start.select(part), past[part], actions[part, candidate : candidate + 1])
            torch.testing.assert_close(alone.slots[0, 0], path.slots[env, candidate], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(alone.proprio[0, 0], path.proprio[env, candidate], rtol=1e-4, atol=1e-4)


def beginning(config: TrainedPredictorConfig, candidates: int, blocks: int) -> tuple[WorldModel, Latent, Tensor]:
    """A world model, the latent that a plan starts from, and candidate actions."""
    model, generator = world_model(config), torch.Generator().manual_seed(0)
    start = model.latent(torch.randn(1, 1, 3, 20, generator=generator), torch.randn(1, 1, 4, generator=generator))
    return model, start, torch.randn(1, candidates, blocks, 10, generator=generator)


@torch.no_grad()
@by_kind
def test_a_rollout_predicts_from_its_own_last_frames(config: TrainedPredictorConfig) -> None:
    model, start, actions = beginning(config, candidates=1, blocks=6)
    path = model.rollout(start, actions[:, 0, :0], actions)
    frames, blocks = start, model.processor.action(actions[0])
    for step in range(6):
        recent = slice(max(0, step - 3), None)
        following = model.predictor(frames.select((slice(None), recent)), blocks[:, recent.start : step + 1])
        torch.testing.assert_close(path.slots[0, :, step], following.slots[:, 0])
        frames = Latent.cat([frames, following], dim=1)


@torch.no_grad()
@by_kind
def test_plans_in_reduced_precision(config: TrainedPredictorConfig) -> None:
    model, start, actions = beginning(config, candidates=4, blocks=3)
    exact = model.rollout(start, actions[:, 0, :0], actions).slots
    with torch.autocast("cpu", torch.bfloat16):
        reduced = model.rollout(start, actions[:, 0, :0], actions).slots
    assert reduced.dtype == torch.float32 and (reduced - exact).norm() < 0.05 * exact.norm()


@by_kind
def test_checkpoint_round_trip(config: TrainedPredictorConfig, tmp_path: Path) -> None:
    saved = Checkpoint(world_model(config), tiny_checkpoint().prior)
    saved.save_pretrained(tmp_path)
    loaded = Checkpoint.from_pretrained(tmp_path)
    assert loaded.model.config.predictor == config
    state = loaded.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in saved.model.state_dict().items())
    assert (tmp_path / "README.md").read_text().count(config.title) == 2
    agent = CJEPAAgent.from_pretrained(tmp_path, replace(SETTINGS, context=2))
    observation = {
        name: np.zeros(shape, dtype)
        for prefix in ("", "goal_")
        for name, shape, dtype in ((f"{prefix}pixels", (64, 64, 3), np.uint8), (f"{prefix}proprio", (4,), np.float32))
    }
    actions = np.stack([agent.predict(observation)[0] for _ in range(8)])
    assert actions.shape == (8, 2) and np.isfinite(actions).all()


BEFORE = {"pusht": [14281.1772, 54.5201], "pusht-unmasked": [14529.9072, 52.5572]}


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_checkpoints_are_unchanged(name: str) -> None:
    """Sums over a rollout, recorded before there were other predictors."""
    model, generator = Checkpoint.from_pretrained(name).model, torch.Generator().manual_seed(0)
    assert isinstance(model.config.predictor, PredictorConfig)
    slots, proprio = torch.randn(1, 1, 4, 128, generator=generator), torch.randn(1, 1, 4, generator=generator)
    actions = torch.randn(1, 2, 3, 10, generator=generator)
    with torch.no_grad():
        path = model.rollout(model.latent(slots, proprio), actions[:, 0, :0], actions)
    sums = [float(part.double().abs().sum()) for part in path]
    assert sums == pytest.approx(BEFORE[name], rel=1e-5)


@by_kind
def test_configurations_survive_json(config: TrainedPredictorConfig) -> None:
    whole = replace(CONFIG, predictor=config)
    assert WorldModelConfig.from_dict(json.loads(json.dumps(asdict(whole)))) == whole
    values = asdict(whole)
    values["predictor"]["auxiliary"] = "tokens"
    with pytest.raises(ValueError, match="auxiliary"):
        WorldModelConfig.from_dict(values)


def test_unknown_kinds_are_refused_and_none_is_c_jepa() -> None:
    values = asdict(CONFIG)
    values["predictor"]["kind"] = "lstm"
    with pytest.raises(ValueError, match=r"'lstm'; expected one of \['cjepa', 'oc_dino_wm', 'slotformer', 'ocvp'\]"):
        WorldModelConfig.from_dict(values)
    del values["predictor"]["kind"]
    assert WorldModelConfig.from_dict(values) == CONFIG


@pytest.mark.parametrize(
    ("kind", "name"),
    [(OCDINOWMConfig, "oc_dino_wm_paper"), (SlotFormerConfig, "slotformer_paper"), (OCVPConfig, "ocvp_paper")],
)
def test_published_sizes_are_presets(kind: type[TrainedPredictorConfig], name: str) -> None:
    assert preset(kind, "predictor", name).dropout == 0.1


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Walks of agent and block, slots of their true states, tokens of noise, and pairs to plan for."""
    folder, rng = tmp_path_factory.mktemp("walks"), np.random.default_rng(0)

    def walk() -> dict[str, np.ndarray]:
        action = rng.uniform(-1, 1, (40, 2)).astype(np.float32)
        state = np.zeros((40, 7))
        state[:, :2] = np.clip(rng.uniform(200, 300, 2) + np.cumsum(5 * action, 0), 60, 450)
        state[:, 2:5] = rng.uniform((180, 180, 0), (330, 330, 6)) + np.cumsum(rng.normal(0, (4, 4, 0.1), (40, 3)), 0)
        noise = rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
        return {
            "pixels": noise,
            "state": state,
            "action": action,
            "proprio": state[:, [0, 1, 5, 6]].astype(np.float32),
        }

    write_episodes(folder / "data.h5", (walk() for _ in range(60)), {"policy": "walk"})
    extract(ExtractConfig(data=folder / "data.h5", encoder=STATE, out=folder / "slots"))
    SlotAutoencoder(PATCHES).save(folder / "encoder")
    write_json(folder / "encoder/recipe.json", {})
    extract(ExtractConfig(data=folder / "data.h5", encoder=folder / "encoder", out=folder / "patches", stride=5))
    for rule in ("released", "strict"):
        draw(EpisodeFile(folder / "data.h5"), rule, "test", 0, 2, 25).write(folder)
    return folder


SMALL = TransformerConfig(depth=2, width=16, heads=2, mlp=16, history=3)
PATCHES = PatchConfig(slot_dim=8, image_size=16, patch=4, depth=1, heads=2, decoder_width=8)
TRAINER = TrainerConfig(
    steps=4, batch=8, precision="32-true", accelerator="cpu", log_every=2, validate_every=2, save_every=2
)


def benchmark(data: Path, **changes: object) -> SystemsBenchmark:
    values = {
        "systems": ("c-jepa-2", "c-jepa-1-concat", "oc-dino-wm", "slotformer", "ocvp", "dino-wm"),
        "data": data / "data.h5",
        "slots": data / "slots",
        "patches": data / "patches",
        "sizes": SMALL,
        "dynamics": DynamicsTrainingConfig(rollout_from=0.5, rollout_blocks=3, rollout_batch=4, windows=8),
        "trainer": TRAINER,
        "planner": SETTINGS,
        "episodes": 2,
        "budget": 6,
        "seeds": (0,),
        "manifests": str(data),
    }
    return SystemsBenchmark(**{**values, **changes})


def test_all_systems_are_trained_scored_and_resumed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = benchmark(data, runs=tmp_path / "runs", out=tmp_path, page=tmp_path / "systems.md")
    systems.run(replace(config, systems=config.systems[:1]))
    systems.run(config)
    first = json.loads((tmp_path / "benchmark_systems.json").read_text())
    entries = list(first["systems"].values())
    assert [entry["system"] for entry in entries] == list(config.systems)
    assert [entry["frame_tokens"] for entry in entries] == [6, 4, 4, 4, 4, 16] and entries[0]["mask"]["count"] == 2
    for entry in entries:
        assert [row["rule"] for row in entry["rows"]] == ["released", "strict"] and entry["training_seconds"] > 0
        seen = {row["planning_target"].split(" + ")[0].split(",")[0] for row in entry["rows"]}
        assert seen == ({"all slots"} if entry["system"] == "dino-wm" else {"block slot"})
        assert all(row["episodes"] == 2 and row["low"] <= row["success"] <= row["high"] for row in entry["rows"])
        folder = next((tmp_path / "runs").glob(f"{entry['system']}-0-*"))
        checkpoint = Checkpoint.from_pretrained(folder / "checkpoint")
        assert asdict(checkpoint.model.config.predictor) == entry["predictor"]
        assert checkpoint.training["command"]["trainer"]["steps"] == 4
        logged = dict(line.split(",")[1:] for line in (folder / "validation.csv").read_text().splitlines()[-6:])
        assert {name: pytest.approx(float(value)) for name, value in logged.items()} == entry["rollout"]
    page = (tmp_path / "systems.md").read_text()
    assert page.count("\n| ") == 2 + len(entries) and "| slotformer | 0 | " in page and "s / solve" in page
    assert str(tmp_path) not in page + json.dumps(first)
    monkeypatch.setattr(systems, "measure", lambda *_: pytest.fail("measured again"))
    systems.run(config)
    assert json.loads((tmp_path / "benchmark_systems.json").read_text()) == first
    assert "written to" in capsys.readouterr().out
    with pytest.raises(ValueError, match="give another out"):
        systems.run(replace(config, episodes=1))


def test_systems_find_out_first_whether_there_is_what_they_train_on(data: Path, tmp_path: Path) -> None:
    config = benchmark(data, runs=tmp_path / "runs", out=tmp_path, page=tmp_path / "systems.md")
    with pytest.raises(FileNotFoundError, match=r"dino-wm needs patches, but .*nowhere has none; .* encoder=patches"):
        systems.run(replace(config, patches=tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"dino-wm needs patches, but .*slots holds others"):
        systems.run(replace(config, patches=data / "slots"))
    with pytest.raises(ValueError, match=r"ocvp needs slots, but .*patches holds others"):
        systems.run(replace(config, systems=("ocvp",), slots=data / "patches"))
    assert not (tmp_path / "runs").exists()


def test_other_settings_train_in_another_folder(data: Path) -> None:
    config = benchmark(data)
    assert config.training("ocvp", 0) == config.training("ocvp", 0)
    folders = {
        settings.training(name, seed).out
        for settings in (config, replace(config, dynamics=DynamicsTrainingConfig()))
        for name in ("ocvp", "c-jepa-1", "c-jepa-2")
        for seed in (0, 1)
    }
    assert len(folders) == 12


def test_the_weights_that_are_exported_are_those_validated(data: Path, tmp_path: Path) -> None:
    """They are moving averages, not the weights that the optimiser holds."""
    training = make_run(replace(benchmark(data).training("oc-dino-wm", 0), out=tmp_path))
    before = training.stage.validate(training.stage.model.eval())
    averages = training.evaluated().eval()
    for parameter in averages.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    assert training.stage.validate(training.stage.model) == before
    assert training.stage.validate(averages)["rollout_1"] > before["rollout_1"]


def test_systems_have_about_the_same_parameters() -> None:
    built = [system(name, TransformerConfig()).predictor.build(4, 128, 4, 10) for name in SystemsBenchmark().systems]
    built.append(system("dino-wm", TransformerConfig()).predictor.build(64, 64, 4, 10))
    counts = [sum(p.numel() for p in predictor.parameters()) for predictor in built]
    assert max(counts) < 1.1 * min(counts)


def test_ablations_differ_from_c_jepa_in_what_they_are_named_for() -> None:
    full = system("c-jepa-2", SMALL)
    assert full == System(PredictorConfig(**asdict(SMALL)), MaskConfig(count=2, kind="object"))
    for kind in ("token", "tube", "fixed"):
        assert system(f"c-jepa-2-{kind}", SMALL) == replace(full, mask=MaskConfig(count=2, kind=kind))
    concatenated = system("c-jepa-2-concat", SMALL)
    assert concatenated == replace(full, predictor=replace(full.predictor, auxiliary="concat"))
    assert [s.predictor.build(4, 128, 4, 10).frame_tokens for s in (full, concatenated)] == [6, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"systems": ("lstm",)}, r"'lstm'; expected some of \['c-jepa-<objects hidden>', 'oc-jepa'"),
        ({"systems": ("c-jepa-0",)}, "c-jepa-0"),
        ({"systems": ("c-jepa-1-slot",)}, "c-jepa-1-slot.*-token, -tube, -fixed"),
        ({"systems": ("oc-jepa-concat",)}, "oc-jepa-concat"),
        ({"training_seeds": ()}, "must not be empty"),
        ({"rules": ("loose",)}, "loose"),
        ({"episodes": 0}, "episodes must be at least 1"),
    ],
)
def test_bad_benchmarks_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SystemsBenchmark(**change)  # type: ignore[arg-type]


def train(data: Path, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, "-m", "cjepa_agent.train", f"data={data / 'data.h5'}", f"slots={data / 'slots'}", f"out={out}",
        "trainer.steps=2", "trainer.batch=4", "dynamics.windows=8", "dynamics.rollout_from=0", *arguments,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})


def test_the_training_command_takes_every_system_by_name(data: Path, tmp_path: Path) -> None:
    """Muon, mixed precision and moving averages are the command's defaults."""
    done = train(data, tmp_path, "predictor=slotformer_paper", "predictor.width=32", "predictor.mlp=32")
    assert done.returncode == 0, done.stderr[-2000:]
    expected = replace(preset(SlotFormerConfig, "predictor", "slotformer_paper"), width=32, mlp=32)
    assert Checkpoint.from_pretrained(tmp_path / "checkpoint").model.config.predictor == expected
    refused = train(data, tmp_path / "refused", "predictor=ocvp", "predictor.auxiliary=tokens")
    assert refused.returncode != 0 and "auxiliary" in refused.stderr
