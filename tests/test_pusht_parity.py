"""PushT-v0 against gym-pusht 0.1.8: spaces, observations, starts, trajectories and pictures."""

import warnings

import gymnasium as gym
import numpy as np
import pymunk
import pytest

from envs.pusht import PushTEnv
from envs.pusht.observations import OBS_TYPES

if hasattr(pymunk.Space, "on_collision"):
    pytest.skip(f"gym-pusht 0.1.8 needs pymunk < 7, found {pymunk.version}", allow_module_level=True)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("gym_pusht", reason="gym-pusht 0.1.8 is not installed")

SHARED = [obs_type for obs_type in OBS_TYPES if obs_type != "goal"]


def peer(obs_type: str = "state", **arguments) -> gym.Env:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gym.make("gym_pusht/PushT-v0", obs_type=obs_type, **arguments).unwrapped


def put(env: gym.Env, state: np.ndarray) -> None:
    """Put gym-pusht exactly into ``state``: angle first, and without the physics step of its own reset."""
    env.reset(seed=0)
    env._setup()
    env.agent.position = state[:2].tolist()
    env.block.angle = float(state[4])
    env.block.position = state[2:4].tolist()
    for body in (env.agent, env.block):
        env.space.reindex_shapes_for_body(body)


def chase(rng: np.random.Generator, info: dict) -> np.ndarray:
    """An absolute target near where the block is now, so that the agent keeps running into it."""
    return (info["block_pose"][:2] + rng.normal(0, 60, 2)).clip(30, 482).astype(np.float32)


@pytest.mark.parametrize("seed", range(6))
def test_trajectories_agree_over_100_steps_with_contact(seed: int) -> None:
    ours, theirs = PushTEnv("state", control="absolute"), peer()
    _, info = ours.reset(seed=seed)
    state, rng = info["state"], np.random.default_rng(seed)
    put(theirs, state)
    worst, contacts = 0.0, 0
    for _ in range(100):
        action = chase(rng, info)
        observation, reward, terminated, _, info = ours.step(action)
        expected, their_reward, their_end, _, their_info = theirs.step(action)
        difference = np.abs(info["state"][:5] - expected)
        difference[4] = abs(np.angle(np.exp(1j * difference[4])))
        worst = max(worst, difference.max(), np.abs(info["vel_agent"] - their_info["vel_agent"]).max())
        # gym-pusht lets observations leave their space.
        inside = expected.clip(ours.observation_space.low, ours.observation_space.high)
        assert observation[:4] == pytest.approx(inside[:4], abs=1e-6)
        assert info["n_contacts"] == their_info["n_contacts"]
        assert reward == pytest.approx(their_reward, abs=1e-6) and terminated == their_end
        assert info["coverage"] == pytest.approx(their_info["coverage"], abs=1e-6)
        contacts += info["n_contacts"]
    moved = np.abs(info["block_pose"] - state[2:5]).max()
    assert contacts >= 10 and moved > 20, "the trajectory must test contact"
    assert worst < 1e-6


@pytest.mark.parametrize("control", ["relative", "absolute"])
@pytest.mark.parametrize("obs_type", SHARED)
def test_spaces_and_observations_agree(obs_type: str, control: str) -> None:
    ours, theirs = PushTEnv(obs_type, control=control), peer(obs_type)
    assert ours.observation_space == theirs.observation_space
    if control == "absolute":
        assert ours.action_space == theirs.action_space
    state = np.array([100.0, 120.0, 300.0, 280.0, -2.5])
    observation, _ = ours.reset(options={"state": state})
    put(theirs, state)
    expected = theirs.get_obs()
    if obs_type == "state":
        np.testing.assert_allclose(observation, expected, atol=1e-9)
    elif obs_type == "environment_state_agent_pos":
        for key in expected:
            np.testing.assert_allclose(observation[key], expected[key], atol=1e-9)
    elif obs_type == "pixels_agent_pos":
        np.testing.assert_allclose(observation["agent_pos"], expected["agent_pos"], atol=1e-9)


def test_equal_seeds_give_equal_starts_unless_they_overlap() -> None:
    ours, theirs = PushTEnv("state"), peer()
    equal = []
    for seed in range(30):
        start, expected = ours.reset(seed=seed)[0], theirs.reset(seed=seed)[0]
        equal.append(np.allclose(start, expected, atol=1e-6))
    assert np.mean(equal) > 0.8


@pytest.mark.parametrize(("size", "bound"), [(96, 2.0), (224, 2.0)])
def test_pictures_are_close(size: int, bound: float) -> None:
    shape = {"observation_width": size, "observation_height": size}
    ours, theirs = PushTEnv("pixels", **shape), peer("pixels", **shape)
    differences, changes, last = [], [], None
    for seed in range(8):
        frame, info = ours.reset(seed=seed)
        put(theirs, info["state"])
        expected = theirs.get_obs()
        differences.append(np.abs(frame.astype(int) - expected).mean())
        if last is not None:
            changes.append(np.abs(frame.astype(int) - last).mean())
        last = frame
    assert max(differences) < bound
    assert min(changes) > bound, "the bound must tell states apart"
