"""Sufficiency and invariance against loops over samples and objects; the published graph and the corrected one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cjepa_agent.latent import Latent
from cjepa_agent.predictors.cjepa import MaskedPredictor, PredictorConfig
from cjepa_agent.predictors.masking import MaskConfig, sample_mask
from cjepa_agent.training.ctt import CTTConfig, attention_graph, ctt_terms
from configs.presets import preset

B, T, F, S, D, P, A = 5, 3, 2, 4, 16, 3, 6
BOTH = CTTConfig(sufficiency_weight=0.1, invariance_weight=0.2)
PUBLISHED = preset(CTTConfig, "ctt", "published")
NOBODY = torch.zeros(B, T + F, S, dtype=torch.bool)  # entered


@pytest.fixture(scope="module")
def predictor() -> MaskedPredictor:
    torch.manual_seed(0)
    predictor = MaskedPredictor(PredictorConfig(depth=2, width=32, mlp=64, history=T, future=F), S, D, P, A).eval()
    for parameter in predictor.parameters():  # the output heads start at zero, which would hide every dependence
        torch.nn.init.normal_(parameter, std=0.2)
    for block in predictor.blocks:  # and attention all but even
        torch.nn.init.normal_(block.query.weight, std=2.0)
        torch.nn.init.normal_(block.key_value.weight, std=1.0)
    return predictor


def batch(count: int = 1) -> tuple[Latent, Tensor, Tensor, Tensor]:
    """Latents, actions, what is hidden and what is chosen."""
    generator = torch.Generator().manual_seed(1)
    slots, proprio = (torch.randn(B, T + F, *shape, generator=generator) for shape in ((S, D), (P,)))
    actions = torch.randn(B, T + F - 1, A, generator=generator)
    hidden = sample_mask(MaskConfig(count), B, T, S, generator)
    return Latent(slots, proprio), actions, hidden, torch.rand(B, 2, S, generator=generator)


def terms(predictor: MaskedPredictor, config: CTTConfig, count: int = 1) -> tuple[Tensor, Tensor]:
    latent, actions, hidden, choice = batch(count)
    prediction = predictor(latent.select((slice(None), slice(0, T))), actions, hidden, F).slots
    return tuple(ctt_terms(predictor, latent, actions, hidden, prediction, NOBODY, choice, config))


def future(predictor: MaskedPredictor, sample: int, objects: list[int]) -> Tensor:
    """Predicted future slots (F, S, D) of one sample of which objects are hidden after the first frame."""
    latent, actions, hidden, _ = batch()
    hide = torch.zeros_like(hidden[:1])
    hide[0, 1:, objects] = True
    history = latent.select((slice(sample, sample + 1), slice(0, T)))
    return predictor(history, actions[sample : sample + 1], hide, F).slots[0, T:]


@torch.no_grad()
@pytest.mark.parametrize("config", [BOTH, replace(BOTH, threshold=0.15), replace(PUBLISHED, threshold=0.04)])
def test_terms_are_those_of_a_loop(predictor: MaskedPredictor, config: CTTConfig) -> None:
    latent, actions, hidden, choice = batch()
    weights = predictor.attention(latent.select((slice(None), slice(0, T))), actions, hidden, F)[:, -1].mean(1)[:, 0]
    looked = (weights / (T + F)).mean(0).repeat(B, 1, 1) if config.adjacency == "mean" else weights
    threshold = config.threshold or 1 / S
    sufficiency, invariance, left_out = [], [], 0
    for b in range(B):
        row = looked[b] if config.adjacency == "mean" else looked[b] / looked[b].sum(-1, keepdim=True)
        masked = [j for j in range(S) if hidden[b, 1, j]]
        visible = [j for j in range(S) if j not in masked]
        removed = max(visible, key=lambda j: float(choice[b, 0, j]))
        target = max(range(S), key=lambda j: float(choice[b, 1, j]))
        without, before = future(predictor, b, [*masked, removed]), future(predictor, b, masked)
        others = [j for j in visible if j != removed and row[j, removed] < threshold]
        differences = [float((without[:, j] - before[:, j]).square().mean()) for j in others]
        invariance.append(sum(differences) / max(1, len(differences)))
        unneeded = [j for j in range(S) if j != target and row[target, j] < threshold]
        alone = future(predictor, b, unneeded)[:, target]
        truth = latent.slots[b, T:, target]
        sufficiency.append(float((alone - truth).square().mean()) if unneeded else 0.0)
        left_out += len(others) + len(unneeded)
    assert 5 <= left_out < B * (2 * S - 3) - 5, "the threshold must part objects for this to test anything"
    found = terms(predictor, config)
    assert found[0].item() == pytest.approx(sum(sufficiency) / B, rel=1e-4)
    assert found[1].item() == pytest.approx(sum(invariance) / B, rel=1e-4)


@torch.no_grad()
def test_the_published_graph_has_no_edges_with_6_and_10_frames_and_the_corrected_one_has() -> None:
    torch.manual_seed(0)
    predictor = MaskedPredictor(PredictorConfig(depth=2, width=32, mlp=64, history=6, future=10), 7, D, 0, 0).eval()
    for parameter in predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    weights = predictor.attention(
        Latent(torch.randn(3, 6, 7, D), torch.zeros(3, 6, 0)), torch.zeros(3, 15, 0), None, 10
    )
    assert not attention_graph(weights, 16, PUBLISHED).any()
    corrected = attention_graph(weights, 16, preset(CTTConfig, "ctt", "corrected"))
    assert corrected.any(-1).all() and not corrected.all(-1).any()
    # What it takes with 3 + 1 frames: 60 % of all attention.
    for share, seen in ((0.59, False), (0.61, True)):
        lopsided = torch.full((1, 1, 1, 1, 7, 7), (1 - share) / 6)
        lopsided[..., 2] = share
        assert attention_graph(lopsided, 4, PUBLISHED)[0, :, 2].eq(seen).all()


@torch.no_grad()
def test_nobody_is_left_out_where_everybody_looks_at_everybody(predictor: MaskedPredictor) -> None:
    assert terms(predictor, replace(BOTH, threshold=0.0)) == (0, 0)


@torch.no_grad()
def test_invariance_is_none_where_nobody_is_visible(predictor: MaskedPredictor) -> None:
    sufficiency, invariance = terms(predictor, replace(BOTH, threshold=1.0), count=S)
    assert sufficiency > 0 and invariance == 0


def test_terms_without_a_weight_are_not_computed(predictor: MaskedPredictor) -> None:
    calls: list[None] = []
    handle = predictor.register_forward_hook(lambda *_: calls.append(None))
    for config, expected in ((BOTH, 3), (replace(BOTH, invariance_weight=0.0), 2)):
        calls.clear()
        sufficiency, invariance = terms(predictor, config)
        assert len(calls) == expected and sufficiency > 0 and (invariance > 0) == (expected == 3)
    handle.remove()


def test_the_clean_prediction_is_a_target_that_does_not_move(predictor: MaskedPredictor) -> None:
    latent, actions, hidden, choice = batch()
    prediction = torch.randn(B, T + F, S, D, requires_grad=True)
    _, invariance = ctt_terms(predictor, latent, actions, hidden, prediction, NOBODY, choice, BOTH)
    invariance.backward()
    assert prediction.grad is None and predictor.embed_slot.weight.grad is not None
    predictor.zero_grad()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sufficiency_weight": -1.0}, "must be 0 or more"),
        ({"adjacency": "max"}, "must be sum or mean, got 'max'"),
        ({"threshold": 2.0}, r"ctt\.threshold"),
        ({"start": 10.0}, r"ctt\.start is a share"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CTTConfig(**change)  # type: ignore[arg-type]
