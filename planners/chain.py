"""Planners that start from each other's plans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic

import torch
from torch import Tensor

from planners.protocol import Goal, Planner, PlanResult, PlanStatistics, Z


class Chain(Generic[Z, Goal]):
    """Runs planners in turn, each with the plan of the one before as its warm start; returns the cheapest plan.

    ``Chain(CEM(cost, prior), GradientPlanner(cost, prior))`` finds a basin by sampling and descends in it. All must
    judge plans by the same cost.

    Args:
        planners: at least one.

    Raises:
        ValueError: there is none.
    """

    def __init__(self, *planners: Planner[Z, Goal]) -> None:
        if not planners:
            raise ValueError("got no planners; give at least one")
        self.planners = planners

    def plan(
        self,
        z0: Z,
        goal: Goal,
        *,
        horizon: int,
        generators: Sequence[torch.Generator],
        warm_start: Tensor | None = None,
    ) -> PlanResult:
        """See ``planners.Planner.plan``; the statistics are those of all planners, one after the other."""
        plans: list[PlanResult] = []
        for planner in self.planners:
            plans.append(planner.plan(z0, goal, horizon=horizon, generators=generators, warm_start=warm_start))
            warm_start = plans[-1].actions
        cost, cheapest = torch.stack([plan.cost for plan in plans]).min(0)
        actions = torch.stack([plan.actions for plan in plans])[cheapest, torch.arange(len(cost), device=cost.device)]
        columns = zip(*((p.statistics.best, p.statistics.elite, p.statistics.spread) for p in plans), strict=True)
        return PlanResult(actions, cost, PlanStatistics(*map(torch.cat, columns)))
