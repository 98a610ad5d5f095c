"""What the probe of Push-T's slots measures, on numbers known by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cjepa_agent.evaluation.probe import best_overlap, errors, targets


def test_errors_are_in_pixels_and_degrees_the_short_way_round() -> None:
    state = torch.tensor([[100.0, 120.0, 300.0, 280.0, 3.1, 0.0, 0.0]]).repeat(3, 1)
    told = targets(state)
    assert errors(told, state) == pytest.approx({"agent px": 0, "block px": 0, "angle deg": 0}, abs=1e-3)
    told[:, :2] += torch.tensor([3.0, 4.0]) / 128
    told[:, 4], told[:, 5] = np.cos(-3.1), np.sin(-3.1)
    expected = {"agent px": 5, "block px": 0, "angle deg": np.degrees(2 * np.pi - 6.2)}
    assert errors(told, state) == pytest.approx(expected, abs=1e-2)


def test_overlap_is_that_of_the_best_slot_of_each_object() -> None:
    truth = np.array([0, 1, 1, 2], np.uint8)
    assert best_overlap(truth, np.array([5, 5, 7, 9])) == pytest.approx((1 / 2 + 1) / 2)
    assert best_overlap(truth, np.array([5, 6, 6, 9])) == 1
