"""Random shooting: the simplest planner, to compare others with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from planners.cem import CEM, CEMConfig
from planners.prior import ActionPrior
from planners.protocol import CostFunction, Goal, Z


@dataclass(frozen=True)
class RandomShootingConfig:
    """Settings of ``RandomShooting``.

    Attributes:
        n_samples: N, candidate plans per environment, the first of them the warm start; at least 2.
        std: standard deviation of the others about it, whitened units, above 0.
        noise_beta: the noise's power over the blocks of a plan falls with frequency to this power; 0 is white noise.
        bounds: ``"clip"`` or ``"truncate"``, see ``CEMConfig``.

    Raises:
        ValueError: a setting is out of range.
    """

    n_samples: int = 3000
    std: float = 1.0
    noise_beta: float = 0.0
    bounds: Literal["clip", "truncate"] = "clip"

    def __post_init__(self) -> None:
        if not 0 < self.std < float("inf"):
            raise ValueError(f"std is {self.std}; expected a positive number of whitened units")
        self.as_cem()

    def as_cem(self) -> CEMConfig:
        """The same search as settings of ``CEM``."""
        return CEMConfig(self.n_samples, 1, 2, self.std, returns="best", noise_beta=self.noise_beta, bounds=self.bounds)


class RandomShooting(CEM[Z, Goal]):
    """``CEM`` that never comes to draw from what it has learnt: one iteration, whose best candidate is returned.

    Args:
        cost, prior: as for ``CEM``.
        config: settings.
    """

    def __init__(
        self, cost: CostFunction[Z, Goal], prior: ActionPrior, config: RandomShootingConfig | None = None
    ) -> None:
        super().__init__(cost, prior, (config or RandomShootingConfig()).as_cem())
