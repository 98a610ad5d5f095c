"""The published success rules: thresholds, angles and holding."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.pusht.success import SUCCESS_RULES, SuccessCounter, angle_error, success_rule

GOAL = np.zeros(7)


def below(value: float) -> float:
    return math.nextafter(value, -math.inf)


def shifted(**changes: float) -> np.ndarray:
    names = ("agent_x", "agent_y", "block_x", "block_y", "angle", "vx", "vy")
    return np.array([changes.get(name, 0.0) for name in names])


@pytest.mark.parametrize("name", ["released", "moderate"])
def test_released_and_moderate_bounds_are_strict(name: str) -> None:
    rule = success_rule(name)
    assert rule.hold == 1
    assert not rule.satisfied(shifted(block_x=20.0), GOAL)
    assert rule.satisfied(shifted(block_x=below(20.0)), GOAL)
    assert not rule.satisfied(shifted(agent_x=12.0, block_y=16.0), GOAL), "agent and block count jointly"
    assert rule.satisfied(shifted(agent_x=12.0, block_y=15.9), GOAL)
    assert not rule.satisfied(shifted(angle=math.pi / 9), GOAL)
    assert rule.satisfied(shifted(angle=below(math.pi / 9)), GOAL)
    assert rule.satisfied(shifted(vx=500.0), GOAL), "velocities do not count"


def test_strict_bounds_ignore_the_agent() -> None:
    rule = success_rule("strict")
    assert rule.hold == 3
    assert not rule.satisfied(shifted(block_x=6.0, block_y=8.0), GOAL)
    assert rule.satisfied(shifted(agent_x=300.0, block_x=6.0, block_y=7.99), GOAL)
    assert not rule.satisfied(shifted(angle=-math.pi / 18), GOAL)
    assert rule.satisfied(shifted(angle=-below(math.pi / 18)), GOAL)


@pytest.mark.parametrize(
    ("a", "b", "symmetry", "expected"),
    [
        (0.1, 2 * math.pi - 0.1, 1, 0.2),
        (-3.0, 3.0, 1, 2 * math.pi - 6.0),
        (0.0, 7 * math.pi, 1, math.pi),
        (0.0, math.pi, 2, 0.0),
        (0.0, math.pi / 2, 4, 0.0),
        (0.0, math.pi / 4, 4, math.pi / 4),
        (0.1, math.pi / 2, 4, 0.1),
    ],
)
def test_angle_error_values(a: float, b: float, symmetry: int, expected: float) -> None:
    assert angle_error(a, b, symmetry) == pytest.approx(expected, abs=1e-12)


@given(st.floats(-30, 30), st.floats(-30, 30), st.sampled_from([1, 2, 4]), st.integers(-3, 3))
def test_angle_error_is_symmetric_periodic_and_bounded(a: float, b: float, symmetry: int, turns: int) -> None:
    error = angle_error(a, b, symmetry)
    assert 0 <= error <= math.pi / symmetry
    assert angle_error(b, a, symmetry) == error
    assert angle_error(a + turns * 2 * math.pi / symmetry, b, symmetry) == pytest.approx(error, abs=1e-9)


def test_rules_take_batches_and_states_of_five_numbers() -> None:
    states = np.stack([shifted(block_x=d) for d in (0.0, 9.0, 15.0, 25.0)])
    assert success_rule("strict").satisfied(states, GOAL).tolist() == [True, True, False, False]
    assert success_rule("released").satisfied(states[:, :5], GOAL[:5]).tolist() == [True, True, True, False]
    distance, angle = success_rule("released").errors(states, GOAL)
    assert distance.tolist() == [0, 9, 15, 25] and angle.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("name", "satisfied", "expected"),
    [
        ("released", [0, 1, 0], [0, 1, 0]),
        ("strict", [1, 1, 1, 1], [0, 0, 1, 1]),
        ("strict", [1, 1, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1]),
    ],
)
def test_counter_holds_consecutive_steps(name: str, satisfied: list[int], expected: list[int]) -> None:
    counter = SuccessCounter(SUCCESS_RULES[name])
    assert [counter.update(bool(step)) for step in satisfied] == [bool(e) for e in expected]


@pytest.mark.parametrize("name", ["Strict", "", None, ["strict"]])
def test_unknown_rules_are_refused(name: object) -> None:
    with pytest.raises(ValueError, match="expected one of.*moderate.*released.*strict"):
        success_rule(name)
