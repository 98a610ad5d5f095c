"""iCEM (Pinneri et al. 2020, arXiv 2008.06389): the cross-entropy method with fewer, smoother candidates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from planners.cem import CEM, CEMConfig
from planners.prior import ActionPrior
from planners.protocol import CostFunction, Goal, Z


@dataclass(frozen=True)
class ICEMConfig(CEMConfig):
    """Settings of ``CEM`` that make it iCEM; where they vary in the paper, a middle one."""

    n_samples: int = 100
    n_iterations: int = 10
    n_elites: int = 10
    momentum: float = 0.1
    returns: Literal["mean", "best"] = "best"
    noise_beta: float = 2.0
    keep_elites: float = 0.3
    decay: float = 1.25


class ICEM(CEM[Z, Goal]):
    """``CEM`` with coloured noise, kept elites, momentum, a shrinking population, and the best candidate returned.

    Unlike the paper's, the mean is a candidate in every iteration, not in the last alone. From one plan to the next
    the shifted plan is carried over as ``warm_start``, not the other elites.

    Args:
        cost, prior: as for ``CEM``.
        config: settings.
    """

    def __init__(self, cost: CostFunction[Z, Goal], prior: ActionPrior, config: ICEMConfig | None = None) -> None:
        super().__init__(cost, prior, config or ICEMConfig())
