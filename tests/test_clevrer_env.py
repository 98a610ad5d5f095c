"""CLEVRER-v0 as a Gymnasium environment: contract, interventions, replays and copies."""

import copy
import doctest
import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
from clevrer_scenes import chain
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.env_checker import data_equivalence as same
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import envs
import envs.clevrer.env
from envs.clevrer import CLEVREREnv, simulate
from envs.clevrer.annotation import annotate

envs.register_envs()  # an installation may still hold an older list
SCENE = {"scene": chain()}


def small(**arguments) -> CLEVREREnv:
    return CLEVREREnv("ground_truth", observation_width=16, observation_height=12, **arguments)


def play(env: gym.Env, actions: list[int]) -> list:
    return [env.step(action) for action in actions]


@pytest.mark.parametrize("obs_type", ["pixels", "ground_truth"])
def test_checkers_of_gymnasium_and_stable_baselines3_do_not_warn(obs_type: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make("CLEVRER-v0", obs_type=obs_type, render_mode="rgb_array", visualization_height=64)
        check_env(env.unwrapped)
        sb3_check_env(gym.make("CLEVRER-v0", obs_type=obs_type), warn=True)


def test_an_episode_is_a_video() -> None:
    env = small()
    _, info = env.reset(seed=0)
    assert info["frame"] == 0
    steps = play(env, [0] * 127)
    assert [step[4]["frame"] for step in steps] == list(range(1, 128))
    assert [step[3] for step in steps] == [False] * 126 + [True]
    assert not any(step[2] for step in steps) and {step[1] for step in steps} == {0.0}
    assert all(env.observation_space.contains(step[0]) for step in steps)
    with pytest.raises(gym.error.ResetNeeded, match="ended with frame 127"):
        env.step(0)


def test_hidden_frames_can_be_watched() -> None:
    env = small(frames=180)
    env.reset(options=SCENE)
    assert [step[3] for step in play(env, [0] * 179)] == [False] * 178 + [True]
    assert env.trajectory.location.shape[0] == 180


def test_a_scene_replays_exactly_with_and_without_objects() -> None:
    env, other = small(), small()
    env.reset(seed=4)
    first = play(env, [0] * 30)
    for start in (env.scene, annotate(env.trajectory)):
        other.reset(options={"scene": start})
        assert same(play(other, [0] * 30), first, exact=True)
    other.reset(options={"scene": env.scene, "remove": [0, 2]})
    assert annotate(other.trajectory) == annotate(simulate(env.scene, {0: 0, 2: 0}))
    observation, info = other.reset(options={"scene": env.scene})
    assert observation["states"].reshape(6, 8)[:, 0].sum() == len(env.scene.objects)


def test_removing_takes_effect_at_the_next_frame() -> None:
    env = small()
    before, info = env.reset(options=SCENE)
    assert info["action_mask"].tolist() == [1, 1, 1, 1, 1, 1, 0]
    play(env, [0] * 9)
    observation, *_, info = env.step(3)
    assert info["action_mask"].tolist() == [1, 1, 1, 0, 1, 1, 0]
    assert 3 in before["segmentation"] and 3 not in observation["segmentation"]
    assert not observation["states"].reshape(6, 8)[2].any()
    assert env.trajectory.present[:, 2].sum() == 10
    assert not any(2 in collision.ids for collision in env.trajectory.collisions)
    unchanged = env.trajectory
    play(env, [3, 6])
    assert env.trajectory is unchanged, "what is not there cannot be removed"


def test_two_removals_add_up() -> None:
    env = small()
    env.reset(options=SCENE)
    play(env, [1, 0, 2])
    expected = simulate(chain(), {0: 1, 1: 3})
    assert annotate(env.trajectory) == annotate(expected)


def test_info_lists_the_events_of_its_frame() -> None:
    env = small()
    env.reset(options=SCENE)
    seen = [event for step in play(env, [0] * 127) for event in step[4]["events"]]
    frames = {c.frame for c in env.trajectory.collisions}
    assert {event.frame for event in seen if event.kind == "collision"} == frames
    assert {event.kind for event in seen} >= {"collision"}


def test_states_are_those_of_the_trajectory() -> None:
    env = small()
    env.reset(options=SCENE)
    states = play(env, [0] * 70)[-1][0]["states"].reshape(6, 8)
    course = env.trajectory
    np.testing.assert_allclose(states[:5, 2:4], course.location[70, :, :2], rtol=1e-6)
    np.testing.assert_allclose(states[:5, 5:7], course.velocity[70, :, :2], rtol=1e-6)
    np.testing.assert_allclose(np.cos(states[:5, 4]), np.cos(course.orientation[70, :, 2]), atol=1e-5)
    np.testing.assert_allclose(states[:5, 7], course.angular_velocity[70, :, 2], rtol=1e-6)
    assert states[:5, 1].tolist() == course.inside[70].tolist() and not states[5].any()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_goes_on_like_the_original(duplicate) -> None:
    env = small(render_mode="rgb_array", visualization_width=48, visualization_height=32)
    env.reset(seed=5)
    play(env, [0, 0, 2, 0])
    twin = duplicate(env)
    assert same(play(env, [0, 1, 0]), play(twin, [0, 1, 0]), exact=True)
    assert np.array_equal(env.render(), twin.render())
    assert same(env.reset(), twin.reset(), exact=True)


def test_seeds() -> None:
    first, again, other = small(), small(), small()
    assert same(first.reset(seed=1), again.reset(seed=1), exact=True)
    assert not same(first.reset(), other.reset(seed=2), exact=True)
    assert first.scene != again.scene


def test_vector_environments() -> None:
    vector = gym.make_vec("CLEVRER-v0", num_envs=2, vectorization_mode="sync")
    observation, info = vector.reset(seed=[7, 8])
    single = gym.make("CLEVRER-v0")
    assert np.array_equal(observation[1], single.reset(seed=8)[0])
    observation, _, _, _, info = vector.step(np.array([0, 1]))
    assert np.array_equal(observation[1], single.step(1)[0]) and info["frame"].tolist() == [1, 1]


def test_docstring_examples() -> None:
    result = doctest.testmod(envs.clevrer.env)
    assert result.attempted >= 8 and result.failed == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"obs_type": "state"}, "obs_type 'state'.*'ground_truth'"),
        ({"frames": 181}, "frames must be a whole number from 2 to 180, got 181"),
        ({"frames": 1}, "frames must be a whole number from 2 to 180, got 1"),
        ({"frames": 100.0}, "frames must be a whole number from 2 to 180, got 100.0"),
        ({"frames": "128"}, "frames must be a whole number"),
        ({"render_mode": "ansi"}, "render_mode 'ansi'.*'human'"),
        ({"observation_width": 0}, "observation_width must be a whole number of px"),
    ],
)
def test_invalid_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CLEVREREnv(**arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scenes": 1}, r"unknown options \['scenes'\]"),
        ([1], "options must be a dict"),
        ({"scene": "first"}, "scene must be a Scene or an annotation"),
        ({"scene": {"scene_index": 3}}, "broken annotation of scene 3"),
        ({**SCENE, "remove": [5]}, r"cannot remove objects \[5\]: the scene has \[0, 1, 2, 3, 4\]"),
        ({**SCENE, "remove": 1}, "remove must be a list of object ids"),
        ({**SCENE, "remove": ["1"]}, "remove must be a list of object ids"),
    ],
)
def test_invalid_options_leave_the_episode_alone(options, message: str) -> None:
    env = small()
    env.reset(options=SCENE)
    with pytest.raises(ValueError, match=message):
        env.reset(options=options)
    assert env.step(0)[4]["frame"] == 1


@pytest.mark.parametrize("action", [-1, 7, 1.0, None, [0]])
def test_invalid_actions(action) -> None:
    env = small()
    env.reset(options=SCENE)
    with pytest.raises(ValueError, match="from 0 to 6"):
        env.step(action)
    assert env.step(0)[4]["frame"] == 1


def test_step_and_render_before_reset_are_refused() -> None:
    env = small(render_mode="rgb_array", visualization_width=48, visualization_height=32)
    for call in (lambda: env.step(0), env.render):
        with pytest.raises(gym.error.ResetNeeded, match="call reset"):
            call()


def test_render_draws_the_current_frame() -> None:
    env = CLEVREREnv(render_mode="rgb_array", visualization_width=64, visualization_height=64)
    observation, _ = env.reset(options=SCENE)
    assert np.array_equal(env.render(), observation)
    for _ in range(20):
        observation, *_ = env.step(0)
    assert np.array_equal(env.render(), observation)


def test_render_without_a_mode_warns() -> None:
    env = small()
    env.reset(options=SCENE)
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None


def test_human_mode_opens_and_closes_a_window(monkeypatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    import pygame

    env = gym.make("CLEVRER-v0", render_mode="human", visualization_width=96, visualization_height=64)
    env.reset(seed=0)
    env.step(0)
    assert env.render() is None
    assert pygame.display.get_surface().get_size() == (96, 64)
    assert pygame.display.get_caption()[0] == "CLEVRER-v0"
    copy.deepcopy(env)
    env.close()
    env.close()
    assert not pygame.display.get_init()
