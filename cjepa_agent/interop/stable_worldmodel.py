"""Interoperation with stable-worldmodel (version 0.1): our world model behind its solvers, our agent in its Push-T.

``CEMSolver(model=Costable(planner), ...)`` plans with our model; observations of
``GoalObservation(gym.make("swm/PushT-v1"))`` are what ``CJEPAAgent`` takes.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cjepa_agent.latent import Latent
from cjepa_agent.planning import LatentPlanner, PlanStart


class Costable:
    """Costs as stable-worldmodel's sampling solvers ask for them, without gradients.

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
            ValueError: K is not the number of coordinates of the action prior, or there is more than one frame.
        """
        width = self._planner.prior.latent_dim
        if action_candidates.shape[-1] != width:
            raise ValueError(f"got candidates of {action_candidates.shape[-1]} numbers; the action prior has {width}")
        if "plan_start" not in info_dict:
            info_dict["plan_start"] = self._encode(info_dict, "pixels", "proprio")
            # As the agent: slots that can start from those of another frame start from the plan's.
            initial = info_dict["plan_start"].slots
            info_dict["plan_goal"] = self._encode(info_dict, "goal", "goal_proprio", initial)
        start, goal = info_dict["plan_start"], info_dict["plan_goal"]
        actions = self.decode(action_candidates)
        history = Latent(start.slots.unsqueeze(1), start.proprio.unsqueeze(1))
        return self._planner.cost(
            PlanStart(history, actions.new_empty(len(actions), 0, actions.shape[-1])), goal, actions
        )

    def _encode(self, info: dict[str, Any], pixels: str, proprio: str, initial: Tensor | None = None) -> Latent:
        frames, numbers = info[pixels][:, 0], info[proprio][:, 0]
        if frames.shape[1:-3].numel() != 1 or numbers.shape[1:-1].numel() != 1:
            shapes = tuple(info[pixels].shape), tuple(info[proprio].shape)
            raise ValueError(f"{pixels} and {proprio} must be of one frame per environment, got {shapes}")
        device, batch = self._planner.prior.device, len(frames)
        frames, numbers = frames.reshape(batch, *frames.shape[-3:]), numbers.reshape(batch, numbers.shape[-1])
        return self._planner.model.encode(frames.to(device), numbers.to(device), initial)


Observation = dict[str, NDArray[Any]]


class GoalObservation(gym.Wrapper[Observation, NDArray[np.float32], dict[str, NDArray[Any]], NDArray[np.float32]]):
    """Observations of ``swm/PushT-v1`` as those of ``PushT-v0``: pixels and proprioception, now and at the goal.

    Args:
        env: ``gym.make("swm/PushT-v1")``. The bundled encoder has only seen pictures in which the target is drawn.

    Raises:
        ValueError: on ``reset``, if the environment does not tell its goal.
    """

    def __init__(self, env: gym.Env[dict[str, NDArray[Any]], NDArray[np.float32]]) -> None:
        super().__init__(env)
        side = int(env.get_wrapper_attr("render_size"))
        pixels = gym.spaces.Box(0, 255, (side, side, 3), np.uint8)
        proprio = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.observation_space: gym.Space[Observation] = gym.spaces.Dict(  # type: ignore[assignment]
            {"pixels": pixels, "proprio": proprio, "goal_pixels": pixels, "goal_proprio": proprio}
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """As of the environment; ``options`` may give ``state`` and ``goal_state``, seven numbers each."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._observe(observation, info), info

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """As of the environment."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._observe(observation, info), float(reward), terminated, truncated, info

    def _observe(self, observation: dict[str, NDArray[Any]], info: dict[str, Any]) -> Observation:
        if missing := {"goal", "goal_proprio"} - info.keys():
            raise ValueError(f"{self.env} does not tell {sorted(missing)} in info; this wrapper is for swm/PushT-v1")
        frames = {"pixels": self.env.render(), "goal_pixels": info["goal"]}
        numbers = {"proprio": observation["proprio"], "goal_proprio": info["goal_proprio"]}
        return {
            **{name: np.asarray(value, np.uint8) for name, value in frames.items()},
            **{name: np.asarray(value, np.float32) for name, value in numbers.items()},
        }
