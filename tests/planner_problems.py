"""Small problems to plan for, and what makes two plans the same."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from planners import ActionPrior, CostFunction, PlanResult, PlanStatistics

H, A = 3, 4


def seeded(n_envs: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + env) for env in range(n_envs)]


def box(width: int = A, std: float = 1.0, limit: float = 1.0) -> ActionPrior:
    return ActionPrior.standard(torch.full((width,), -limit), torch.full((width,), limit), std=std)


def quadratic(z0: Any, goal: Tensor, actions: Tensor) -> Tensor:
    """Distance to the goal (B, H, A) in action space."""
    return (actions - goal.unsqueeze(1)).square().sum((-1, -2))


class Start(NamedTuple):
    latent: Tensor
    note: str


def network_cost() -> CostFunction[Start, dict[str, Tensor]]:
    """A cost made of matrix products, whose rounding depends on the batch shape."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(7 + H * A, 33), torch.nn.Tanh(), torch.nn.Linear(33, 19))

    def cost(z0: Start, goal: dict[str, Tensor], actions: Tensor) -> Tensor:
        latent = z0.latent[:, None].expand(-1, actions.shape[1], -1)
        predicted = network(torch.cat([latent, actions.flatten(2)], dim=-1))
        return (predicted - goal["latent"][:, None]).square().mean(-1)

    return cost


def assert_same_plan(one: PlanResult, other: PlanResult) -> None:
    assert torch.equal(one.actions, other.actions)
    assert torch.equal(one.cost, other.cost)
    for name in ("best", "elite", "spread"):
        assert torch.equal(getattr(one.statistics, name), getattr(other.statistics, name))


def part(result: PlanResult, chosen: slice, rows: int | None = None) -> PlanResult:
    """The plans of the chosen environments, with the first ``rows`` iterations of their statistics."""
    statistics = PlanStatistics(
        *(getattr(result.statistics, name)[:rows, chosen] for name in ("best", "elite", "spread"))
    )
    return PlanResult(result.actions[chosen], result.cost[chosen], statistics)
