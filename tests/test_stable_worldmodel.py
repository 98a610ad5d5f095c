"""Interoperation with stable-worldmodel: tests that need it skip where it is not installed."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tiny_model import tiny_checkpoint

from cjepa_agent.agent import CJEPAAgent
from cjepa_agent.interop.stable_worldmodel import Costable, GoalObservation
from cjepa_agent.latent import Latent
from cjepa_agent.manifest import evaluation_pairs
from cjepa_agent.planning import LatentPlanner, ObjectiveSettings, PlannerSettings, PlanStart


class Peer(gym.Env[dict[str, Any], np.ndarray]):
    """What the wrapper reads of ``swm/PushT-v1``."""

    render_size = 8
    observation_space = gym.spaces.Dict({"proprio": gym.spaces.Box(-512, 512, (4,), np.float64)})
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, tells: bool = True) -> None:
        self.tells, self.steps = tells, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        self.steps = 0
        return self._state()

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        self.steps += 1
        state, info = self._state()
        return state, -1, False, False, info

    def render(self) -> np.ndarray:  # type: ignore[override]
        return np.full((8, 8, 3), self.steps, np.uint8)

    def _state(self) -> tuple[dict, dict]:
        told = {"goal": np.full((8, 8, 3), 99, np.uint8), "goal_proprio": np.arange(4.0)} if self.tells else {}
        return {"proprio": np.full(4, self.steps, np.float64), "state": np.zeros(7)}, told


def test_observations_are_those_of_our_environment() -> None:
    env = GoalObservation(Peer())
    observation, _ = env.reset()
    assert env.observation_space.contains(observation)
    assert set(observation) == set(gym.make("PushT-v0").observation_space)
    observation, reward, *_ = env.step(np.zeros(2, np.float32))
    assert env.observation_space.contains(observation) and isinstance(reward, float)
    assert (observation["pixels"] == 1).all() and (observation["goal_pixels"] == 99).all()
    assert observation["goal_proprio"].tolist() == [0, 1, 2, 3]


def test_other_environments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"does not tell \['goal', 'goal_proprio'\]"):
        GoalObservation(Peer(tells=False)).reset()


def test_costs_are_those_of_the_agents_planner() -> None:
    checkpoint, rng = tiny_checkpoint(), np.random.default_rng(0)
    planner = LatentPlanner(checkpoint.model, checkpoint.prior, PlannerSettings(), ObjectiveSettings())
    pixels = torch.from_numpy(rng.integers(0, 256, (2, 2, 1, 64, 64, 3), np.uint8))
    proprio = torch.from_numpy(rng.uniform(100, 400, (2, 2, 1, 4)))
    info: dict[str, Any] = {"pixels": pixels[0], "proprio": proprio[0], "goal": pixels[1], "goal_proprio": proprio[1]}
    info = {name: value.unsqueeze(1).expand(-1, 3, *value.shape[1:]) for name, value in info.items()}
    whitened = torch.randn(2, 3, 4, planner.prior.latent_dim, generator=torch.Generator().manual_seed(0))
    costs = Costable(planner).get_cost(dict(info), whitened)
    start, goal = (checkpoint.model.encode(pixels[i][:, 0], proprio[i][:, 0]) for i in range(2))
    history = Latent(start.slots.unsqueeze(1), start.proprio.unsqueeze(1))
    actions = planner.prior.decode(whitened)
    with torch.no_grad():
        expected = planner.cost(PlanStart(history, actions.new_empty(2, 0, actions.shape[-1])), goal, actions)
    assert costs.shape == (2, 3) and torch.equal(costs, expected)
    longer = {**info, "pixels": info["pixels"].expand(-1, -1, 2, -1, -1, -1)}
    with pytest.raises(ValueError, match="must be of one frame per environment"):
        Costable(planner).get_cost(longer, whitened)


def test_our_agent_acts_in_their_environment() -> None:
    pytest.importorskip("stable_worldmodel.envs", reason="needs the extra stable-worldmodel")
    ((_, _, pair),) = evaluation_pairs("released", "test", (0,), 1)
    agent = CJEPAAgent.from_pretrained(planner=PlannerSettings.preset("fast"), objective="released")
    env = GoalObservation(gym.make("swm/PushT-v1"))
    options = {"state": np.array(pair.state), "goal_state": np.array(pair.goal_state)}
    observation, _ = env.reset(seed=0, options=options)
    state, solved = None, False
    for _ in range(50):
        action, state = agent.predict(observation, state)
        observation, _, solved, _, _ = env.step(action)
        if solved:
            break
    assert solved
