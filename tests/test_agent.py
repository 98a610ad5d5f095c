"""The agent: Stable-Baselines3's protocol, bookkeeping per environment, independence of the batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from tiny_model import CONFIG, SETTINGS, tiny_checkpoint

from cjepa_agent import CJEPAAgent
from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.encoders.stosavi import StoSAViConfig
from cjepa_agent.encoders.videosaur import SmallVideoSAURConfig
from cjepa_agent.latent import Latent
from cjepa_agent.planning import LatentPlanner, ObjectiveSettings, PlannerSettings, PlanStart
from cjepa_agent.world_model import WorldModel
from envs.pusht import PushTEnv
from planners import CEMConfig, GradientConfig, ICEMConfig, MPPIConfig, RandomShootingConfig, RecedingHorizon

pytestmark = pytest.mark.usefixtures("one_thread")

KEYS = ("pixels", "proprio", "goal_pixels", "goal_proprio")
OPEN_LOOP = replace(SETTINGS, receding=RecedingHorizon(horizon=2, replan_every=2))
WITH_HISTORY = replace(SETTINGS, context=3)
DESCENDING = replace(SETTINGS, method="icem+gradient", icem=ICEMConfig(8, 2, 3), gradient=GradientConfig(2, 3))

SPLIT = replace(SETTINGS, candidates_per_call=4, precision="bfloat16")


def agent(settings: PlannerSettings = SETTINGS, **arguments: Any) -> CJEPAAgent:
    return CJEPAAgent(tiny_checkpoint(), settings, **arguments)


def env(size: int = 64) -> PushTEnv:
    return PushTEnv(task="goal_state", observation_width=size, observation_height=size)


def stack(observations: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: np.stack([o[key] for o in observations]) for key in KEYS}


def test_five_line_use() -> None:
    world = gym.make("PushT-v0")
    player = agent()
    observation, _ = world.reset(seed=0)
    action, _ = player.predict(observation)
    assert action.shape == (2,) and action.dtype == np.float32 and world.action_space.contains(action)
    world.step(action)


@pytest.mark.parametrize("settings", [SETTINGS, OPEN_LOOP, WITH_HISTORY, DESCENDING, SPLIT])
def test_actions_are_the_same_alone_and_in_a_batch_of_eight(settings: PlannerSettings) -> None:
    together, steps = [env() for _ in range(8)], 12
    observations = [world.reset(seed=seed)[0] for seed, world in enumerate(together)]
    batch = agent(settings)
    state, actions = batch.begin(range(8)), []
    for _ in range(steps):
        action, state = batch.predict(stack(observations), state=state)
        actions.append(action)
        observations = [world.step(a)[0] for world, a in zip(together, action, strict=True)]
    for seed in (0, 5):
        alone, player = env(), agent(settings)
        observation, _ = alone.reset(seed=seed)
        own = player.begin([seed])
        for step in range(steps):
            action, own = player.predict(observation, state=own)
            np.testing.assert_array_equal(action, actions[step][seed])
            observation = alone.step(action)[0]


def test_single_and_vectorised_observations_agree() -> None:
    observation, _ = env().reset(seed=0)
    single, _ = agent().predict(observation)
    batch, state = agent().predict(stack([observation]))
    assert batch.shape == (1, 2) and len(state) == 1
    np.testing.assert_array_equal(single, batch[0])


def test_evaluate_policy_runs_and_repeats() -> None:
    world = make_vec_env(lambda: gym.make("PushT-v0", task="goal_state", max_episode_steps=7), n_envs=2)
    rewards = []
    for _ in range(2):
        world.seed(3)
        rewards.append(evaluate_policy(agent(), world, n_eval_episodes=4, return_episode_rewards=True)[0])
    assert len(rewards[0]) == 4 and rewards[0] == rewards[1]


@pytest.mark.parametrize("size", [32, 96, 224])
def test_frames_of_any_size(size: int) -> None:
    observation, _ = env(size).reset(seed=0)
    action, _ = agent().predict(observation)
    assert np.isfinite(action).all()


def test_nothing_given_is_changed() -> None:
    player = agent()
    weights = {name: value.clone() for name, value in player.model.state_dict().items()}
    attributes = {name: dict(part.__dict__) for name, part in player.model.named_modules()}
    world = env()
    observation, _ = world.reset(seed=0)
    copies = {key: value.copy() for key, value in observation.items()}
    state = player.begin([0])
    player.predict(observation, state=state)
    assert state[0].goal is None
    for key, value in copies.items():
        np.testing.assert_array_equal(observation[key], value)
    for name, value in player.model.state_dict().items():
        assert torch.equal(weights[name], value)
    for name, part in player.model.named_modules():
        assert part.__dict__.keys() == attributes[name].keys()


def test_reused_observation_arrays_do_no_harm() -> None:
    player, world = agent(), env()
    observation, _ = world.reset(seed=0)
    player.predict(observation)
    observation["goal_pixels"][:] = 0
    _, state = player.predict(observation)
    assert state[0].replans == 1 and state[0].key == (0, 0, 1)


def test_plans_at_block_boundaries_only() -> None:
    player, world = agent(OPEN_LOOP), env()
    observation, _ = world.reset(seed=0)
    replans = []
    for _ in range(21):
        action, state = player.predict(observation)
        replans.append(state[0].replans)
        observation = world.step(action)[0]
    assert replans == [1] * 10 + [2] * 10 + [3]


def test_history_holds_real_frames_and_the_blocks_between_them() -> None:
    player, world = agent(WITH_HISTORY), env()
    observation, _ = world.reset(seed=0)
    executed, lengths = [], []
    for _ in range(21):
        action, state = player.predict(observation)
        lengths.append(len(state[0].history))
        assert len(state[0].taken) == len(state[0].history) - 1
        executed.append(action)
        observation = world.step(action)[0]
    assert lengths == [1] * 5 + [2] * 5 + [3] * 11
    np.testing.assert_array_equal(torch.stack(state[0].taken).numpy(), np.reshape(executed[10:20], (2, 10)))


def test_episode_start_resets_one_environment_only() -> None:
    player = agent()
    observations = [env().reset(seed=seed)[0] for seed in range(2)]
    _, before = player.predict(stack(observations), episode_start=np.array([True, True]))
    assert [e.key for e in before] == [(0, 0, 0), (0, 1, 0)]
    _, after = player.predict(stack(observations), episode_start=np.array([False, True]))
    assert [e.key for e in after] == [(0, 0, 0), (0, 1, 1)]
    assert [e.step for e in after] == [2, 1]
    player.reset()
    _, fresh = player.predict(stack(observations))
    assert [e.key for e in fresh] == [(0, 0, 0), (0, 1, 0)]


def test_a_new_goal_or_another_number_of_environments_starts_anew() -> None:
    player = agent()
    first, second = (env().reset(seed=seed)[0] for seed in range(2))
    player.predict(first)
    _, state = player.predict({**first, "goal_pixels": second["goal_pixels"]})
    assert (state[0].key, state[0].replans, state[0].step) == ((0, 0, 1), 1, 1)
    _, state = player.predict(stack([first, second]))
    assert [e.key for e in state] == [(0, 0, 0), (0, 1, 0)]


def test_seed_changes_plans_and_repeats_them() -> None:
    observation, _ = env().reset(seed=0)
    one, again, other = (agent(seed=seed).predict(observation)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_imagination_shows_every_block_of_the_plan() -> None:
    player = agent()
    with pytest.raises(ValueError, match="no plan yet"):
        player.imagination()
    with pytest.raises(ValueError, match="size must be a whole number of px"):
        player.imagination(size=0)
    player.predict(env().reset(seed=0)[0])
    drawn = player.imagination(size=16)
    assert drawn.frames.shape == (3, 16, 16, 3) and drawn.frames.dtype == np.uint8
    assert drawn.masks.shape == (3, CONFIG.encoder.n_slots, 16, 16)
    np.testing.assert_allclose(drawn.masks.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda o: o["pixels"],
        lambda o: {k: v for k, v in o.items() if k != "goal_pixels"},
        lambda o: {**o, "pixels": o["pixels"].astype(np.float32)},
        lambda o: {**o, "pixels": o["pixels"].transpose(2, 0, 1)},
        lambda o: {**o, "proprio": o["proprio"][:2]},
        lambda o: {**o, "proprio": np.float32(0.0)},
        lambda o: {**o, "proprio": o["proprio"].astype(str)},
        lambda o: {**o, "pixels": o["pixels"][:0]},
        lambda o: {key: value[None][:0] for key, value in o.items()},
    ],
)
def test_observations_that_do_not_fit(change: Any) -> None:
    with pytest.raises(ValueError, match="agent needs|expected"):
        agent().predict(change(env().reset(seed=0)[0]))


def test_numbers_that_are_none_are_told_by_key_and_environment() -> None:
    observation = stack([env().reset(seed=seed)[0] for seed in range(3)])
    for number in (np.nan, 1e300):
        observation["proprio"] = observation["proprio"].astype(np.float64)
        observation["proprio"][2, 0] = number
        with pytest.raises(ValueError, match=r"proprio has NaN or numbers too large .* in environments \[2\]"):
            agent().predict(observation)


@pytest.mark.parametrize(
    ("argument", "value"), [("seed", 1.5), ("seed", None), ("seed", -1), ("objective", 123), ("settings", None)]
)
def test_arguments_that_do_not_fit(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match="expected .*0 or more|expected (Objective|Planner)Settings"):
        agent(**{argument: value})


def test_devices_that_are_not_there_are_refused() -> None:
    missing = "gpu" if torch.cuda.is_available() else "cuda"
    with pytest.raises(ValueError, match="device"):
        agent(device=missing)


@pytest.mark.parametrize(
    "encoder",
    [
        StoSAViConfig(n_slots=3, slot_dim=20, width=8, image_size=64),
        SmallVideoSAURConfig(n_slots=3, slot_dim=20, patch=16, width=8, depth=1, positions=4, decoder_width=8),
    ],
    ids=["StoSAVi", "VideoSAUR"],
)
def test_slots_that_are_carried_along_go_on_within_a_history(encoder: StoSAViConfig | SmallVideoSAURConfig) -> None:
    torch.manual_seed(0)
    model = WorldModel(replace(CONFIG, encoder=encoder)).eval()
    model.processor.slot_mean.copy_(torch.rand(model.processor.slot_mean.shape))
    model.processor.slot_scale.copy_(torch.rand(model.processor.slot_scale.shape) + 0.5)
    player, world = CJEPAAgent(replace(tiny_checkpoint(), model=model), WITH_HISTORY), env()
    observation, _ = world.reset(seed=0)
    frames = []
    for step in range(11):
        if step % 5 == 0:
            frames.append(torch.from_numpy(observation["pixels"]))
        action, (episode,) = player.predict(observation)
        observation = world.step(action)[0]
    seen = torch.stack([model.processor.raw_slots(latent.slots) for latent in episode.history])
    tracked = model.encoder.track(torch.stack(frames)[None])[0]
    torch.testing.assert_close(seen, tracked, atol=1e-5, rtol=1e-4)
    goal_frame = torch.from_numpy(observation["goal_pixels"])[None]
    assert episode.goal is not None
    goal = model.processor.raw_slots(episode.goal.slots)
    torch.testing.assert_close(goal, model.encoder.read(goal_frame, tracked[-1:])[0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(goal, model.encoder.read(goal_frame)[0], atol=1e-3)


@pytest.mark.parametrize(
    ("key", "space"),
    [("proprio", gym.spaces.Box(-1, 1, (6,))), ("pixels", gym.spaces.Box(0, 255, (3, 96, 96), np.uint8))],
)
def test_observations_of_another_shape_are_refused_before_acting(key: str, space: gym.spaces.Box) -> None:
    world = env()
    spaces = gym.spaces.Dict({**world.observation_space.spaces, key: space})  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=f"the agent needs {key} as "):
        agent().check_env(gym.wrappers.TransformObservation(world, lambda seen: seen, spaces))


def test_state_and_episode_start_must_fit_the_observation() -> None:
    player, observation = agent(), env().reset(seed=0)[0]
    with pytest.raises(ValueError, match="what predict or begin returned"):
        player.predict(observation, state=(None,))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 episodes for 1"):
        player.predict(observation, state=player.begin([0, 1]))
    with pytest.raises(ValueError, match="episode_start"):
        player.predict(observation, episode_start=np.array([True, False]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (replace(SETTINGS, context=4), "takes 1 to 3 frames"),
        (replace(SETTINGS, action_block=4), "blocks of 5 actions"),
        (replace(SETTINGS, components=11), "components"),
    ],
)
def test_planners_that_do_not_fit_the_checkpoint(settings: PlannerSettings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        agent(settings)


@pytest.mark.parametrize("method", ["cem", "icem", "mppi", "gradient", "random", "random+gradient"])
def test_every_method_plans_with_settings_of_its_own(method: str) -> None:
    settings = replace(
        SETTINGS,
        method=method,
        icem=ICEMConfig(8, 1, 2),
        mppi=MPPIConfig(9, 1, 3),
        gradient=GradientConfig(10, 1),
        random=RandomShootingConfig(11),
    )
    player, scored = agent(settings), []
    rollout = player.model.rollout

    def watched(history: Any, taken: Any, actions: torch.Tensor) -> Any:
        scored.append(actions.shape[1])
        return rollout(history, taken, actions)

    player.model.rollout = watched  # type: ignore[method-assign]
    observation = env().reset(seed=0)[0]
    player.predict(observation)
    searches = {"cem": [6, 6, 1], "icem": [8], "mppi": [9, 1], "gradient": [10], "random": [11]}
    assert scored == [count for name in method.split("+") for count in searches[name]]


def test_precision_and_compilation_are_settings_of_the_cost() -> None:
    checkpoint = tiny_checkpoint()
    for head in (checkpoint.model.predictor.head_slot, checkpoint.model.predictor.head_proprio):
        torch.nn.init.normal_(head.weight)  # they start at zero, and would hide the precision of all before them
    history = Latent(torch.randn(2, 1, 3, 20), torch.randn(2, 1, 4))
    start, goal = PlanStart(history, torch.zeros(2, 0, 10)), Latent(torch.randn(2, 3, 20), torch.randn(2, 4))
    actions = 0.2 * torch.randn(2, 50, 3, 10)

    def costs(**changes: Any) -> torch.Tensor:
        planner = LatentPlanner(checkpoint.model, checkpoint.prior, replace(SETTINGS, **changes), ObjectiveSettings())
        with torch.no_grad():
            return planner.cost(start, goal, actions)

    exact, reduced = costs(), costs(precision="bfloat16")
    assert exact.dtype == reduced.dtype == torch.float32
    assert not torch.equal(exact, reduced)
    torch.testing.assert_close(reduced, exact, rtol=0.1, atol=0.05)
    with pytest.raises(ValueError, match="compile=graphs needs a CUDA device, but the planner is on cpu"):
        costs(compile="graphs")


@pytest.mark.slow
def test_a_compiled_cost_gives_the_same_plans() -> None:
    observation = env().reset(seed=0)[0]
    settings = replace(SETTINGS, receding=RecedingHorizon(2, 2))
    expected, _ = agent(settings).predict(observation)
    compiled, _ = agent(replace(settings, compile="kernels")).predict(observation)
    np.testing.assert_allclose(compiled, expected, rtol=1e-3, atol=1e-4)


def test_a_compiled_cost_may_take_all_shapes_of_an_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo import config

    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    monkeypatch.setattr(config, name, 8)
    agent(SETTINGS)
    assert getattr(config, name) == 8
    agent(replace(SETTINGS, compile="kernels"))
    assert getattr(config, name) >= 4 * 30  # horizons and rounds of a search


@pytest.mark.parametrize("change", [{"precision": "float16"}, {"compile": "on"}])
def test_unknown_precisions_and_ways_to_compile_are_refused(change: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=f"planner.{next(iter(change))} is .*; expected one of"):
        PlannerSettings(**change)


@pytest.mark.parametrize("method", ["newton", "cem+", ""])
def test_unknown_methods_are_refused(method: str) -> None:
    with pytest.raises(ValueError, match=r"planner.method is .*; expected \['cem', 'icem', 'mppi', "):
        PlannerSettings(method=method)


def test_unknown_presets_and_roles_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one of .*fast.*full"):
        CJEPAAgent(tiny_checkpoint(), "slow")
    checkpoint = tiny_checkpoint()
    checkpoint.model.config = replace(CONFIG, roles={})
    with pytest.raises(ValueError, match="block's slot"):
        CJEPAAgent(checkpoint, SETTINGS, ObjectiveSettings(objects="block"))


def test_environments_that_do_not_fit_are_refused() -> None:
    player = agent()
    player.check_env(gym.make("PushT-v0"))
    player.check_env(make_vec_env("PushT-v0", n_envs=2))
    player.check_env(gym.make_vec("PushT-v0", num_envs=2))
    with pytest.raises(ValueError, match="control='relative'"):
        player.check_env(gym.make("PushT-v0", control="absolute"))
    with pytest.raises(ValueError, match="obs_type='goal'"):
        player.check_env(gym.make("PushT-v0", obs_type="pixels"))


def test_presets_are_the_documented_ones() -> None:
    full, fast = (PlannerSettings.preset(name) for name in ("full", "fast"))
    assert full.cem == CEMConfig(300, 30, 30) and full.receding == RecedingHorizon(5, 5)
    assert fast.receding.shrink
    assert sum(map(fast.icem.population, range(fast.icem.n_iterations))) < 300 * 30 / 8


def test_objective_of_the_block_ignores_the_other_slots() -> None:
    objective = ObjectiveSettings(objects="block", proprio_weight=0).build(CONFIG)
    slots = torch.randn(1, 2, 3, 3, 20)
    goal = slots[:, 0, -1].clone()
    goal[:, :2] += 1
    assert objective(slots, None, goal, None)[0, 0] == 0


def test_checkpoint_of_a_trained_prior_bounds_actions() -> None:
    checkpoint = tiny_checkpoint()
    wide = Checkpoint(checkpoint.model, replace(checkpoint.prior, basis=100 * checkpoint.prior.basis))
    action, _ = CJEPAAgent(wide, SETTINGS).predict(env().reset(seed=0)[0])
    assert np.abs(action).max() <= 1
