"""What a planner is given and what it gives back. Nothing here knows a network or an environment.

Letters: B environments, N candidate plans, H horizon in action blocks, A numbers per action block (environment
actions per block x width of one action).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

Z = TypeVar("Z")
Goal = TypeVar("Goal")
Z_contra = TypeVar("Z_contra", contravariant=True)
Goal_contra = TypeVar("Goal_contra", contravariant=True)

CostFunction = Callable[[Z, Goal, Tensor], Tensor]
"""``cost(z0, goal, actions)``: (B, N, H, A) actions in environment units -> (B, N) costs, lower is better.

``z0`` and ``goal`` hold the B starts and goals in whatever form the cost function understands; planners hand them
through untouched. N may differ from call to call and may be 1. A candidate whose cost is NaN or infinite loses.
"""


@dataclass(frozen=True, eq=False)
class PlanStatistics:
    """How a solve went, one row per iteration; each tensor is (iterations, B) on the planner's device.

    Attributes:
        best: lowest cost among the iteration's candidates (inf if none was finite).
        elite: mean finite cost of the candidates that the next iteration comes from (inf if none was finite).
        spread: standard deviation of the candidate distribution after the iteration, in the prior's whitened
            units, averaged over blocks and coordinates.
    """

    best: Tensor
    elite: Tensor
    spread: Tensor


@dataclass(frozen=True, eq=False)
class PlanResult:
    """The plans of B environments.

    Attributes:
        actions: (B, H, A) action blocks in environment units, within the prior's bounds.
        cost: (B,) cost of exactly these actions.
        statistics: per-iteration course of the solve.
    """

    actions: Tensor
    cost: Tensor
    statistics: PlanStatistics


class Planner(Protocol[Z_contra, Goal_contra]):
    """Finds low-cost action blocks for B environments at once."""

    def plan(
        self,
        z0: Z_contra,
        goal: Goal_contra,
        *,
        horizon: int,
        generators: Sequence[torch.Generator],
        warm_start: Tensor | None = None,
    ) -> PlanResult:
        """Plan ``horizon`` action blocks for each of ``B = len(generators)`` environments.

        Args:
            z0: the B starts, in the form that the cost function understands.
            goal: the B goals, likewise.
            horizon: H, number of action blocks, at least 1.
            generators: one CPU generator per environment, each advanced by the same amount whatever the batch,
                so that an environment's plan does not depend on the others in its batch.
            warm_start: (B, H, A) action blocks in environment units to start the search from.

        Raises:
            ValueError: an argument or the cost function's answer does not fit, or every candidate of an
                environment had a NaN or infinite cost.
        """
        ...
