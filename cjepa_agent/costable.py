"""Our world model behind stable-worldmodel's solvers (version 0.1): ``CEMSolver(model=Costable(planner), ...)``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cjepa_agent.latent import Latent
from cjepa_agent.planning import LatentPlanner, PlanStart


class Costable:
    """Costs as stable-worldmodel's solvers ask for them.

    Candidates are whitened action blocks, of standard deviation 1 in the training data, as those solvers draw them;
    ``decode`` gives environment units.

    Args:
        planner: world model, action prior and objective.
    """

    def __init__(self, planner: LatentPlanner) -> None:
        self._planner = planner

    def decode(self, candidates: Tensor) -> Tensor:
        """Whitened (..., K) to action blocks (..., A) in environment units, within the bounds."""
        return self._planner.prior.decode(candidates)

    @torch.no_grad()
    def get_cost(self, info_dict: dict[str, Any], action_candidates: Tensor) -> Tensor:
        """Costs (B, N).

        Args:
            info_dict: ``pixels`` and ``goal``, (B, N, ..., H, W, 3) uint8, and ``proprio`` and ``goal_proprio``,
                (B, N, ..., P), all candidates alike, with one frame of history at most. What they are encoded to is
                added, so that the next call of the same solve finds it.
            action_candidates: (B, N, H, K).

        Raises:
            ValueError: K is not the number of coordinates of the action prior.
        """
        width = self._planner.prior.latent_dim
        if action_candidates.shape[-1] != width:
            raise ValueError(f"got candidates of {action_candidates.shape[-1]} numbers; the action prior has {width}")
        if "plan_start" not in info_dict:
            info_dict["plan_start"] = self._encode(info_dict, "pixels", "proprio")
            info_dict["plan_goal"] = self._encode(info_dict, "goal", "goal_proprio")
        start, goal = info_dict["plan_start"], info_dict["plan_goal"]
        actions = self.decode(action_candidates)
        history = Latent(start.slots.unsqueeze(1), start.proprio.unsqueeze(1))
        return self._planner.cost(
            PlanStart(history, actions.new_empty(len(actions), 0, actions.shape[-1])), goal, actions
        )

    def _encode(self, info: dict[str, Any], pixels: str, proprio: str) -> Latent:
        frames, numbers = info[pixels][:, 0], info[proprio][:, 0]
        device, batch = self._planner.prior.device, len(frames)
        frames, numbers = frames.reshape(batch, *frames.shape[-3:]), numbers.reshape(batch, numbers.shape[-1])
        return self._planner.model.encode(frames.to(device), numbers.to(device))
