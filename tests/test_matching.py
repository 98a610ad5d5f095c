"""Slot matching against scipy's exact solver."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from cjepa_agent.matching import ENUMERATED, LARGEST, best_assignment, match_slots, pairwise_errors


def total(costs: Tensor, rows: Tensor) -> Tensor:
    return costs.take_along_dim(rows.unsqueeze(-2), dim=-2).sum((-1, -2))


def scipy_total(costs: Tensor) -> Tensor:
    flat = costs.reshape(-1, *costs.shape[-2:]).double().numpy()
    return torch.tensor([matrix[linear_sum_assignment(matrix)].sum() for matrix in flat]).reshape(costs.shape[:-2])


def assert_permutations(rows: Tensor) -> None:
    assert torch.equal(rows.sort(-1).values, torch.arange(rows.shape[-1]).expand_as(rows))


@pytest.mark.parametrize("n_slots", range(1, 9))
def test_random_costs_match_scipy(n_slots: int) -> None:
    costs = torch.rand(40, 5, n_slots, n_slots, generator=torch.Generator().manual_seed(n_slots))
    rows = best_assignment(costs)
    assert rows.shape == (40, 5, n_slots)
    assert rows.dtype == torch.int64
    assert_permutations(rows)
    expected = [linear_sum_assignment(matrix.T)[1] for matrix in costs.flatten(0, 1).numpy()]
    assert np.array_equal(rows.flatten(0, 1).numpy(), np.stack(expected))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 8))
def test_any_costs_reach_scipys_total_also_with_ties(data: st.DataObject, n_slots: int) -> None:
    values = data.draw(st.lists(st.integers(-3, 3), min_size=n_slots**2, max_size=n_slots**2))
    costs = torch.tensor(values, dtype=torch.float32).reshape(n_slots, n_slots)
    rows = best_assignment(costs)
    assert_permutations(rows)
    assert total(costs, rows).item() == scipy_total(costs).item()


@pytest.mark.parametrize("n_slots", [ENUMERATED, ENUMERATED + 1, LARGEST])
def test_shuffled_slots_are_put_back_in_order(n_slots: int) -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(6, n_slots, 16, generator=generator)
    shuffle = torch.stack([torch.randperm(n_slots, generator=generator) for _ in range(6)])
    source = target.take_along_dim(shuffle.unsqueeze(-1), dim=1)
    rows = match_slots(source, target)
    assert torch.equal(source.take_along_dim(rows.unsqueeze(-1), dim=1), target)


def test_matching_is_the_same_alone_and_in_a_batch() -> None:
    for n_slots in (4, 7):
        source, target = torch.randn(2, 9, n_slots, 8, generator=torch.Generator().manual_seed(1))
        together = match_slots(source, target)
        alone = torch.stack([match_slots(source[i], target[i]) for i in range(9)])
        assert torch.equal(together, alone)


def test_target_broadcasts_over_candidates() -> None:
    generator = torch.Generator().manual_seed(2)
    source, target = torch.randn(3, 10, 4, 8, generator=generator), torch.randn(3, 1, 4, 8, generator=generator)
    errors = (source.unsqueeze(-2) - target.unsqueeze(-3)).square().mean(-1)
    torch.testing.assert_close(pairwise_errors(source, target), errors)
    matched = source.take_along_dim(match_slots(source, target).unsqueeze(-1), dim=-2)
    torch.testing.assert_close((matched - target).square().mean(-1).sum(-1).double(), scipy_total(errors))


def test_small_differences_of_large_slots_still_decide() -> None:
    target = 1000 + torch.tensor([[[0.0], [0.01], [0.02]]])
    assert match_slots(target[:, [2, 0, 1]], target).tolist() == [[1, 2, 0]]


def test_slots_with_nan_are_matched_somehow() -> None:
    for n_slots in (4, 7):
        broken = torch.zeros(2, n_slots, 3)
        broken[1, 2, 0] = torch.nan
        assert_permutations(match_slots(broken, torch.zeros(2, n_slots, 3)))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"13 slots; exact matching takes 1 to 12"):
        match_slots(torch.zeros(13, 2), torch.zeros(13, 2))
    with pytest.raises(ValueError, match="0 slots"):
        best_assignment(torch.zeros(3, 0, 0))
    with pytest.raises(ValueError, match="square"):
        best_assignment(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="same number of slots"):
        match_slots(torch.zeros(2, 4, 8), torch.zeros(2, 5, 8))
