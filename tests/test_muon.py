"""Muon in float32: what it makes of a gradient, and that it goes on from PyTorch's and back."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from test_training_loop import CONFIG, Line
from torch import Tensor, nn

from cjepa_agent.training import loop
from cjepa_agent.training.muon import Float32Muon, orthogonalised

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
SHAPES = ((24, 16), (16, 24), (16, 16))
SETTINGS = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}


def matrices() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def steps(optimizer: torch.optim.Optimizer, own: list[nn.Parameter], count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for matrix in own:
            matrix.grad = torch.randn(matrix.shape, generator=generator)
        optimizer.step()


def far(own: list[nn.Parameter], other: list[nn.Parameter], start: list[nn.Parameter]) -> float:
    """Largest difference of two results, as a share of what was changed."""
    pairs = zip(own, other, start, strict=True)
    return max(float(((a - b).norm() / (a - c).norm()).detach()) for a, b, c in pairs)


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = orthogonalised(matrix, COEFFICIENTS, 5, 1e-7)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    within: Tensor = left.T @ found @ right.T
    assert (within - torch.diag(within.diagonal())).abs().max() < 1e-4
    assert within.diagonal().min() > 0.5 and within.diagonal().max() < 1.5


def test_steps_are_those_of_pytorch_within_its_rounding_and_states_are_exchanged() -> None:
    own, other = matrices(), matrices()
    ours, theirs = Float32Muon(own, **SETTINGS), torch.optim.Muon(other, **SETTINGS)
    steps(ours, own, 3, seed=2)
    steps(theirs, other, 3, seed=2)
    assert 0 < far(own, other, matrices()) < 0.03  # bfloat16 keeps 8 bits
    before, after = [nn.Parameter(matrix.detach().clone()) for matrix in own], own
    theirs.load_state_dict(deepcopy(ours.state_dict()))
    for matrix, start in zip(other, own, strict=True):
        matrix.data.copy_(start.detach())
    steps(ours, after, 2, seed=3)
    steps(theirs, other, 2, seed=3)
    assert far(after, other, before) < 0.03
    ours.load_state_dict(theirs.state_dict())
    untouched = [matrix.detach().clone() for matrix in own]
    ours.zero_grad()
    assert ours.step(lambda: 4.0) == 4.0
    assert all(torch.equal(a, b) for a, b in zip(own, untouched, strict=True)), "nothing to learn from"


def test_it_is_taken_where_bfloat16_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, optimizer="muon")
    for has, expected in ((True, torch.optim.Muon), (False, Float32Muon)):
        monkeypatch.setattr(loop, "has_bfloat16", lambda _, has=has: has)
        stage = Line()
        stage.model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
        monkeypatch.setattr(Line, "hidden_matrices", [stage.model[0].weight])
        muon, adamw = loop.make_optimizers(stage, config)
        assert type(muon) is expected and muon.param_groups[0]["lr"] == config.lr
        assert len(adamw.param_groups[0]["params"]) == 3
