"""PushT-v0 as a Gymnasium environment: contract, determinism, copies, wrappers, tasks and rendering."""

import copy
import doctest
import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.env_checker import data_equivalence as same
from shapely.geometry import Point
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

import envs.pusht.env
from envs.pusht import PushTEnv
from envs.pusht.observations import OBS_TYPES
from envs.pusht.physics import PushTPhysics, place

AGENT_LEFT_OF_BLOCK = [150.0, 270.0, 256.0, 256.0, 0.0]


def play(env: gym.Env, actions: np.ndarray) -> list:
    return [env.step(action) for action in actions]


def pushes(seed: int, steps: int) -> np.ndarray:
    """Relative actions that drift to the right, into a block that stands there."""
    noise = np.random.default_rng(seed).normal(0, 0.15, (steps, 2))
    return (noise + (0.12, 0.0)).clip(-1, 1).astype(np.float32)


@pytest.mark.parametrize("task", ["coverage", "goal_state"])
@pytest.mark.parametrize("obs_type", OBS_TYPES)
def test_checkers_of_gymnasium_and_stable_baselines3_do_not_warn(obs_type: str, task: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("PushT-v0", obs_type=obs_type, task=task, render_mode="rgb_array").unwrapped)
        sb3_check_env(gym.make("PushT-v0", obs_type=obs_type, task=task), warn=True)


@pytest.mark.parametrize("control", ["relative", "absolute"])
@pytest.mark.parametrize("obs_type", OBS_TYPES)
def test_observations_stay_in_their_space_under_extreme_actions(obs_type: str, control: str) -> None:
    env = PushTEnv(obs_type, control=control, observation_width=16, observation_height=12)
    rng = np.random.default_rng(0)
    for seed in range(3):
        observation, _ = env.reset(seed=seed)
        for _ in range(40):
            assert env.observation_space.contains(observation)
            corner = rng.choice([-1.0, 1.0], 2)
            observation, *_ = env.step(corner if control == "relative" else 256 + 256 * corner)


@pytest.mark.parametrize("obs_type", ["state", "environment_state_agent_pos"])
def test_observations_of_a_block_squeezed_out_of_the_arena_stay_in_their_space(obs_type: str) -> None:
    env = PushTEnv(obs_type, control="absolute")
    env.reset(options={"state": [250, 256, 120, 256, -np.pi / 2]})
    outside = False
    for _ in range(40):
        observation, *_, info = env.step([0, 256])
        assert env.observation_space.contains(observation)
        outside |= bool(info["block_pose"][:2].min() < 0)
    assert outside


def test_a_reset_that_finds_no_goal_leaves_no_episode_behind(monkeypatch) -> None:
    def none(*_: object) -> None:
        raise RuntimeError("no goal fits")

    env = PushTEnv(task="goal_state")
    env.reset(seed=0)
    monkeypatch.setattr(envs.pusht.env, "sample_goal", none)
    with pytest.raises(RuntimeError, match="no goal fits"):
        env.reset(seed=1)
    with pytest.raises(gym.error.ResetNeeded):
        env.step([0.0, 0.0])


def test_two_copies_are_bit_identical() -> None:
    first, second = (gym.make("PushT-v0", task="goal_state", segmentation=True) for _ in range(2))
    assert same(first.reset(seed=3), second.reset(seed=3), exact=True)
    for action in pushes(3, 50):
        assert same(first.step(action), second.step(action), exact=True)


def test_another_seed_gives_another_start() -> None:
    env = PushTEnv("state")
    assert not np.array_equal(env.reset(seed=0)[0], env.reset(seed=1)[0])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
@pytest.mark.parametrize("shape", ["T", "L"])
def test_copy_in_mid_push_goes_on_like_the_original(duplicate, shape: str) -> None:
    env = gym.make("PushT-v0", task="goal_state", render_mode="rgb_array")
    env.reset(seed=5, options={"state": AGENT_LEFT_OF_BLOCK, "variation": {"shape": shape}})
    before = play(env, pushes(5, 12))
    assert before[-1][-1]["n_contacts"] == 1, "the copy must be taken during contact"
    twin = duplicate(env)
    assert same(play(env, pushes(6, 20)), play(twin, pushes(6, 20)), exact=True)
    assert same(env.reset(), twin.reset(), exact=True)
    assert np.array_equal(env.render(), twin.render())


def test_reset_forgets_the_past() -> None:
    fresh, used = PushTEnv(), PushTEnv()
    used.reset(seed=0, options={"state": AGENT_LEFT_OF_BLOCK, "variation": {"shape": "square", "scale": 20}})
    play(used, pushes(0, 20))
    for env in (fresh, used):
        env.reset(seed=1, options={"state": AGENT_LEFT_OF_BLOCK})
    assert same(play(fresh, pushes(1, 20)), play(used, pushes(1, 20)), exact=True)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_make_vec(mode: str) -> None:
    vector = gym.make_vec("PushT-v0", num_envs=2, vectorization_mode=mode)
    single = gym.make("PushT-v0")
    try:
        observation, _ = vector.reset(seed=[7, 8])
        assert np.array_equal(observation["pixels"][1], single.reset(seed=8)[0]["pixels"])
        actions = np.full((2, 2), 0.3, np.float32)
        step = vector.step(actions)
        assert np.array_equal(step[0]["proprio"][1], single.step(actions[1])[0]["proprio"])
        assert step[4]["state"].shape == (2, 7)
    finally:
        vector.close()


@pytest.mark.parametrize("kind", [DummyVecEnv, SubprocVecEnv])
def test_stable_baselines3_vector_environments(kind: type, request: pytest.FixtureRequest) -> None:
    if kind is SubprocVecEnv:
        request.getfixturevalue("installation")  # its workers are fresh interpreters
    vector = make_vec_env("PushT-v0", n_envs=2, seed=0, vec_env_cls=kind)
    try:
        assert vector.reset()["goal_pixels"].shape == (2, 96, 96, 3)
        observation, reward, done, infos = vector.step(np.zeros((2, 2), np.float32))
        assert observation["proprio"].shape == (2, 4) and reward.shape == done.shape == (2,)
        assert "is_success" in infos[1]
    finally:
        vector.close()


def test_record_video(tmp_path) -> None:
    pytest.importorskip("moviepy", reason="RecordVideo writes its files with moviepy")
    env = gym.make("PushT-v0", render_mode="rgb_array", visualization_width=64, visualization_height=64)
    env = gym.wrappers.RecordVideo(
        env, str(tmp_path / "videos"), episode_trigger=lambda episode: True, disable_logger=True
    )
    env.reset(seed=0)
    play(env, pushes(0, 5))
    env.close()
    (video,) = tmp_path.glob("videos/*.mp4")
    assert video.stat().st_size > 500


def test_time_limit_is_300_steps() -> None:
    env = gym.make("PushT-v0", obs_type="state", task="goal_state")
    state = [100.0, 100, 300, 300, 0]
    env.reset(seed=0, options={"state": state, "goal_state": [400.0, 400, 100, 300, 3]})
    truncated = [step[3] for step in play(env, np.zeros((300, 2), np.float32))]
    assert truncated.index(True) == 299


def test_docstring_examples() -> None:
    assert doctest.testmod(envs.pusht.env).attempted >= 8
    assert doctest.testmod(envs.pusht.env).failed == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"obs_type": "keypoints"}, "obs_type 'keypoints'.*'goal'"),
        ({"control": "velocity"}, "control 'velocity'.*'relative'"),
        ({"task": "push"}, "task 'push'.*'coverage'"),
        ({"success_rule": "lenient"}, "success_rule 'lenient'.*'strict'"),
        ({"render_mode": "ansi"}, "render_mode 'ansi'.*'human'"),
        ({"observation_width": 0}, "observation_width must be a whole number of px"),
        ({"observation_height": -1}, "observation_height must be a whole number of px"),
        ({"visualization_width": 64.0}, "visualization_width must be a whole number of px"),
    ],
)
def test_invalid_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PushTEnv(**arguments)


@pytest.mark.parametrize("action", [[0.0], [0.0, np.nan], [0.0, np.inf], [[0.0, 0.0]], "left", None])
def test_invalid_actions_leave_the_episode_alone(action) -> None:
    env, untouched = PushTEnv("state"), PushTEnv("state")
    env.reset(seed=0)
    untouched.reset(seed=0)
    with pytest.raises(ValueError, match="action must be 2"):
        env.step(action)
    assert same(env.step([0.5, 0.5]), untouched.step([0.5, 0.5]), exact=True)


def test_step_and_render_before_reset_are_refused() -> None:
    env = PushTEnv(render_mode="rgb_array")
    for call in (lambda: env.step([0.0, 0.0]), env.render, env.get_state):
        with pytest.raises(gym.error.ResetNeeded, match="call reset"):
            call()


def test_relative_target_is_agent_plus_100_px_per_unit() -> None:
    relative, absolute = PushTEnv("state"), PushTEnv("state", control="absolute")
    state = [200.0, 220, 400, 400, 0]
    for env in (relative, absolute):
        env.reset(options={"state": state})
    assert np.array_equal(relative.step([0.5, -0.25])[0], absolute.step([250.0, 195.0])[0])


@pytest.mark.parametrize(("control", "wild", "bounded"), [("relative", 3.0, 1.0), ("absolute", 900.0, 512.0)])
def test_actions_are_clipped_to_their_space(control: str, wild: float, bounded: float) -> None:
    first, second = (PushTEnv("state", control=control) for _ in range(2))
    first.reset(seed=0)
    second.reset(seed=0)
    assert same(first.step([wild, -wild]), second.step([bounded, first.action_space.low[1]]), exact=True)


def test_coverage_task_rewards_and_terminates() -> None:
    env = PushTEnv("state", control="absolute")
    away = [50.0, 50.0]
    for block, success in (([256, 256, np.pi / 4], True), ([262, 256, np.pi / 4], False), ([100, 400, 0], False)):
        env.reset(options={"state": [*away, *block]})
        _, reward, terminated, _, info = env.step(away)
        assert reward == pytest.approx(min(info["coverage"] / 0.95, 1.0))
        assert terminated is success is info["is_success"]
    assert info["coverage"] == reward == 0.0


def test_coverage_follows_the_goal_pose() -> None:
    env = PushTEnv("goal")
    pose = [150.0, 200.0, -2.0]
    observation, info = env.reset(options={"state": [400, 400, *pose], "goal_pose": pose})
    assert info["coverage"] == pytest.approx(1.0) and info["goal_pose"].tolist() == pose
    assert np.array_equal(observation["pixels"], observation["goal_pixels"])
    _, info = env.reset(seed=0, options={"goal_state": [400, 400, *pose]})
    assert info["goal_pose"].tolist() == pose
    _, info = env.reset(options={"state": [400, 400, *pose]})
    assert info["goal_pose"].tolist() == [256, 256, np.pi / 4] and info["coverage"] < 0.2


def test_goal_agent_of_the_coverage_task_keeps_clear_of_the_block() -> None:
    env = PushTEnv(segmentation=True)
    _, info = env.reset(options={"state": [256, 300, 120, 120, 0]})  # right where the block should go
    assert np.linalg.norm(info["goal_state"][:2] - [256, 300]) > 5
    _, goal_info = env.reset(options={"state": info["goal_state"]})
    agent = (goal_info["segmentation"] == 3).sum() * (512 / 96) ** 2
    assert agent > 0.8 * np.pi * 15**2, "the agent's disc must be in full view"
    _, info = env.reset(options={"state": [100, 450, 120, 120, 0]})
    assert info["goal_state"].tolist() == [100, 450, 256, 256, np.pi / 4, 0, 0]


@pytest.mark.parametrize(("agent", "block"), [((2, 320), (10, 256)), ((510, 300), (500, 300))])
def test_the_goal_agent_stays_in_the_window(agent: tuple[int, int], block: tuple[int, int]) -> None:
    env = PushTEnv()
    observation, info = env.reset(options={"state": [*agent, 256, 256, 0], "goal_pose": (*block, 0.0)})
    assert env.observation_space.contains(observation)
    goal = info["goal_state"]
    outline = place(PushTPhysics().outline, goal[2:5])
    assert outline.distance(Point(goal[:2])) == pytest.approx(15, abs=1e-6)


def test_goal_observation_shows_the_goal_state() -> None:
    env = PushTEnv(task="goal_state")
    goal = [120.0, 140, 300, 310, 1.0, 30.0, -20.0]
    observation, info = env.reset(seed=0, options={"goal_state": goal})
    assert info["goal_state"].tolist() == goal
    assert observation["goal_proprio"].tolist() == [120, 140, 30, -20]
    at_goal, _ = env.reset(options={"state": goal, "goal_state": goal})
    assert np.array_equal(at_goal["pixels"], observation["goal_pixels"])
    observation["goal_pixels"][:] = 0
    assert env.step([0, 0])[0]["goal_pixels"].any(), "observations must not share memory with the environment"


def test_goal_state_reward_is_bounded_and_zero_at_the_goal() -> None:
    env = PushTEnv("state", task="goal_state", control="absolute")
    state = [100.0, 100, 300, 300, 0.5]
    env.reset(options={"state": state, "goal_state": state})
    assert env.step(state[:2])[1] == pytest.approx(0.0, abs=1e-9)
    env.reset(options={"state": state, "goal_state": [500, 500, 10, 490, 0.5 + np.pi]})
    assert -1.0 <= env.step(state[:2])[1] < -0.9


@pytest.mark.parametrize("rule", ["released", "moderate", "strict"])
def test_sampled_goals_are_near_and_not_yet_reached(rule: str) -> None:
    env = PushTEnv("state", task="goal_state", success_rule=rule)
    for seed in range(20):
        _, info = env.reset(seed=seed)
        start, goal = info["state"], info["goal_state"]
        assert 20 <= np.linalg.norm(start[2:4] - goal[2:4]) <= 80
        assert abs(start[4] - goal[4]) <= np.pi / 4 and not goal[5:].any()
        assert not env.rule.satisfied(start, goal)


def test_success_counter_starts_anew_with_each_goal() -> None:
    env = PushTEnv("state", task="goal_state", success_rule="strict", control="absolute")
    state = [100.0, 100, 300, 300, 0.5]
    for _ in range(2):
        _, info = env.reset(options={"state": state, "goal_state": state})
        assert info["is_success"] is False
        assert [env.step(state[:2])[2] for _ in range(3)] == [False, False, True]
        env.reset(options={"state": state, "goal_state": state})
        env.step(state[:2])


def test_render_marks_the_last_target() -> None:
    env = PushTEnv(render_mode="rgb_array", control="absolute", visualization_width=256, visualization_height=128)
    env.reset(seed=0)
    assert not (env.render() == (255, 0, 0)).all(-1).any()
    env.step([128.0, 384.0])
    frame = env.render()
    rows, columns = np.nonzero((frame == (255, 0, 0)).all(-1))
    assert frame.shape == (128, 256, 3)
    assert (rows.mean(), columns.mean()) == pytest.approx((96, 64), abs=1)


def test_human_mode_opens_and_closes_a_window(monkeypatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    import pygame

    env = gym.make("PushT-v0", render_mode="human", visualization_width=128, visualization_height=128)
    env.reset(seed=0)
    env.step(np.zeros(2, np.float32))
    assert env.render() is None
    assert pygame.display.get_surface().get_size() == (128, 128)
    shown = pygame.surfarray.array3d(pygame.display.get_surface())
    assert (shown == (255, 255, 255)).all(-1).mean() > 0.5
    copy.deepcopy(env)
    env.close()
    env.close()
    assert not pygame.display.get_init()


def test_two_environments_take_turns_in_the_window(monkeypatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    import pygame

    first, second = (PushTEnv(render_mode="human", visualization_width=w, visualization_height=32) for w in (32, 64))
    for env, width in ((first, 32), (second, 64), (first, 32)):
        env.reset(seed=0)
        assert pygame.display.get_surface().get_size() == (width, 32)
    first.close()
    second.step([0.0, 0.0])
    assert pygame.display.get_surface().get_size() == (64, 32)
    second.close()
    assert not pygame.display.get_init()


def test_render_without_a_mode_warns() -> None:
    env = PushTEnv()
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None
