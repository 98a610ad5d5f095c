"""What all planners share: checked requests, scores, and statistics of fixed order.

The arithmetic is elementwise only. Sums over a whole axis or matrix products may round differently when the batch
has another shape, and one different last bit changes which candidates are elite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from planners.prior import ActionPrior
from planners.protocol import CostFunction, Goal, Z


def check_request(
    prior: ActionPrior, horizon: int, generators: Sequence[torch.Generator], warm_start: Tensor | None
) -> None:
    """Refuse arguments of ``Planner.plan`` that do not fit.

    Raises:
        ValueError: names what was given, what is expected and what to do.
    """
    if horizon < 1:
        raise ValueError(f"horizon is {horizon}; expected at least 1 action block")
    if not generators:
        raise ValueError("got no generators; give one CPU torch.Generator per environment")
    if len({id(generator) for generator in generators}) < len(generators):
        raise ValueError("two environments share a generator; give each its own, or they depend on each other")
    for generator in generators:
        if generator.device.type != "cpu":
            raise ValueError(f"a generator is on {generator.device}; expected CPU generators: torch.Generator()")
    if warm_start is None:
        return
    expected = (len(generators), horizon, prior.action_dim)
    if tuple(warm_start.shape) != expected:
        raise ValueError(
            f"warm_start has shape {tuple(warm_start.shape)}; expected (B, H, A) = {expected}: "
            f"shift and pad the previous plan to the horizon (planners.RecedingHorizon does)"
        )
    if warm_start.device != prior.device:
        raise ValueError(
            f"warm_start is on {warm_start.device} but the planner's prior is on {prior.device}; "
            f"move one of them with .to(device)"
        )
    if not warm_start.isfinite().all():
        raise ValueError("warm_start holds NaN or infinite values; expected actions in environment units")


def first_mean(prior: ActionPrior, n_envs: int, horizon: int, warm_start: Tensor | None) -> Tensor:
    """Whitened coordinates (B, H, K) that a search starts from: those of ``warm_start``, or the prior's mean."""
    if warm_start is None:
        return prior.mean.new_zeros(n_envs, horizon, prior.latent_dim)
    return prior.encode(warm_start.to(prior.dtype))


def score(cost: CostFunction[Z, Goal], z0: Z, goal: Goal, actions: Tensor) -> Tensor:
    """Costs (B, N) of ``actions`` (B, N, H, A) in the actions' dtype, with inf in place of every non-finite one.

    Raises:
        ValueError: the cost function answered with something else than (B, N) floats on the actions' device.
    """
    costs = cost(z0, goal, actions)
    if not isinstance(costs, Tensor) or not costs.dtype.is_floating_point:
        kind = costs.dtype if isinstance(costs, Tensor) else type(costs).__name__
        raise ValueError(f"the cost function returned {kind}; expected a tensor of floats, one per candidate")
    if costs.shape != actions.shape[:2]:
        raise ValueError(
            f"the cost function returned shape {tuple(costs.shape)}; expected (B, N) = {tuple(actions.shape[:2])}: "
            f"one cost per environment and candidate, already summed over steps"
        )
    if costs.device != actions.device:
        raise ValueError(
            f"the cost function returned costs on {costs.device} for actions on {actions.device}; "
            f"put the model on the planner's device, or the planner's prior on the model's: prior.to(device)"
        )
    costs = costs.to(actions.dtype)
    return costs.masked_fill(~costs.isfinite(), torch.inf)


def require_finite(cost: Tensor) -> None:
    """Refuse to return a plan for an environment whose lowest cost (B,) is not finite.

    Raises:
        ValueError: names the environments.
    """
    failed = (~cost.isfinite()).nonzero().flatten().tolist()
    if failed:
        raise ValueError(
            f"every candidate of environment(s) {failed} had a NaN or infinite cost; "
            f"expected at least one finite cost: check the start, the goal and the model for NaN"
        )


def ordered_sum(x: Tensor, dim: int) -> Tensor:
    """Sum over ``dim`` by repeated halving, in an order that depends on the size of ``dim`` alone."""
    x = x.movedim(dim, 0)
    while len(x) > 1:
        half = len(x) // 2
        paired = x[:half] + x[half : 2 * half]
        x = torch.cat([paired, x[2 * half :]]) if len(x) % 2 else paired
    return x[0]


class Moments(NamedTuple):
    """Weighted statistics over the candidates of (B, N, ...).

    Attributes:
        mean: (B, ...), 0 where nothing weighs.
        std: (B, ...) unbiased; anything, NaN included, where ``effective`` is not at least 2.
        effective: (B, ...) effective number of candidates, ``(sum w)^2 / sum w^2`` (Kish 1965); NaN where nothing
            weighs.
    """

    mean: Tensor
    std: Tensor
    effective: Tensor


def moments(x: Tensor, weights: Tensor) -> Moments:
    """Statistics of finite ``x`` (B, N, ...) by weights (B, N), in each environment all 0 or the largest of them 1."""
    weights = weights.reshape(*weights.shape, *(1,) * (x.ndim - 2))
    total, squares = ordered_sum(weights, 1), ordered_sum(weights * weights, 1)
    mean = ordered_sum(x * weights, 1) / total.clamp(min=1)
    deviation = x - mean.unsqueeze(1)
    variance = ordered_sum(deviation * deviation * weights, 1) / (total - squares / total)
    return Moments(mean, variance.sqrt(), total * total / squares)


def average_spread(std: Tensor) -> Tensor:
    """Standard deviations (B, H, K) averaged to (B,)."""
    return ordered_sum(std.flatten(1), 1) / std[0].numel()


def finite_mean(costs: Tensor) -> Tensor:
    """Mean over the finite costs of (B, N), inf where there is none."""
    finite = costs.isfinite()
    count = finite.sum(1)
    total = ordered_sum(costs.masked_fill(~finite, 0), 1)
    return torch.where(count > 0, total / count.clamp(min=1), torch.inf)
