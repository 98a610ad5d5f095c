"""Gradient descent through the cost function, many restarts in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from planners.noise import draw_normal
from planners.prior import ActionPrior
from planners.protocol import CostFunction, Goal, PlanResult, Z
from planners.record import Record, Stopwatch, check_budget
from planners.shooting import average_spread, check_request, finite_mean, first_mean, moments, score

MEAN_DECAY, SQUARE_DECAY, EPSILON = 0.9, 0.999, 1e-8  # Adam's usual


@dataclass(frozen=True)
class GradientConfig:
    """Settings of ``GradientPlanner``.

    Attributes:
        n_restarts: N, plans per environment that descend side by side, the first of them from the warm start itself.
        n_iterations: how often every plan is scored, with a step between one score and the next; at least 1.
        learning_rate: Adam's first step, whitened units, above 0; steps shrink linearly toward zero.
        init_std: standard deviation of the other plans about the warm start, whitened units, 0 or more.
        noise_std: standard deviation of noise added to each step, whitened units; shrinks like the steps.
        time_budget_ms: no step is begun that would end later than this after the call, if it takes as long as the
            last; None for no limit. With it results depend on the machine and on the batch.

    Raises:
        ValueError: a setting is out of range.
    """

    n_restarts: int = 32
    n_iterations: int = 50
    learning_rate: float = 0.2
    init_std: float = 1.0
    noise_std: float = 0.0
    time_budget_ms: float | None = None

    def __post_init__(self) -> None:
        for name in ("n_restarts", "n_iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate is {self.learning_rate}; expected a positive number of whitened units")
        for name in ("init_std", "noise_std"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more whitened units")
        check_budget(self.time_budget_ms)


class GradientPlanner(Generic[Z, Goal]):
    """Adam (Kingma and Ba 2015) on whitened coordinates; returns the cheapest plan that any restart passed.

    Every plan is scored within the prior's bounds, and after each step moved back to them. At a bound the gradient
    still counts, so that a plan that lies there can leave. A plan whose gradient is not finite does not move by it.

    Adam's arithmetic is elementwise: wherever the cost function's values and gradients are the same to the last bit
    alone and in any batch (see ``planners.in_chunks``), so is an environment's plan. The graph of all B x N plans is
    held at once. ``PlanStatistics.elite`` is the mean cost of all restarts, ``spread`` their standard deviation.

    Args:
        cost: what to minimise, differentiable in the actions.
        prior: coordinates, bounds, dtype and device of the search.
        config: settings.
    """

    def __init__(self, cost: CostFunction[Z, Goal], prior: ActionPrior, config: GradientConfig | None = None) -> None:
        self.cost = cost
        self.prior = prior
        self.config = config or GradientConfig()

    @torch.no_grad()
    def plan(
        self,
        z0: Z,
        goal: Goal,
        *,
        horizon: int,
        generators: Sequence[torch.Generator],
        warm_start: Tensor | None = None,
    ) -> PlanResult:
        """See ``planners.Planner.plan``; also raises ValueError where the cost has no gradient in the actions."""
        check_request(self.prior, horizon, generators, warm_start)
        config = self.config
        clock = Stopwatch(config.time_budget_ms, self.prior.device)
        mean = first_mean(self.prior, len(generators), horizon, warm_start).unsqueeze(1)
        noise = draw_normal(generators, (config.n_restarts - 1, *mean.shape[2:]), like=mean)
        x = torch.cat([mean, mean + config.init_std * noise], dim=1)
        drift, square = torch.zeros_like(x), torch.zeros_like(x)
        record = Record(self.prior.decode(mean[:, 0]))
        for iteration in range(config.n_iterations):
            actions = self.prior.decode(x)
            costs, gradient = self._differentiate(z0, goal, actions)
            lowest, index = costs.min(dim=1)
            record.offer(actions.take_along_dim(index[:, None, None, None], dim=1)[:, 0], lowest)
            deviation = moments(x, torch.ones_like(costs)).std.nan_to_num(0)
            record.add_row(lowest, finite_mean(costs), average_spread(deviation))
            if iteration == config.n_iterations - 1 or clock.is_up():
                break
            slope = self.prior.pull_back(gradient)
            drift = MEAN_DECAY * drift + (1 - MEAN_DECAY) * slope
            square = SQUARE_DECAY * square + (1 - SQUARE_DECAY) * slope * slope
            rms = (square / (1 - SQUARE_DECAY ** (iteration + 1))).sqrt() + EPSILON
            step = config.learning_rate * (drift / (1 - MEAN_DECAY ** (iteration + 1))) / rms
            if config.noise_std > 0:
                step = step + config.noise_std * draw_normal(generators, x.shape[1:], like=x)
            x = self.prior.encode(self.prior.decode(x - (1 - iteration / config.n_iterations) * step))
        return record.result()

    def _differentiate(self, z0: Z, goal: Goal, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Costs (B, N), and their gradient in the actions (B, N, H, A) with 0 where it is not finite."""
        actions = actions.detach().requires_grad_()
        with torch.enable_grad():
            costs = score(self.cost, z0, goal, actions)
        gradient = None
        if costs.requires_grad:
            (gradient,) = torch.autograd.grad(costs, actions, torch.ones_like(costs), allow_unused=True)
        if gradient is None:
            raise ValueError(
                "the cost function's answer has no gradient in the actions; GradientPlanner needs a differentiable "
                "cost: keep no_grad, detach and numpy out of it, or plan with CEM"
            )
        return costs.detach(), gradient.masked_fill(~gradient.isfinite(), 0)
