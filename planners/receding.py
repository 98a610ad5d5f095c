"""Receding-horizon control: how far to plan next, and what to carry over from the last plan."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RecedingState:
    """Where one environment stands in its episode.

    Attributes:
        executed: action blocks executed, or handed out for execution, since the goal was set.
        remainder: (R, A) blocks of the last plan that were not handed out, None before the first plan.
    """

    executed: int = 0
    remainder: Tensor | None = None


@dataclass(frozen=True)
class RecedingHorizon:
    """Plan, execute the first blocks, plan again from there. Pure bookkeeping; the state is the caller's.

    When only the last step of a plan is scored, a constant horizon procrastinates: each replan puts the goal off
    again. With ``shrink`` the horizon counts down to the time by which the goal is due, e.g. 5, 4, 3, 2, 2, ...
    for ``horizon=5, replan_every=1, min_horizon=2``. A missed goal is often out of reach of such short plans;
    with ``restart=3`` the count begins anew from there: 5, 4, 3, 2, 2, 3, 2, 2, 3, ...

    Attributes:
        horizon: H of the first plan, action blocks.
        replan_every: blocks executed of each plan (all of them where the plan is shorter), 1 to ``horizon``.
        shrink: shorten the horizon by the executed blocks.
        min_horizon: with ``shrink``, no plan is shorter; 1 to ``horizon``, action blocks.
        restart: with ``shrink``, count down again from so many blocks, ``min_horizon`` to ``horizon``, whenever the
            count has run out; 0 for never.

    Raises:
        ValueError: a setting is out of range.
    """

    horizon: int = 5
    replan_every: int = 5
    shrink: bool = False
    min_horizon: int = 1
    restart: int = 0

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise ValueError(f"horizon is {self.horizon}; expected at least 1 action block")
        for name, value in (("replan_every", self.replan_every), ("min_horizon", self.min_horizon)):
            if not 1 <= value <= self.horizon:
                raise ValueError(f"{name} is {value}; expected 1 to horizon = {self.horizon} action blocks")
        if self.restart and not self.min_horizon <= self.restart <= self.horizon:
            raise ValueError(
                f"restart is {self.restart}; expected 0 (never), or min_horizon = {self.min_horizon} to "
                f"horizon = {self.horizon} action blocks"
            )

    def next_horizon(self, state: RecedingState) -> int:
        """Horizon of the next plan, action blocks."""
        if not self.shrink:
            return self.horizon
        start, executed = self.horizon, state.executed
        if self.restart and executed >= start:
            start, executed = self.restart, (executed - start) % self.restart
        return max(start - executed, self.min_horizon)

    def warm_start(self, state: RecedingState, padding: Tensor) -> Tensor:
        """Where the next search starts: what is left of the last plan, then ``padding``.

        Args:
            state: the environment's state.
            padding: (A,) action block to fill up with, e.g. the prior's mean or the block that stands still; it is
                also the whole warm start before the first plan.

        Returns:
            (H, A) with H = ``next_horizon(state)``.
        """
        horizon = self.next_horizon(state)
        carried = padding.new_empty(0, len(padding)) if state.remainder is None else state.remainder
        return torch.cat([carried, padding.expand(horizon - len(carried), -1)])

    def hand_out(self, state: RecedingState, plan: Tensor) -> tuple[Tensor, RecedingState]:
        """Accept a new plan.

        Args:
            state: the state it was planned from.
            plan: (H, A) with H = ``next_horizon(state)``.

        Returns:
            The (k, A) blocks to execute before the next plan, and the state after them.

        Raises:
            ValueError: the plan has another horizon.
        """
        horizon = self.next_horizon(state)
        if plan.ndim != 2 or len(plan) != horizon:
            raise ValueError(f"plan has shape {tuple(plan.shape)}; expected (H, A) with H = {horizon} blocks")
        blocks = plan[: self.replan_every]
        return blocks, RecedingState(state.executed + len(blocks), plan[self.replan_every :])
