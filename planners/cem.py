"""The cross-entropy method (Rubinstein 1999), all environments and candidates in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal

import torch
from torch import Tensor

from planners.noise import colour, draw_normal, truncate
from planners.prior import ActionPrior
from planners.protocol import CostFunction, Goal, PlanResult, Z
from planners.record import Record, Stopwatch, check_budget
from planners.shooting import average_spread, check_request, finite_mean, first_mean, moments, score


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
        noise_beta: the noise's power over the blocks of a plan falls with frequency to this power; 0 is white noise,
            2 makes plans that drift smoothly.
        keep_elites: share of an iteration's elites that stand again in the next without being scored again, 0 to 1.
        decay: each iteration has this many times fewer candidates than the one before, down to twice
            ``n_elites``; at least 1, which keeps their number.
        bounds: how candidates keep within the prior's bounds: ``"clip"`` moves those beyond to the bound,
            ``"truncate"`` draws none there; the latter only for a prior with a coordinate per number of an action
            block (``ActionPrior.standard``).
        tolerance: an environment's search ends once ``PlanStatistics.spread`` is at most this, whitened units, above
            ``min_std``; 0 for never. Above 0 the host waits for every iteration.
        time_budget_ms: no iteration is begun that would end later than this after the call, if it takes as long as
            the last; the first is always made. None for no limit. The one setting whose results depend on the
            machine and on the batch.

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
    noise_beta: float = 0.0
    keep_elites: float = 0.0
    decay: float = 1.0
    bounds: Literal["clip", "truncate"] = "clip"
    tolerance: float = 0.0
    time_budget_ms: float | None = None

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
        self._check_options()

    def _check_options(self) -> None:
        if not 0 <= self.noise_beta < float("inf"):
            raise ValueError(f"noise_beta is {self.noise_beta}; expected 0 (white noise) or more")
        if not 0 <= self.keep_elites <= 1:
            raise ValueError(f"keep_elites is {self.keep_elites}; expected a share in [0, 1]")
        if not 1 <= self.decay < float("inf"):
            raise ValueError(f"decay is {self.decay}; expected 1 (constant population) or more")
        if self.bounds not in ("clip", "truncate"):
            raise ValueError(f"bounds is {self.bounds!r}; expected 'clip' or 'truncate'")
        if self.tolerance != 0 and not self.min_std < self.tolerance < float("inf"):
            raise ValueError(
                f"tolerance is {self.tolerance}; expected 0 (never stop early) or more than min_std = {self.min_std}"
            )
        check_budget(self.time_budget_ms)

    def population(self, iteration: int) -> int:
        """Candidates scored per environment in an iteration, counted from 0."""
        floor = min(self.n_samples, 2 * self.n_elites)
        return max(int(self.n_samples * self.decay**-iteration), floor)


class CEM(Generic[Z, Goal]):
    """Samples plans from a normal distribution over whitened coordinates and refits it to the best, repeatedly.

    The first of the newly drawn candidates of every iteration is the current mean (as in DINO-WM and
    stable-worldmodel); kept elites come before them. Candidates are clipped to the prior's bounds before they are
    scored. Elites are ordered by cost, equal costs by candidate number. Mean and unbiased standard deviation are
    refitted to the elites of finite cost; where an environment has fewer than two, its standard deviation stays, and
    with none its mean too.

    The search itself is elementwise arithmetic: wherever an environment's costs are the same to the last bit alone
    and in any batch (see ``planners.in_chunks``), so is its plan. Unless ``tolerance`` or ``time_budget_ms`` ask for
    it, no value is read back to the host between the check of ``warm_start`` and the end of the last iteration.

    Where an environment's search ended early, its further ``PlanStatistics.best`` and ``elite`` are inf.

    Args:
        cost: what to minimise.
        prior: coordinates, bounds, dtype and device of the search.
        config: settings.

    Raises:
        ValueError: ``bounds="truncate"`` with a prior whose bounds are none in whitened coordinates.
    """

    def __init__(self, cost: CostFunction[Z, Goal], prior: ActionPrior, config: CEMConfig | None = None) -> None:
        self.cost = cost
        self.prior = prior
        self.config = config or CEMConfig()
        self._truncation = prior.whitened_bounds() if self.config.bounds == "truncate" else None

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
        config, n_envs = self.config, len(generators)
        clock = Stopwatch(config.time_budget_ms, self.prior.device)
        mean = first_mean(self.prior, n_envs, horizon, warm_start)
        std = torch.full_like(mean, config.init_std)
        record = Record(self.prior.decode(mean))
        kept, kept_costs = mean.new_empty(n_envs, 0, *mean.shape[1:]), mean.new_empty(n_envs, 0)
        n_kept = int(config.keep_elites * config.n_elites)
        searching: list[torch.Generator | None] = list(generators)
        ended = mean.new_zeros(n_envs, dtype=torch.bool)
        for iteration in range(config.n_iterations):
            fresh = self._sample(mean, std, searching, config.population(iteration))
            fresh_costs = score(self.cost, z0, goal, self.prior.decode(fresh))
            candidates, costs = torch.cat([kept, fresh], dim=1), torch.cat([kept_costs, fresh_costs], dim=1)
            # Without any finite cost an environment stays as it is: so do those whose search has ended.
            costs, order = costs.masked_fill(ended[:, None], torch.inf).sort(dim=1, stable=True)
            elites = candidates.take_along_dim(order[:, : config.n_elites, None, None], dim=1)
            elite_costs = costs[:, : config.n_elites]
            record.offer(self.prior.decode(elites[:, 0]), costs[:, 0])
            mean, std = self._refit(mean, std, elites, elite_costs)
            kept, kept_costs = elites[:, :n_kept], elite_costs[:, :n_kept]
            spread = average_spread(std)
            record.add_row(costs[:, 0], finite_mean(elite_costs), spread)
            if config.tolerance > 0:
                ended = spread <= config.tolerance
                searching = [None if end else own for end, own in zip(ended.tolist(), generators, strict=True)]
            if searching.count(None) == n_envs or clock.is_up():
                break
        if config.returns == "mean":
            final = self.prior.decode(mean)
            record.decide(final, score(self.cost, z0, goal, final.unsqueeze(1))[:, 0])
        return record.result()

    def _sample(
        self, mean: Tensor, std: Tensor, generators: Sequence[torch.Generator | None], n_samples: int
    ) -> Tensor:
        """Candidates (B, N, H, K), the mean first."""
        noise = draw_normal(generators, (n_samples - 1, *mean.shape[1:]), like=mean)
        mean, std = mean.unsqueeze(1), std.unsqueeze(1)
        if self.config.noise_beta > 0:
            noise = colour(noise, self.config.noise_beta)
        if self._truncation is not None:
            scale = std.clamp(min=torch.finfo(std.dtype).tiny)
            noise = truncate(noise, *((bound - mean) / scale for bound in self._truncation))
        return torch.cat([mean, mean + std * noise], dim=1)

    def _refit(self, mean: Tensor, std: Tensor, elites: Tensor, costs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B, H, K) of the elites (B, E, H, K) by the weights of their costs (B, E)."""
        fitted = moments(elites, self._weights(costs))
        fitted_std = fitted.std.clamp(min=self.config.min_std)
        kept = self.config.momentum
        return (
            torch.where(fitted.effective > 0, kept * mean + (1 - kept) * fitted.mean, mean),
            torch.where(fitted.effective >= 2, kept * std + (1 - kept) * fitted_std, std),
        )

    def _weights(self, costs: Tensor) -> Tensor:
        """How much elites count by their ascending costs (B, E): none at all where inf, else up to 1 for the best."""
        return costs.isfinite().to(costs.dtype)
