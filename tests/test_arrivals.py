"""Objects that enter a video, which nobody can foretell, are no errors of a predictor; all else is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cjepa_agent.encoders.kinds import EncoderConfig
from cjepa_agent.latent import Latent
from cjepa_agent.predictors.cjepa import PredictorConfig
from cjepa_agent.predictors.kinds import AnyPredictorConfig
from cjepa_agent.predictors.masking import MaskConfig
from cjepa_agent.predictors.oc_dino_wm import OCDINOWMConfig
from cjepa_agent.predictors.slotformer import SlotFormerConfig
from cjepa_agent.training.ctt import CTTConfig
from cjepa_agent.training.predictor_stage import DynamicsLoss, DynamicsTrainingConfig, arrivals, excused
from cjepa_agent.world_model import WorldModel, WorldModelConfig

B, T, S, D = 2, 3, 7, 128
SIZES = {"depth": 2, "width": 32, "heads": 2, "mlp": 32, "history": T}
CJEPA = PredictorConfig(future=4, **SIZES)
NOTHING_HIDDEN = torch.zeros(B, T, S, dtype=torch.bool)


def random_model(predictor: AnyPredictorConfig) -> WorldModel:
    torch.manual_seed(0)
    encoder = EncoderConfig(kind="clevrer_state", n_slots=S)
    model = WorldModel(WorldModelConfig(encoder, predictor, proprio_dim=0, env_action_dim=0, action_block=2))
    for parameter in model.predictor.parameters():  # the output heads start at zero, which would hide every dependence
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def window(frames: int, filled: dict[int, float]) -> Tensor:
    """Slots (B, frames, S, D) of which slot 3 is empty but in some frames."""
    slots = torch.randn(B, frames, S, D, generator=torch.Generator().manual_seed(1))
    slots[:, :, 3] = 0.0
    for frame, value in filled.items():
        slots[:, frame, 3] = value
    return slots


def terms(
    slots: Tensor,
    predictor: AnyPredictorConfig = CJEPA,
    hidden: Tensor = NOTHING_HIDDEN,
    model: WorldModel | None = None,
    ctt: CTTConfig | None = None,
) -> dict[str, Tensor]:
    model, frames = model or random_model(predictor), slots.shape[1]
    whole = DynamicsLoss(model, MaskConfig(), DynamicsTrainingConfig(), ctt or CTTConfig())
    state, actions = Latent(slots, torch.zeros(B, frames, 0)), torch.zeros(B, frames - 1, 0)
    choice = torch.rand(B, 2, S, generator=torch.Generator().manual_seed(2)) if ctt else None
    found: dict[str, Tensor] = whole((state, actions), hidden, None, choice, None, None)
    return found


def test_what_enters_is_no_error() -> None:
    def loss(shown: float, arriving: float) -> Tensor:
        return terms(window(7, {2: shown} | dict.fromkeys(range(3, 7), arriving)))["future"]

    assert torch.equal(loss(0.0, 1.0), loss(0.0, 5.0))
    assert not torch.allclose(loss(0.1, 1.0), loss(0.1, 5.0))


def test_a_causal_predictor_is_excused_where_it_had_not_seen_the_object_yet() -> None:
    """It learns from all frames: one that enters in frame 2 is an error from frame 3 on, where it is foreseeable."""
    causal = OCDINOWMConfig(**SIZES)
    model, slots = random_model(causal), window(T + 1, {2: 1.0, 3: 2.0})
    predicted = model.predictor(Latent(slots[:, :T], torch.zeros(B, T, 0)), torch.zeros(B, T, 0), NOTHING_HIDDEN).slots
    error = (predicted - slots[:, 1:]).square().mean(-1)
    error[:, 1, 3] = 0.0
    assert torch.allclose(terms(slots, model=model)["future"], error.mean())


def test_a_predictor_without_masks_is_not_excused_for_what_masks_hide() -> None:
    hidden = NOTHING_HIDDEN.clone()
    hidden[:, 1:, 3] = True

    def future(predictor: AnyPredictorConfig, later: float) -> Tensor:
        frames = T + (4 if isinstance(predictor, PredictorConfig) else 1)
        return terms(window(frames, {1: 1.0, 2: 1.0} | dict.fromkeys(range(T, frames), later)), predictor, hidden)[
            "future"
        ]

    assert torch.equal(future(CJEPA, 1.0), future(CJEPA, 5.0))
    plain = SlotFormerConfig(**SIZES)
    assert not torch.allclose(future(plain, 1.0), future(plain, 5.0))


def test_terms_of_ctt_do_not_depend_on_what_enters() -> None:
    both = CTTConfig(sufficiency_weight=1.0, invariance_weight=1.0)
    one, other = (terms(window(7, dict.fromkeys(range(3, 7), value)), ctt=both) for value in (1.0, 5.0))
    seen = terms(window(7, dict.fromkeys(range(7), 5.0)), ctt=both)
    for name in ("sufficiency", "invariance"):
        assert torch.equal(one[name], other[name]) and one[name] > 0
        assert not torch.equal(seen[name], one[name])


def test_what_stays_empty_must_be_predicted_empty() -> None:
    model, slots = random_model(CJEPA), window(7, {})
    losses = []
    for ghost in (0.0, 1.0):
        with torch.no_grad():
            model.predictor.head_slot.bias += ghost
        losses.append(terms(slots, model=model)["future"])
    assert not arrivals(slots, NOTHING_HIDDEN, 7).any() and losses[1] > losses[0]


@pytest.mark.parametrize("predicted", [4, 7])  # without and with the history
def test_against_a_loop_over_slots(predicted: int) -> None:
    generator = torch.Generator().manual_seed(0)
    slots = torch.randn(6, 7, 5, 8, generator=generator)
    slots[torch.rand(6, 7, 5, generator=generator) < 0.6] = 0.0
    hidden = torch.rand(6, 3, 5, generator=generator) < 0.4
    prediction, target = (Latent(torch.randn(6, n, 5, 8), torch.zeros(6, n, 0)) for n in (predicted, 7))
    made = excused(prediction, target, arrivals(slots, hidden, predicted)).slots
    cases = set()
    for video, place in np.ndindex(6, 5):
        visible = [frame for frame in range(3) if not hidden[video, frame, place]]
        unseen = bool(visible) and all(not slots[video, frame, place].any() for frame in visible)
        for frame in range(predicted):
            there = bool(slots[video, 7 - predicted + frame, place].any())
            source = target.slots[:, 7 - predicted :] if unseen and there else prediction.slots
            assert torch.equal(made[video, frame, place], source[video, frame, place])
            cases.add((bool(visible), unseen, there))
    assert len(cases) == 6
