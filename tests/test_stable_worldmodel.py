"""Interoperation with stable-worldmodel: tests that need it skip where it is not installed."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from cjepa_agent.agent import CJEPAAgent
from cjepa_agent.interop.stable_worldmodel import GoalObservation
from cjepa_agent.manifest import evaluation_pairs
from cjepa_agent.planning import PlannerSettings


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
