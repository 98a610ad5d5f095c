"""When a Push-T goal state counts as reached: the three published rules, as pure functions of states."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class SuccessRule:
    """A threshold on distance and angle to the goal state, held for some consecutive steps.

    Attributes:
        name: the rule's published name.
        distance: px, an upper bound that must be undercut.
        angle: rad, an upper bound that must be undercut.
        uses_agent: whether the distance is the joint one of agent and block (4 coordinates) or the block's alone.
        hold: consecutive environment steps for which both bounds must be met.
    """

    name: str
    distance: float
    angle: float
    uses_agent: bool
    hold: int

    def errors(
        self, state: ArrayLike, goal: ArrayLike, symmetry: int = 1
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Distance [px] and angle [rad] between states, each of shape (...).

        Args:
            state: (..., 5 or 7) agent x, y, block x, y [px], block angle [rad], and ignored velocities.
            goal: the same for the goal; the two broadcast against each other.
            symmetry: order of the block's rotational symmetry; angles count modulo ``2 * pi / symmetry``.
        """
        reached, wanted = np.asarray(state, np.float64), np.asarray(goal, np.float64)
        first = 0 if self.uses_agent else 2
        distance = np.linalg.norm(wanted[..., first:4] - reached[..., first:4], axis=-1)
        return distance, angle_error(wanted[..., 4], reached[..., 4], symmetry)

    def satisfied(self, state: ArrayLike, goal: ArrayLike, symmetry: int = 1) -> NDArray[np.bool_]:
        """Whether both bounds are met, shape (...); for ``hold > 1`` this alone is not yet success.

        The arguments are those of ``errors``.
        """
        distance, angle = self.errors(state, goal, symmetry)
        met: NDArray[np.bool_] = (distance < self.distance) & (angle < self.angle)
        return met


def angle_error(a: ArrayLike, b: ArrayLike, symmetry: int = 1) -> NDArray[np.float64]:
    """Smallest turn [rad] that takes angle ``a`` to ``b``, modulo ``2 * pi / symmetry``; shape (...)."""
    period = 2 * math.pi / symmetry
    turn = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)) % period
    return np.minimum(turn, period - turn)


# "moderate" scores like "released"; where published, it draws pairs of start and goal otherwise, here both share them.
SUCCESS_RULES: dict[str, SuccessRule] = {
    rule.name: rule
    for rule in (
        SuccessRule("released", distance=20.0, angle=math.pi / 9, uses_agent=True, hold=1),
        SuccessRule("moderate", distance=20.0, angle=math.pi / 9, uses_agent=True, hold=1),
        SuccessRule("strict", distance=10.0, angle=math.pi / 18, uses_agent=False, hold=3),
    )
}


def success_rule(name: str) -> SuccessRule:
    """The named rule; raises ValueError with the known names otherwise."""
    try:
        return SUCCESS_RULES[name]
    except (KeyError, TypeError):
        raise ValueError(f"unknown success_rule {name!r}; expected one of {sorted(SUCCESS_RULES)}") from None


class SuccessCounter:
    """Counts the consecutive steps on which a rule is satisfied; make a new one whenever the goal is set."""

    def __init__(self, rule: SuccessRule) -> None:
        self.rule = rule
        self.steps = 0

    def update(self, satisfied: bool) -> bool:
        """Take in one step; returns whether the rule has now held long enough."""
        self.steps = self.steps + 1 if satisfied else 0
        return self.steps >= self.rule.hold
