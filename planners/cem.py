"""The cross-entropy method (Rubinstein 1999), all environments and candidates in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal

import torch
from torch import Tensor

from planners.prior import ActionPrior
from planners.protocol import CostFunction, Goal, PlanResult, PlanStatistics, Z
from planners.shooting import check_request, draw_normal, ordered_sum, require_finite, score


@dataclass(frozen=True)
class CEMConfig:
    """Settings of ``CEM``; the defaults are those of DINO-WM and C-JEPA on Push-T.

    Attributes:
        n_samples: N, candidate plans per environment and iteration, the current mean included; at least 2.
        n_iterations: refits of the candidate distribution, at least 1.
        n_elites: candidates of lowest cost that the distribution is refitted to, 2 to ``n_samples``.
        init_std: standard deviation of the first candidates, whitened units (1 = that of the prior), above 0.
        min_std: the standard deviation never falls below this, whitened units.
        momentum: share of the previous mean and standard deviation kept at each refit, in [0, 1).
        returns: ``"mean"`` of the last distribution, or the ``"best"`` candidate ever scored.

    Raises:
        ValueError: a setting is out of range.
    """

    n_samples: int = 300
    n_iterations: int = 30
    n_elites: int = 30
    init_std: float = 1.0
    min_std: float = 0.0
    momentum: float = 0.0
    returns: Literal["mean", "best"] = "mean"

    def __post_init__(self) -> None:
        if self.n_samples < 2:
            raise ValueError(f"n_samples is {self.n_samples}; expected at least 2 candidates")
        if self.n_iterations < 1:
            raise ValueError(f"n_iterations is {self.n_iterations}; expected at least 1")
        if not 2 <= self.n_elites <= self.n_samples:
            raise ValueError(
                f"n_elites is {self.n_elites}; expected 2 to n_samples = {self.n_samples}: "
                f"elites are chosen among the samples, and a standard deviation needs two"
            )
        if not 0 < self.init_std < float("inf"):
            raise ValueError(f"init_std is {self.init_std}; expected a positive number of whitened units")
        if not 0 <= self.min_std <= self.init_std:
            raise ValueError(f"min_std is {self.min_std}; expected 0 to init_std = {self.init_std}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; expected [0, 1): at 1 the distribution never moves")
        if self.returns not in ("mean", "best"):
            raise ValueError(f"returns is {self.returns!r}; expected 'mean' or 'best'")


class CEM(Generic[Z, Goal]):
    """Samples plans from a normal distribution over whitened coordinates and refits it to the best, repeatedly.

    Candidate 0 of every iteration is the current mean (as in DINO-WM and stable-worldmodel). Candidates are
    clipped to the prior's bounds before they are scored. Elites are ordered by cost, equal costs by candidate
    number. Mean and unbiased standard deviation are refitted to the elites of finite cost; where an environment
    has fewer than two, its standard deviation stays, and with none its mean too.

    The search itself is elementwise arithmetic: wherever an environment's costs are the same to the last bit alone
    and in any batch (see ``planners.in_chunks``), so is its plan. No value is read back to the host between the
    check of ``warm_start`` and the end of the last iteration.

    Args:
        cost: what to minimise.
        prior: coordinates, bounds, dtype and device of the search.
        config: settings.
    """

    def __init__(self, cost: CostFunction[Z, Goal], prior: ActionPrior, config: CEMConfig | None = None) -> None:
        self.cost = cost
        self.prior = prior
        self.config = config or CEMConfig()

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
        """See ``planners.Planner.plan``. ``warm_start`` becomes the first mean, projected to the prior's basis.

        The ``"mean"`` is scored once more at the end; where its cost is not finite the best candidate is returned.
        """
        check_request(self.prior, horizon, generators, warm_start)
        mean = self._first_mean(len(generators), horizon, warm_start)
        std = torch.full_like(mean, self.config.init_std)
        best_actions = self.prior.decode(mean)
        best_cost = mean.new_full((len(generators),), torch.inf)
        rows: list[tuple[Tensor, Tensor, Tensor]] = []
        for _ in range(self.config.n_iterations):
            candidates = self._sample(mean, std, generators)
            actions = self.prior.decode(candidates)
            costs, order = score(self.cost, z0, goal, actions).sort(dim=1, stable=True)
            best_actions, best_cost = _keep_better(best_actions, best_cost, _pick(actions, order[:, :1]), costs[:, :1])
            elite_costs = costs[:, : self.config.n_elites]
            mean, std = self._refit(mean, std, _pick(candidates, order[:, : self.config.n_elites]), elite_costs)
            rows.append((costs[:, 0], _finite_mean(elite_costs), ordered_sum(std.flatten(1), 1) / std[0].numel()))
        if self.config.returns == "mean":
            final = self.prior.decode(mean).unsqueeze(1)
            final_cost = score(self.cost, z0, goal, final)
            best_cost = best_cost.masked_fill(final_cost[:, 0].isfinite(), torch.inf)
            best_actions, best_cost = _keep_better(best_actions, best_cost, final, final_cost)
        require_finite(best_cost)
        best, elite, spread = (torch.stack(column) for column in zip(*rows, strict=True))
        return PlanResult(best_actions, best_cost, PlanStatistics(best, elite, spread))

    def _first_mean(self, n_envs: int, horizon: int, warm_start: Tensor | None) -> Tensor:
        if warm_start is None:
            return self.prior.mean.new_zeros(n_envs, horizon, self.prior.latent_dim)
        return self.prior.encode(warm_start.to(self.prior.dtype))

    def _sample(self, mean: Tensor, std: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Candidates (B, N, H, K), the mean first."""
        noise = draw_normal(generators, (self.config.n_samples - 1, *mean.shape[1:]), like=mean)
        mean, std = mean.unsqueeze(1), std.unsqueeze(1)
        return torch.cat([mean, mean + std * noise], dim=1)

    def _refit(self, mean: Tensor, std: Tensor, elites: Tensor, costs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B, H, K) of the elites (B, E, H, K) whose cost (B, E) is finite."""
        finite = costs.isfinite().to(elites.dtype)[..., None, None]
        count = ordered_sum(finite, 1)
        elite_mean = ordered_sum(elites * finite, 1) / count.clamp(min=1)
        deviation = (elites - elite_mean.unsqueeze(1)) * finite
        elite_std = (ordered_sum(deviation * deviation, 1) / (count - 1).clamp(min=1)).sqrt()
        elite_std = elite_std.clamp(min=self.config.min_std)
        kept = self.config.momentum
        return (
            torch.where(count >= 1, kept * mean + (1 - kept) * elite_mean, mean),
            torch.where(count >= 2, kept * std + (1 - kept) * elite_std, std),
        )


def _pick(candidates: Tensor, index: Tensor) -> Tensor:
    """Rows (B, E, H, ...) of candidates (B, N, H, ...) by index (B, E)."""
    return candidates.take_along_dim(index[..., None, None], dim=1)


def _keep_better(actions: Tensor, cost: Tensor, new_actions: Tensor, new_cost: Tensor) -> tuple[Tensor, Tensor]:
    """Per environment the cheaper of a plan (B, H, A), (B,) and a new one (B, 1, H, A), (B, 1)."""
    better = new_cost[:, 0] < cost
    return (
        torch.where(better[:, None, None], new_actions[:, 0], actions),
        torch.where(better, new_cost[:, 0], cost),
    )


def _finite_mean(costs: Tensor) -> Tensor:
    """Mean over the finite costs of (B, E), inf where there is none."""
    finite = costs.isfinite()
    count = finite.sum(1)
    total = ordered_sum(costs.masked_fill(~finite, 0), 1)
    return torch.where(count > 0, total / count.clamp(min=1), torch.inf)
