"""The released predictor against a plain reimplementation of the authors' description."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cjepa_agent.encoders.given_slots import GivenSlotsConfig
from cjepa_agent.encoders.videosaur import VideoSAURConfig
from cjepa_agent.latent import Latent
from cjepa_agent.predictors.cjepa import PredictorConfig
from cjepa_agent.predictors.losses import LossSettings
from cjepa_agent.predictors.masking import MaskConfig, sample_mask
from cjepa_agent.predictors.released import ReleasedPredictor, ReleasedPredictorConfig
from cjepa_agent.training.ctt import CTTConfig
from cjepa_agent.training.predictor_stage import DynamicsLoss, DynamicsTrainingConfig
from cjepa_agent.world_model import WorldModel, WorldModelConfig

WIDTH, HEADS = 32, 4
State = dict[str, Tensor]


def attention(x: Tensor, state: State, prefix: str) -> Tensor:
    """Softmax attention, head by head, of x (L, WIDTH)."""
    query, key, value = (x @ state[prefix + "in_proj_weight"].T + state[prefix + "in_proj_bias"]).split(WIDTH, dim=-1)
    size, heads = WIDTH // HEADS, []
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        weights = torch.softmax(query[:, part] @ key[:, part].T / size**0.5, dim=-1)
        heads.append(weights @ value[:, part])
    return torch.cat(heads, dim=-1) @ state[prefix + "out_proj.weight"].T + state[prefix + "out_proj.bias"]


def transform(cells: Tensor, state: State, depth: int) -> Tensor:
    """Cells (T, N, WIDTH) through the transformer and the output map."""
    x = cells.reshape(-1, WIDTH)
    for layer in range(depth):
        prefix = f"transformer.layers.{layer}."
        x = x + attention(x, state, f"{prefix}0.")
        h = F.layer_norm(x, (WIDTH,), state[f"{prefix}1.0.weight"], state[f"{prefix}1.0.bias"])
        h = F.gelu(h @ state[f"{prefix}1.1.weight"].T + state[f"{prefix}1.1.bias"])
        x = x + h @ state[f"{prefix}1.4.weight"].T + state[f"{prefix}1.4.bias"]
    x = F.layer_norm(x, (WIDTH,), state["transformer.norm.weight"], state["transformer.norm.bias"])
    return (x @ state["to_out.weight"].T + state["to_out.bias"]).view_as(cells)


def authors_forward(x: Tensor, state: State, depth: int, total: int, masked: list[int]) -> Tensor:
    """x (T, N, WIDTH): every cell is a query but the first frame and the history of nodes that are not masked."""
    time, history = state["time_pos_embed"][0, :, 0], len(x)
    anchor = x[0] @ state["id_projector.weight"].T + state["id_projector.bias"]
    cells = torch.empty(total, x.shape[1], WIDTH)
    for t in range(total):
        for node in range(x.shape[1]):
            seen = t == 0 or (t < history and node not in masked)
            cells[t, node] = (x[t, node] if seen else state["mask_token"][0, 0] + anchor[node]) + time[t]
    return transform(cells, state, depth)


def authors_inference(x: Tensor, state: State, depth: int, future: int) -> Tensor:
    """x (T, N, WIDTH): all of it is seen, at the last rows of the time embedding."""
    time, history = state["time_pos_embed"][0, :, 0], len(x)
    rows = time[len(time) - history - future :]
    anchor = x[0] @ state["id_projector.weight"].T + state["id_projector.bias"]
    query = state["mask_token"][0, 0] + anchor
    cells = [x[t] + rows[t] for t in range(history)] + [query + rows[history + f] for f in range(future)]
    return transform(torch.stack(cells), state, depth)[history:]


PUSHT = (ReleasedPredictorConfig(depth=2, width=WIDTH, heads=HEADS, mlp=48, matching=False), 4, 4, 10)
CLEVRER = (
    ReleasedPredictorConfig(depth=2, width=WIDTH, heads=HEADS, mlp=48, history=6, future=10, matching=False),
    7,
    0,
    0,
)


def build(case: tuple[ReleasedPredictorConfig, int, int, int]) -> tuple[ReleasedPredictor, State]:
    config, n_slots, proprio_dim, action_dim = case
    torch.manual_seed(0)
    predictor = config.build(n_slots, WIDTH, proprio_dim, action_dim).eval()
    for parameter in predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return predictor, {name: value.detach() for name, value in predictor.state_dict().items()}


def history(case: tuple[ReleasedPredictorConfig, int, int, int], frames: int, batch: int = 3) -> tuple[Latent, Tensor]:
    """Normalised slots and proprioception, and normalised action blocks."""
    _, n_slots, proprio_dim, action_dim = case
    generator = torch.Generator().manual_seed(1)
    slots = torch.randn(batch, frames, n_slots, WIDTH, generator=generator)
    return (
        Latent(slots, torch.randn(batch, frames, proprio_dim, generator=generator)),
        torch.randn(batch, frames, action_dim, generator=generator),
    )


def tokens(predictor: ReleasedPredictor, state: State, latent: Latent, actions: Tensor, index: int) -> Tensor:
    """The (T, N, WIDTH) input as the authors concatenate it: slots, proprioception, action."""
    if not predictor.nodes:
        return latent.slots[index]
    nodes = [
        values[index] @ state[f"{name}_encoder.weight"].T + state[f"{name}_encoder.bias"]
        for name, values in (("proprio", latent.proprio), ("action", actions))
    ]
    return torch.cat([latent.slots[index], torch.stack(nodes, dim=1)], dim=1)


@torch.no_grad()
@pytest.mark.parametrize(("case", "masked"), [(PUSHT, 2), (PUSHT, 0), (CLEVRER, 4)], ids=["4+2", "unmasked", "7"])
def test_forward(case: tuple, masked: int) -> None:
    predictor, state = build(case)
    latent, actions = history(case, case[0].history)
    mask = MaskConfig(count=masked, kind="fixed")
    hidden = sample_mask(mask, 3, case[0].history, case[1], torch.Generator())
    predicted = predictor(predictor.embed(latent), actions, hidden, future=case[0].future)
    slots = hidden[0, 1].nonzero().flatten().tolist()
    for index in range(3):
        x = tokens(predictor, state, latent, actions, index)
        expected = authors_forward(x, state, 2, case[0].history + case[0].future, slots)
        torch.testing.assert_close(predicted.slots[index], expected[:, : case[1]], atol=1e-5, rtol=0)
        if predictor.nodes:
            torch.testing.assert_close(predicted.proprio[index], expected[:, case[1]], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("case", "masked"), [(PUSHT, 2), (PUSHT, 0), (CLEVRER, 4)], ids=["4+2", "unmasked", "7"])
def test_training_minimises_the_authors_loss(case: tuple, masked: int) -> None:
    """Their three mean squared errors, from raw slots and normalised numbers on, and their gradients."""
    config, n_slots, proprio_dim, action_dim = case
    torch.manual_seed(0)
    block = 5 if action_dim else 2
    whole = WorldModelConfig(GivenSlotsConfig(n_slots, WIDTH), config, proprio_dim, action_dim // block, block)
    model = WorldModel(whole).eval()
    for parameter in model.predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    frames, past = config.history + config.future, config.history
    latent, actions = history(case, frames)
    hidden = sample_mask(MaskConfig(count=masked, kind="fixed"), 3, past, n_slots, torch.Generator())
    whole_loss = DynamicsLoss(model, MaskConfig(), DynamicsTrainingConfig(), CTTConfig())
    loss = whole_loss((latent, actions[:, :-1]), hidden, None, None, None, None)["total"]
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.predictor.named_parameters()}

    state = {name: value.detach().requires_grad_() for name, value in model.predictor.state_dict().items()}
    slots = hidden[0, 1].nonzero().flatten().tolist()
    cells = torch.stack([tokens(model.predictor, state, latent, actions, index) for index in range(3)])
    predicted = torch.stack([authors_forward(x[:past], state, 2, frames, slots) for x in cells])
    expected = F.mse_loss(predicted[:, past:, :n_slots], cells[:, past:, :n_slots].detach())
    if slots:
        expected = expected + F.mse_loss(predicted[:, :past, slots], cells[:, :past, slots].detach())
    if proprio_dim:
        expected = expected + F.mse_loss(predicted[:, past:, n_slots], cells[:, past:, n_slots].detach())
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, state[name].grad, atol=1e-4, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "first"), [("object", 1), ("fixed", 1), ("tube", 0)])
def test_nothing_tells_of_what_is_hidden(kind: str, first: int) -> None:
    predictor, _ = build(CLEVRER)
    latent, actions = history(CLEVRER, 6)
    hidden = sample_mask(MaskConfig(count=2, kind=kind), 3, 6, 7, torch.Generator().manual_seed(0))
    assert hidden[:, first:].any() and not hidden[:, :first].any()
    other = latent._replace(slots=torch.where(hidden.unsqueeze(-1), 50.0, latent.slots))
    one, two = (predictor(given, actions, hidden, future=10).slots for given in (latent, other))
    assert torch.equal(one, two)


def test_what_is_shown_of_an_object_is_not_recovered() -> None:
    """Single cells are hidden of an object, whose future counts like that of others."""
    predictor, _ = build(CLEVRER)
    hidden = torch.zeros(1, 3, 2, dtype=torch.bool)
    hidden[0, 1, 1] = True
    target = Latent(torch.zeros(1, 4, 2, WIDTH), torch.zeros(1, 4, 0))
    wrong = torch.zeros(1, 4, 2, WIDTH)
    wrong[0, 2, 1], wrong[0, 3, 1] = 5.0, 1.0
    terms = predictor.loss(Latent(wrong, target.proprio), target, hidden, LossSettings(hidden_future_weight=0.0))
    assert terms.history == 0 and terms.future == 0.5


@torch.no_grad()
@pytest.mark.parametrize(("case", "frames"), [(PUSHT, 1), (PUSHT, 2), (PUSHT, 3), (CLEVRER, 6)])
def test_inference(case: tuple, frames: int) -> None:
    predictor, state = build(case)
    latent, actions = history(case, frames)
    predicted = predictor(predictor.embed(latent), actions, future=case[0].future)
    for index in range(3):
        x = tokens(predictor, state, latent, actions, index)
        expected = authors_inference(x, state, 2, case[0].future)
        torch.testing.assert_close(predicted.slots[index], expected[:, : case[1]], atol=1e-5, rtol=0)
        if predictor.nodes:
            torch.testing.assert_close(predicted.proprio[index], expected[:, case[1]], atol=1e-5, rtol=0)


@torch.no_grad()
def test_rollout_grows_the_history_and_keeps_slots_in_order() -> None:
    """The authors' loop, one candidate at a time: predict, reorder to the last frame, put in the next action."""
    released = ReleasedPredictorConfig(depth=2, width=WIDTH, heads=HEADS, mlp=48)
    encoder = VideoSAURConfig(slot_dim=WIDTH, image_size=28, width=8, depth=1, heads=2, positions=2, decoder_width=8)
    torch.manual_seed(0)
    model = WorldModel(WorldModelConfig(encoder, released)).eval()
    for parameter in model.predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state, generator = model.predictor.state_dict(), torch.Generator().manual_seed(2)
    slots, proprio = torch.randn(1, 4, WIDTH, generator=generator), torch.randn(1, 4, generator=generator)
    actions = torch.randn(1, 3, 5, 10, generator=generator)
    start = model.latent(slots, proprio)
    path = model.rollout(Latent(start.slots[:, None], start.proprio[:, None]), actions[:, 0, :0], actions)

    for candidate in range(3):

        def node(block: int, candidate: int = candidate) -> Tensor:
            return actions[0, candidate, block] @ state["action_encoder.weight"].T + state["action_encoder.bias"]

        frames = torch.cat([start.slots[0], start.proprio, node(0)[None]])[None]
        for block in range(5):
            predicted = authors_inference(frames[-3:], state, 2, 1)[0]
            costs = torch.cdist(predicted[:4], frames[-1, :4])
            best = min(torch.cartesian_prod(*[torch.arange(4)] * 4).tolist(), key=lambda order: (
                len(set(order)) < 4, sum(float(costs[row, column]) ** 2 for column, row in enumerate(order))
            ))  # fmt: skip
            predicted = torch.cat([predicted[best], predicted[4:]])
            torch.testing.assert_close(path.slots[0, candidate, block], predicted[:4], atol=1e-4, rtol=0)
            torch.testing.assert_close(path.proprio[0, candidate, block], predicted[4], atol=1e-4, rtol=0)
            predicted[5] = node(min(block + 1, 4))
            frames = torch.cat([frames, predicted[None]])


@pytest.mark.parametrize(
    ("slots", "count", "hidden"), [(4, 1, [1]), (4, 2, [1, 3]), (7, 1, [0]), (7, 2, [0, 1]), (7, 4, [0, 1, 2, 5])]
)
def test_fixed_masks_are_those_of_the_released_code(slots: int, count: int, hidden: list[int]) -> None:
    mask = sample_mask(MaskConfig(count=count, kind="fixed"), 2, 3, slots, torch.Generator())
    assert mask[:, 1].nonzero()[:, 1].tolist() == hidden * 2 and not mask[:, 0].any()


def test_refuses_what_does_not_fit() -> None:
    predictor, _ = build(PUSHT)
    latent, actions = history(PUSHT, 3)
    state = predictor.embed(latent)
    with pytest.raises(ValueError, match="need 3 action blocks, got 2"):
        predictor(state, actions[:, :2])
    with pytest.raises(ValueError, match=r"4 frames; this predictor takes 1\.\.3"):
        predictor(*[Latent(torch.zeros(1, 4, 4, WIDTH), torch.zeros(1, 4, WIDTH)), torch.zeros(1, 4, 10)])
    with pytest.raises(ValueError, match="3 slots, the predictor 4"):
        predictor(Latent(state.slots[:, :, :3], state.proprio), actions)
    with pytest.raises(ValueError, match="slots of 16 do not fit width 32; set predictor.width=16"):
        PUSHT[0].build(4, 16, 4, 10)
    with pytest.raises(ValueError, match="both nodes or none"):
        PUSHT[0].build(4, WIDTH, 0, 10)


def test_the_configuration_survives_json() -> None:
    config = WorldModelConfig(VideoSAURConfig(), ReleasedPredictorConfig())
    from dataclasses import asdict

    assert WorldModelConfig.from_dict(asdict(config)) == config
    assert WorldModelConfig.from_dict(asdict(WorldModelConfig())).predictor == PredictorConfig()
