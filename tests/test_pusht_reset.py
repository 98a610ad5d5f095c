"""Reset options of PushT-v0: exact states, variations, refusals and random starts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.pusht import PushTEnv
from envs.pusht.physics import PushTPhysics
from envs.pusht.sampling import is_free
from envs.pusht.shapes import BLOCK_SHAPES, SHAPE_ALIASES

STATE = [100.0, 120.0, 300.0, 320.0, 1.0]
SHAPES = sorted({*BLOCK_SHAPES, *SHAPE_ALIASES})
coordinate = st.floats(0, 512)
angle = st.floats(-50, 50)
speed = st.floats(-2000, 2000)


@pytest.fixture(scope="module")
def env() -> PushTEnv:
    return PushTEnv("state", task="goal_state", observation_width=16, observation_height=16)


@settings(max_examples=100, deadline=None)
@given(st.tuples(coordinate, coordinate, coordinate, coordinate, angle), st.tuples(speed, speed) | st.just(()))
def test_reset_gives_exactly_the_state(env: PushTEnv, pose: tuple, velocity: tuple) -> None:
    _, info = env.reset(options={"state": [*pose, *velocity], "goal_state": [*pose, *velocity]})
    expected = [*pose, *(velocity or (0.0, 0.0))]
    np.testing.assert_allclose(info["state"], expected, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(info["goal_state"], expected)
    np.testing.assert_array_equal(env.get_state(), info["state"])


@settings(max_examples=30, deadline=None)
@given(angle, st.sampled_from(sorted(BLOCK_SHAPES)))
def test_a_whole_turn_changes_nothing_visible(turned: float, shape: str) -> None:
    env = PushTEnv("pixels", observation_width=32, observation_height=32)
    frames = [
        env.reset(options={"state": [60, 60, 256, 256, a], "variation": {"shape": shape}})[0]
        for a in (turned, turned + 2 * np.pi)
    ]
    assert np.abs(frames[0].astype(int) - frames[1]).mean() < 0.5


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from(sorted(BLOCK_SHAPES)))
def test_random_starts_are_free_and_repeatable(seed: int, shape: str) -> None:
    env = PushTEnv("state")
    options = {"variation": {"shape": shape}}
    _, info = env.reset(seed=seed, options=options)
    state = info["state"]
    assert is_free(PushTPhysics(shape), state)
    assert np.all((state[:2] >= 50) & (state[:2] < 450)) and np.all(state[:2] == state[:2].round())
    np.testing.assert_array_equal(env.reset(seed=seed, options=options)[1]["state"], state)
    *_, after = env.step([0.0, 0.0])
    np.testing.assert_allclose(after["state"], state, atol=1e-9)


@pytest.mark.parametrize(
    ("state", "free"),
    [
        ([100, 100, 256, 256, 0], True),
        ([256, 270, 256, 256, 0], False),  # agent inside the block
        ([182, 270, 256, 256, 0], False),  # 14 px beside it, less than the agent's radius
        ([180, 270, 256, 256, 0], True),
        ([256, 100, 65, 256, 0], False),  # block in the left wall, which reaches to 7 px
        ([256, 100, 68, 256, 0], True),
    ],
)
def test_free_states_overlap_neither_block_nor_wall(state: list, free: bool) -> None:
    env = PushTEnv("state")
    _, info = env.reset(options={"state": [float(v) for v in state]})
    assert is_free(PushTPhysics(), info["state"]) is free
    *_, after = env.step([0.0, 0.0])
    if free:
        np.testing.assert_allclose(after["state"], info["state"], atol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["state"], "options must be a dict.*got list"),
        ({"reset_to_state": STATE}, "unknown options.*reset_to_state.*goal_state"),
        ({"state": STATE[:4]}, r"state must be 5 or 7 finite numbers.*got shape \(4,\)"),
        ({"state": [STATE]}, r"got shape \(1, 5\)"),
        ({"state": "here"}, "state must be 5 or 7.*got 'here'"),
        ({"state": [*STATE[:4], np.nan]}, "state must be.*nan.*replace NaN"),
        ({"state": [*STATE[:4], np.inf]}, "inf"),
        ({"state": [-1, *STATE[1:]]}, r"state\[:4\] must lie in the arena.*-1"),
        ({"state": [*STATE[:2], 513, *STATE[3:]]}, "arena.*513"),
        ({"state": [*STATE, 0, 9000]}, "velocities of at most 5120.*9000"),
        ({"goal_state": [*STATE, 0]}, r"goal_state must be 5 or 7.*got shape \(6,\)"),
        ({"goal_pose": [1, 2]}, r"goal_pose must be 3 finite numbers.*\(2,\)"),
        ({"goal_pose": [600, 2, 0]}, "goal_pose.*arena"),
        ({"variation": ["T"]}, "variation must be a dict.*got list"),
        ({"variation": {"color": (0, 0, 0)}}, "unknown variation.*color.*block_color"),
        ({"variation": {"shape": "hexagon"}}, "unknown block shape 'hexagon'.*'tee'"),
        ({"variation": {"shape": 3}}, "unknown block shape 3"),
        ({"variation": {"block_color": (0, 0, 256)}}, "block_color.*RGB triple.*256"),
        ({"variation": {"block_color": (0, 0)}}, "RGB triple"),
        ({"variation": {"block_color": (0.5, 0, 0)}}, "RGB triple"),
        ({"variation": {"block_color": "red"}}, "RGB triple.*'red'"),
        ({"variation": {"scale": 0}}, r"scale.*\[10, 50\].*got 0"),
        ({"variation": {"scale": float("nan")}}, "scale.*nan"),
        ({"variation": {"agent_radius": "big"}}, "agent_radius.*'big'"),
    ],
)
def test_invalid_options_are_refused(env: PushTEnv, options: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        env.reset(options=options)


def test_two_goals_are_refused_in_the_coverage_task() -> None:
    with pytest.raises(ValueError, match="both goal_state and goal_pose"):
        PushTEnv().reset(options={"goal_state": STATE, "goal_pose": STATE[2:5]})


def test_keypoints_need_a_block_of_two_boxes() -> None:
    env = PushTEnv("environment_state_agent_pos")
    with pytest.raises(ValueError, match="two boxes, got shape 'square'"):
        env.reset(options={"variation": {"shape": "square"}})
    observation, _ = env.reset(seed=0, options={"variation": {"shape": "L"}})
    assert observation["environment_state"].shape == (16,)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_can_be_pushed(shape: str) -> None:
    env = PushTEnv("pixels", segmentation=True)
    start = [130.0, 256, 256, 256, 0]
    frame, info = env.reset(options={"state": start, "variation": {"shape": shape}})
    assert frame.shape == (96, 96, 3) and set(np.unique(info["segmentation"])) == {0, 1, 2, 3}
    for _ in range(12):
        *_, info = env.step([0.3, 0.0])
    assert info["block_pose"][0] > 260


@pytest.mark.parametrize(("shape", "symmetry"), [("T", 1), ("L", 1), ("Z", 2), ("I", 2), ("square", 4), ("+", 4)])
@pytest.mark.parametrize("rule", ["released", "strict"])
def test_symmetric_blocks_are_scored_modulo_their_symmetry(shape: str, symmetry: int, rule: str) -> None:
    env = PushTEnv("state", task="goal_state", success_rule=rule, control="absolute")
    for quarter_turns in range(4):
        goal = [*STATE[:4], STATE[4] + quarter_turns * np.pi / 2]
        env.reset(options={"state": STATE, "goal_state": goal, "variation": {"shape": shape}})
        steps = [env.step(STATE[:2]) for _ in range(env.rule.hold)]
        alike = quarter_turns * symmetry % 4 == 0
        assert steps[-1][2] is alike
        assert (steps[-1][1] > -1e-6) is alike


def test_variation_colours_and_sizes_are_drawn_and_last_one_episode() -> None:
    env = PushTEnv("pixels")
    plain, _ = env.reset(options={"state": STATE})
    variation = {"background_color": (10, 20, 30), "agent_color": [200, 0, 0], "agent_radius": 30, "scale": 15.0}
    varied, _ = env.reset(options={"state": STATE, "variation": variation})
    assert varied[90, 90].tolist() == [10, 20, 30]
    x, y = (round(v * 96 / 512) for v in STATE[:2])
    assert varied[y, x].tolist() == [240, 0, 0]
    assert (varied == [240, 0, 0]).all(-1).sum() > 40
    assert (varied != [10, 20, 30]).any(-1).sum() < (plain != 255).any(-1).sum()
    np.testing.assert_array_equal(env.reset(options={"state": STATE})[0], plain)


def test_variation_sizes_reach_the_physics() -> None:
    moved = {}
    for radius in (15, 30):
        env = PushTEnv("state", control="absolute")
        env.reset(options={"state": [150, 270, 256, 256, 0], "variation": {"agent_radius": radius}})
        for _ in range(5):
            *_, info = env.step([190.0, 270.0])
        moved[radius] = info["block_pose"][0] - 256
    assert 10 < moved[30] - moved[15] < 20
