"""What it means to be at the goal: costs on predicted slots and proprioception, without any network."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class GoalObjective:
    """Distance of predicted steps to a goal: slots plus proprioception.

    Per step: ``sum_s weight_s * mean_d (slot_sd - goal_sd)^2 + proprio_weight * mean_p (proprio_p - goal_p)^2``,
    then reduced over the H steps. With the defaults this is the cost of C-JEPA and DINO-WM: mean squared error over
    slots and their dimensions plus mean squared error of proprioception, at the last step.

    Attributes:
        slot_weights: one weight >= 0 per goal slot, used as they are; None weights each of the S slots 1 / S.
        proprio_weight: weight >= 0 of the proprioception term.
        path: which predicted steps count: the ``"last"``, the ``"mean"`` of all, or the ``"best"`` (lowest).
        match: ``match(slots (..., S, D), goal (..., S, D)) -> (..., S)``, for each goal slot the index of the
            predicted slot that stands for it; None compares slot by slot in the order they come.
        proprio_dims: which numbers of proprioception count; None means all.

    Raises:
        ValueError: a weight is negative or not finite, the path unknown, or ``proprio_dims`` empty or negative.
    """

    slot_weights: tuple[float, ...] | None = None
    proprio_weight: float = 1.0
    path: Literal["last", "mean", "best"] = "last"
    match: Callable[[Tensor, Tensor], Tensor] | None = None
    proprio_dims: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for weight in (*(self.slot_weights or ()), self.proprio_weight):
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"got weight {weight}; expected finite weights >= 0")
        if self.proprio_dims is not None and min(self.proprio_dims, default=-1) < 0:
            raise ValueError(f"got proprio_dims {self.proprio_dims}; expected indices >= 0, or None for all")
        if self.path not in ("last", "mean", "best"):
            raise ValueError(f"path is {self.path!r}; expected 'last', 'mean' or 'best'")

    def __call__(
        self, slots: Tensor, proprio: Tensor | None, goal_slots: Tensor, goal_proprio: Tensor | None
    ) -> Tensor:
        """Cost of each candidate.

        Args:
            slots: (B, N, H, S, D) predicted slots after each action block.
            proprio: (B, N, H, P) predicted proprioception, in whatever units the goal has.
            goal_slots: (B, S, D).
            goal_proprio: (B, P); None leaves the proprioception term out.

        Returns:
            (B, N), lower is better.

        Raises:
            ValueError: shapes do not fit, or only the goal has proprioception.
        """
        self._check(slots, proprio, goal_slots, goal_proprio)
        if self.path == "last":
            slots = slots[:, :, -1:]
        cost = self._slot_cost(slots, goal_slots[:, None, None])
        if goal_proprio is not None and proprio is not None and self.proprio_weight > 0:
            error = proprio[:, :, -slots.shape[2] :] - goal_proprio[:, None, None]
            if self.proprio_dims is not None:
                # One by one: an index made of a list would be copied to the device in every iteration of a solve.
                error = torch.stack([error[..., index] for index in self.proprio_dims], dim=-1)
            cost = cost + self.proprio_weight * error.square().mean(-1)
        if self.path == "best":
            return cost.amin(2)
        return cost.mean(2)

    def _slot_cost(self, slots: Tensor, goal: Tensor) -> Tensor:
        """(B, N, H) from (B, N, H, S, D) and (B, 1, 1, S, D)."""
        if self.match is not None:
            slots = slots.take_along_dim(self.match(slots, goal.expand_as(slots)).unsqueeze(-1), dim=-2)
        n_slots = slots.shape[-2]
        weights = (1 / n_slots,) * n_slots if self.slot_weights is None else self.slot_weights
        cost = slots.new_zeros(slots.shape[:3])
        for index, weight in enumerate(weights):
            if weight > 0:
                cost = cost + weight * (slots[..., index, :] - goal[..., index, :]).square().mean(-1)
        return cost

    def _check(self, slots: Tensor, proprio: Tensor | None, goal_slots: Tensor, goal_proprio: Tensor | None) -> None:
        if slots.ndim != 5 or goal_slots.shape != (slots.shape[0], *slots.shape[3:]):
            raise ValueError(
                f"got slots {tuple(slots.shape)} and goal slots {tuple(goal_slots.shape)}; "
                f"expected (B, N, H, S, D) and (B, S, D)"
            )
        if self.slot_weights is not None and len(self.slot_weights) != slots.shape[3]:
            raise ValueError(
                f"got {len(self.slot_weights)} slot weights for {slots.shape[3]} slots; give one weight per slot"
            )
        if goal_proprio is None or self.proprio_weight == 0:
            return
        if proprio is None:
            raise ValueError("the goal has proprioception but the prediction has none; leave goal_proprio out")
        if proprio.shape[:3] != slots.shape[:3] or goal_proprio.shape != (proprio.shape[0], *proprio.shape[3:]):
            raise ValueError(
                f"got proprio {tuple(proprio.shape)} and goal proprio {tuple(goal_proprio.shape)} beside slots "
                f"{tuple(slots.shape)}; expected (B, N, H, P) and (B, P)"
            )
        if self.proprio_dims is not None and not all(0 <= index < proprio.shape[3] for index in self.proprio_dims):
            raise ValueError(
                f"proprio_dims {self.proprio_dims} are not all among {proprio.shape[3]} numbers of proprio"
            )
