"""The systems that C-JEPA is compared with: what their attention may see, parity, selection, training, planning."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import CONFIG, SETTINGS, tiny_checkpoint
from torch import Tensor

from cjepa_agent.agent import CJEPAAgent
from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.latent import Latent
from cjepa_agent.predictors.autoregressive import AutoregressivePredictor
from cjepa_agent.predictors.cjepa import PredictorConfig
from cjepa_agent.predictors.kinds import AnyPredictorConfig
from cjepa_agent.predictors.losses import LossSettings, forecast_loss
from cjepa_agent.predictors.oc_dino_wm import OCDINOWMConfig
from cjepa_agent.predictors.ocvp import OCVPConfig
from cjepa_agent.predictors.slotformer import SlotFormerConfig
from cjepa_agent.world_model import WorldModel, WorldModelConfig
from configs.presets import preset

S, D, P, A = 4, 16, 3, 6
SIZES = {"depth": 2, "width": 32, "heads": 2, "mlp": 48, "history": 4}
OC_DINO_WM, SLOTFORMER, OCVP = OCDINOWMConfig(**SIZES), SlotFormerConfig(**SIZES), OCVPConfig(**SIZES)
SYSTEMS = [OC_DINO_WM, SLOTFORMER, OCVP]
EQUIVARIANT = [SLOTFORMER, OCVP]
NOTHING_HIDDEN = torch.zeros(1, 1, 1, dtype=torch.bool)
State = dict[str, Tensor]

by_kind = pytest.mark.parametrize("config", SYSTEMS, ids=lambda config: config.kind)


def build(config: AnyPredictorConfig) -> AutoregressivePredictor:
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
def test_permuted_slots_give_permuted_predictions(config: AnyPredictorConfig, frames: int) -> None:
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
@pytest.mark.parametrize("head_dim", [None, 5])
def test_parity_of_oc_dino_wm(head_dim: int | None) -> None:
    """Against a loop over heads and tokens, every token looking at those of its own and of earlier frames."""
    predictor, (past, actions) = build(replace(OC_DINO_WM, head_dim=head_dim, residual=False)), history()
    state, heads, size = predictor.state_dict(), 2, head_dim or 16
    found = predictor(past, actions, NOTHING_HIDDEN).slots
    for index in range(2):
        cells = [
            linear(
                torch.cat([past.slots[index, t, s], past.proprio[index, t], actions[index, t]]), state, "embed_token"
            )
            + state["position"][t, s]
            for t in range(4)
            for s in range(S)
        ]
        x = torch.stack(cells)
        for layer in range(2):
            name = f"blocks.{layer}"
            projected = norm(x, state, f"{name}.norm_attention") @ state[f"{name}.query_key_value.weight"].T
            query, key, value = projected.view(-1, 3, heads, size).unbind(1)
            rows = []
            for token in range(len(x)):
                visible = slice(0, (token // S + 1) * S)
                mixed = []
                for head in range(heads):
                    weights = (key[visible, head] @ query[token, head] / math.sqrt(size)).softmax(0)
                    mixed.append(weights @ value[visible, head])
                rows.append(torch.cat(mixed))
            x = x + linear(torch.stack(rows), state, f"{name}.out")
            inner = torch.nn.functional.gelu(linear(norm(x, state, f"{name}.norm_mlp"), state, f"{name}.mlp.0"))
            x = x + linear(inner, state, f"{name}.mlp.3")
        slots = linear(norm(x, state, "norm"), state, "head_slot").view(4, S, D)
        torch.testing.assert_close(found[index], slots, rtol=1e-4, atol=1e-4)


def test_heads_of_dino_wm_are_64_wide_whatever_the_width() -> None:
    """16 of them, as published; a transformer whose heads share the width would have 24 of DINOv2's 384 for each."""
    config = replace(preset(OCDINOWMConfig, "predictor", "oc_dino_wm_paper"), width=384)
    blocks = config.build(n_slots=196, slot_dim=384, proprio_dim=4, action_dim=10).blocks
    attention, mlp, norms = 384 * 3 * 1024 + 1024 * 384 + 384, 2 * 384 * 2048 + 2048 + 384, 4 * 384
    assert sum(p.numel() for p in blocks.parameters()) == 6 * (attention + mlp + norms)
    with pytest.raises(ValueError, match="head_dim must be positive"):
        replace(config, head_dim=0)


@torch.no_grad()
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("frames", [1, 2, 4])
@pytest.mark.parametrize(
    ("config", "reference"), [(SLOTFORMER, slotformer), (OCVP, ocvp_seq)], ids=["slotformer", "ocvp"]
)
def test_parity(config: AnyPredictorConfig, reference, frames: int, residual: bool) -> None:
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
def test_predictions_depend_on_actions_and_proprioception(config: AnyPredictorConfig) -> None:
    predictor, (past, actions) = build(config), history()
    inputs = [past.slots.requires_grad_(), past.proprio.requires_grad_(), actions.requires_grad_()]
    slots = predictor(past, actions).slots - (past.slots[:, -1:] if config.residual else 0)
    for gradient in torch.autograd.grad(slots.square().sum(), inputs):
        assert (gradient.flatten(2).abs().amax(-1) > 1e-6).all(), "every frame counts"


@by_kind
def test_new_predictors_with_a_residual_copy_the_last_frame(config: AnyPredictorConfig) -> None:
    past, actions = history()
    predicted = config.build(S, D, P, A).eval()(past, actions)
    assert torch.equal(predicted.slots, past.slots[:, -1:]) and torch.equal(predicted.proprio, past.proprio[:, -1:])


@by_kind
def test_without_proprioception_nothing_is_left_unlearned(config: AnyPredictorConfig) -> None:
    predictor = config.build(S, D, 0, 0)
    past, actions = history()
    past, actions = Latent(past.slots, past.proprio[..., :0]), actions[..., :0]
    predicted = predictor(past, actions, torch.zeros(past.slots.shape[:3], dtype=torch.bool))
    assert predicted.proprio.shape[-1] == 0 and torch.isfinite(predicted.slots).all()
    (predicted.slots.sum() + predicted.proprio.sum()).backward()
    assert all(parameter.numel() for parameter in predictor.parameters())
    assert {name for name, parameter in predictor.named_parameters() if parameter.grad is None} <= {"mask_slot"}


@by_kind
def test_refuses_what_does_not_fit(config: AnyPredictorConfig) -> None:
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
def test_slots_are_left_out_only_where_they_have_no_order(config: AnyPredictorConfig) -> None:
    predictor, (past, actions) = build(config), history()
    fewer = Latent(past.slots[:, :, :3], past.proprio)
    if predictor.orderless:
        assert predictor(fewer, actions).slots.shape[2] == 3
    else:
        with pytest.raises(ValueError, match="3 slots, the predictor 4"):
            predictor(fewer, actions)


@pytest.mark.parametrize("config", EQUIVARIANT, ids=lambda config: config.kind)
def test_odd_widths_are_refused(config: AnyPredictorConfig) -> None:
    with pytest.raises(ValueError, match="width must be even"):
        build(replace(config, width=33, heads=3))


def test_forecast_loss_is_over_the_frames_that_are_predicted() -> None:
    target, _ = history(4)
    for frames in (1, 3):
        last = target.select((slice(None), slice(-frames, None)))
        terms = forecast_loss(Latent(last.slots + 2.0, last.proprio + 3.0), target, LossSettings(proprio_weight=0.5))
        assert terms.future.item() == pytest.approx(4.0) and terms.proprio.item() == pytest.approx(9.0)
        assert terms.total.item() == pytest.approx(4 + 4.5) and terms.history == 0


def world_model(config: AnyPredictorConfig) -> WorldModel:
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
def test_rollouts_are_the_same_alone_and_in_a_batch(config: AnyPredictorConfig, frames: int) -> None:
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


def beginning(config: AnyPredictorConfig, candidates: int, blocks: int) -> tuple[WorldModel, Latent, Tensor]:
    """A world model, the latent that a plan starts from, and candidate actions."""
    model, generator = world_model(config), torch.Generator().manual_seed(0)
    start = model.latent(torch.randn(1, 1, 3, 20, generator=generator), torch.randn(1, 1, 4, generator=generator))
    return model, start, torch.randn(1, candidates, blocks, 10, generator=generator)


@torch.no_grad()
@by_kind
def test_a_rollout_predicts_from_its_own_last_frames(config: AnyPredictorConfig) -> None:
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
def test_plans_in_reduced_precision(config: AnyPredictorConfig) -> None:
    model, start, actions = beginning(config, candidates=4, blocks=3)
    exact = model.rollout(start, actions[:, 0, :0], actions).slots
    with torch.autocast("cpu", torch.bfloat16):
        reduced = model.rollout(start, actions[:, 0, :0], actions).slots
    assert reduced.dtype == torch.float32 and (reduced - exact).norm() < 0.05 * exact.norm()


@by_kind
def test_checkpoint_round_trip(config: AnyPredictorConfig, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("name", BEFORE)
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
def test_configurations_survive_json(config: AnyPredictorConfig) -> None:
    whole = replace(CONFIG, predictor=config)
    assert WorldModelConfig.from_dict(json.loads(json.dumps(asdict(whole)))) == whole
    values = asdict(whole)
    values["predictor"]["auxiliary"] = "tokens"
    with pytest.raises(ValueError, match="auxiliary"):
        WorldModelConfig.from_dict(values)


def test_unknown_kinds_are_refused_and_none_is_c_jepa() -> None:
    values = asdict(CONFIG)
    values["predictor"]["kind"] = "lstm"
    known = r"\['cjepa', 'oc_dino_wm', 'slotformer', 'ocvp', 'released'\]"
    with pytest.raises(ValueError, match=f"'lstm'; expected one of {known}"):
        WorldModelConfig.from_dict(values)
    del values["predictor"]["kind"]
    assert WorldModelConfig.from_dict(values) == CONFIG


@pytest.mark.parametrize(
    ("kind", "name"),
    [(OCDINOWMConfig, "oc_dino_wm_paper"), (SlotFormerConfig, "slotformer_paper"), (OCVPConfig, "ocvp_paper")],
)
def test_published_sizes_are_presets(kind: type[AnyPredictorConfig], name: str) -> None:
    assert preset(kind, "predictor", name).dropout == 0.1
