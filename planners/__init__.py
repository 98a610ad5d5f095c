"""Planners over a cost function: they know no network and no environment, so they work with any model.

A point mass that is pushed for four steps, for three environments at once, with a cost function of one's own:

>>> import torch
>>> from planners import CEM, ActionPrior, CEMConfig
>>> def cost(start, goal, pushes):  # (B, 2), (B, 2), (B, N, H, 2) -> (B, N)
...     position = start[:, None, None] + pushes.cumsum(2).cumsum(2)
...     return (position[:, :, -1] - goal[:, None]).square().sum(-1) + 1e-4 * pushes.square().sum((-1, -2))
>>> prior = ActionPrior.standard(low=torch.full((2,), -1.0), high=torch.full((2,), 1.0), std=0.5)
>>> planner = CEM(cost, prior, CEMConfig(n_samples=100, n_iterations=20, n_elites=10))
>>> goal = torch.tensor([[1.0, 2.0], [-3.0, 0.5], [0.0, 0.0]])
>>> generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
>>> plan = planner.plan(torch.zeros(3, 2), goal, horizon=4, generators=generators)
>>> plan.actions.shape, bool((plan.cost < 1e-3).all())
(torch.Size([3, 4, 2]), True)
"""

from planners.cem import CEM, CEMConfig
from planners.chain import Chain
from planners.chunking import in_chunks
from planners.gradient import GradientConfig, GradientPlanner
from planners.icem import ICEM, ICEMConfig
from planners.mppi import MPPI, MPPIConfig
from planners.objectives import GoalObjective
from planners.prior import ActionPrior
from planners.protocol import CostFunction, Planner, PlanResult, PlanStatistics
from planners.random_shooting import RandomShooting, RandomShootingConfig
from planners.receding import RecedingHorizon, RecedingState

__all__ = [
    "CEM",
    "ICEM",
    "MPPI",
    "ActionPrior",
    "CEMConfig",
    "Chain",
    "CostFunction",
    "GoalObjective",
    "GradientConfig",
    "GradientPlanner",
    "ICEMConfig",
    "MPPIConfig",
    "PlanResult",
    "PlanStatistics",
    "Planner",
    "RandomShooting",
    "RandomShootingConfig",
    "RecedingHorizon",
    "RecedingState",
    "in_chunks",
]
