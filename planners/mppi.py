"""Model predictive path integral control: candidates weighted by exponentiated cost."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from planners.cem import CEM, CEMConfig
from planners.prior import ActionPrior
from planners.protocol import CostFunction, Goal, Z
from planners.shooting import moments


@dataclass(frozen=True)
class MPPIConfig(CEMConfig):
    """Settings of ``MPPI``: those of ``CEM`` and its own.

    The defaults are close to TD-MPC2's (Hansen et al. 2024, arXiv 2310.16828). ``n_elites = n_samples``,
    ``refit_std=False`` and ``normalise=False`` are the rule of Williams et al. (2017, "Information theoretic MPC for
    model-based reinforcement learning").

    Attributes:
        temperature: an elite that costs this much more than the best counts 1 / e of it; above 0.
        normalise: give ``temperature`` in standard deviations of the elites' costs, not in units of cost.
        refit_std: fit the standard deviation to the weighted elites; else it stays ``init_std``.
    """

    n_samples: int = 512
    n_iterations: int = 6
    n_elites: int = 64
    min_std: float = 0.05
    temperature: float = 0.5
    normalise: bool = True
    refit_std: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; expected a positive number")


class MPPI(CEM[Z, Goal]):
    """``CEM`` whose elites count by ``exp(-(cost - lowest cost) / temperature)`` in the refit, not all the same.

    The standard deviation is unbiased for such weights, and stays where their effective number is below two.

    Args:
        cost, prior: as for ``CEM``.
        config: settings.
    """

    config: MPPIConfig

    def __init__(self, cost: CostFunction[Z, Goal], prior: ActionPrior, config: MPPIConfig | None = None) -> None:
        super().__init__(cost, prior, config or MPPIConfig())

    def _refit(self, mean: Tensor, std: Tensor, elites: Tensor, costs: Tensor) -> tuple[Tensor, Tensor]:
        mean, fitted_std = super()._refit(mean, std, elites, costs)
        return mean, fitted_std if self.config.refit_std else std

    def _weights(self, costs: Tensor) -> Tensor:
        finite = costs.isfinite()
        excess = (costs - costs[:, :1]).masked_fill(~finite, 0)
        if self.config.normalise:
            scale = moments(excess, finite.to(costs.dtype)).std.nan_to_num(0)
            excess = excess / scale.clamp(min=torch.finfo(costs.dtype).tiny).unsqueeze(1)
        return (-excess / self.config.temperature).exp() * finite
