"""What a solve has found so far, and how long it has taken."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from planners.protocol import PlanResult, PlanStatistics
from planners.shooting import require_finite


class Record:
    """The best plan of each environment so far, and one row of statistics per iteration.

    Args:
        actions: (B, H, A) action blocks that stand in until a finite cost is seen.
    """

    def __init__(self, actions: Tensor) -> None:
        self._actions = actions
        self._cost = actions.new_full((len(actions),), torch.inf)
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def offer(self, actions: Tensor, cost: Tensor) -> None:
        """Take the plans (B, H, A) that cost (B,) less than what there is."""
        self._take(cost < self._cost, actions, cost)

    def decide(self, actions: Tensor, cost: Tensor) -> None:
        """Take the plans (B, H, A) of finite cost (B,), even where a better one is known."""
        self._take(cost.isfinite(), actions, cost)

    def add_row(self, best: Tensor, elite: Tensor, spread: Tensor) -> None:
        """Describe an iteration; see ``PlanStatistics``."""
        self._rows.append((best, elite, spread))

    def result(self) -> PlanResult:
        """The result of the solve.

        Raises:
            ValueError: an environment never had a finite cost.
        """
        require_finite(self._cost)
        columns = (torch.stack(column) for column in zip(*self._rows, strict=True))
        return PlanResult(self._actions, self._cost, PlanStatistics(*columns))

    def _take(self, chosen: Tensor, actions: Tensor, cost: Tensor) -> None:
        self._actions = torch.where(chosen[:, None, None], actions, self._actions)
        self._cost = torch.where(chosen, cost, self._cost)


def check_budget(budget_ms: float | None) -> None:
    """Refuse a setting ``time_budget_ms`` that is no time.

    Raises:
        ValueError: it is not above 0.
    """
    if budget_ms is not None and not budget_ms > 0:
        raise ValueError(f"time_budget_ms is {budget_ms}; expected more than 0, or None for no limit")


class Stopwatch:
    """Keeps iterations within a budget of wall-clock time.

    Args:
        budget_ms: milliseconds from now on; None for no end.
        device: where the iterations run; with a budget the host waits for it.
    """

    def __init__(self, budget_ms: float | None, device: torch.device) -> None:
        self._budget_ms, self._device = budget_ms, device
        self._start = self._lap = time.perf_counter()

    def is_up(self) -> bool:
        """Whether another iteration as long as the last would end after the budget."""
        if self._budget_ms is None:
            return False
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        last, self._lap = now - self._lap, now
        return 1000 * (now - self._start + last) > self._budget_ms
