"""Collecting episodes: the same ones whatever happens on the way, by any policy."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from commands import run
from numpy.typing import NDArray
from stable_baselines3 import A2C, DDPG, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm

from cjepa_agent.collecting import collection as module
from cjepa_agent.collecting.behaviour import (
    NoisyBehaviour,
    RandomBehaviour,
    SavedBehaviour,
    ScriptedBehaviour,
    detect_algorithm,
)
from cjepa_agent.collecting.collection import collect, collect_shards
from cjepa_agent.collecting.pusht import Collector, PushTCollection
from cjepa_agent.data.episodes import EpisodeFile
from envs.pusht import PushTEnv

EPISODES, STEPS, SIZE = 120, 2, 16  # three parts, the last one shorter


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> PushTCollection:
    """Settings of a file that has been collected by one worker."""
    out = tmp_path_factory.mktemp("reference") / "pusht.h5"
    config = PushTCollection(out, episodes=EPISODES, steps=STEPS, image_size=SIZE, workers=1)
    collect(config)
    return config


def same_columns(one: Path, other: Path) -> bool:
    a, b = EpisodeFile(one), EpisodeFile(other)
    return a.columns == b.columns and all(a.read_all(c).tobytes() == b.read_all(c).tobytes() for c in a.columns)


def save(folder: Path, algorithm: type[BaseAlgorithm], policy: str, env: gym.Env) -> Path:
    """An untrained policy for ``env``."""
    small = {"PPO": {"n_steps": 8, "batch_size": 8}, "A2C": {}}.get(algorithm.__name__, {"buffer_size": 10})
    algorithm(policy, env, seed=0, device="cpu", **small).save(folder / "policy.zip")
    return folder / "policy.zip"


def test_noise_is_smooth_and_of_a_strength_per_episode() -> None:
    class Still(RandomBehaviour):
        def act(self, observation: object, info: object) -> NDArray[np.float32]:
            return np.zeros(2, np.float32)

    behaviour, strengths = NoisyBehaviour(Still(), 0.2), []
    for seed in range(20):
        behaviour.begin(np.random.default_rng(seed), {})
        actions = np.array([behaviour.act(None, {}) for _ in range(2000)])
        assert np.mean(actions[1:] * actions[:-1]) == pytest.approx(0.75 * np.mean(actions**2), rel=0.1)
        strengths.append(actions.std())
    assert min(strengths) < 0.06 and 0.14 < max(strengths) < 0.22


def test_noise_changes_training_episodes_alone(reference: PushTCollection, tmp_path: Path) -> None:
    config = replace(reference, out=tmp_path / "noisy.h5", steps=30, episodes=6, noise=0.4)
    collect(config)
    collect(replace(config, out=tmp_path / "plain.h5", noise=0.0))
    noisy, plain = EpisodeFile(tmp_path / "noisy.h5"), EpisodeFile(tmp_path / "plain.h5")
    assert noisy.attrs["noise"] == 0.4 and "noise" not in plain.attrs
    changes = []
    for episode in range(6):
        ours, theirs = (file.read("action", episode) for file in (noisy, plain))
        if episode in noisy.episodes("train"):
            assert np.array_equal(noisy.read("state", episode)[0], plain.read("state", episode)[0])
            assert np.abs(ours).max() <= 1
            changes.append(np.abs(ours - theirs).mean())
        else:
            assert all(np.array_equal(noisy.read(c, episode), plain.read(c, episode)) for c in plain.columns)
    assert len(changes) == 4 and min(changes) > 0


def test_layout_and_recipe(reference: PushTCollection) -> None:
    data = EpisodeFile(reference.out)
    rows = EPISODES * STEPS
    assert data.columns["pixels"] == (rows, SIZE, SIZE, 3)
    assert (data.columns["action"], data.columns["proprio"], data.columns["state"]) == ((rows, 2), (rows, 4), (rows, 7))
    assert np.array_equal(data.lengths, np.full(EPISODES, STEPS))
    assert [len(data.episodes(split)) for split in ("train", "validation", "test")] == [108, 6, 6]
    state, proprio = data.read_all("state"), data.read_all("proprio")
    assert np.array_equal(proprio, state[:, [0, 1, 5, 6]].astype(np.float32))
    assert state[:, 4].min() >= 0
    assert state[:, 4].max() < 2 * np.pi
    expected = {"policy": "scripted", "episodes": EPISODES, "steps": STEPS, "image_size": SIZE, "seed": 0}
    assert {key: data.attrs[key] for key in expected} == expected
    assert data.attrs["control"] == "relative"
    assert data.attrs["goal_pose"] == pytest.approx([256, 256, np.pi / 4])
    assert '"pymunk"' in data.attrs["versions"]
    assert sorted(p.name for p in reference.out.parent.iterdir()) == ["pusht.h5"]


def test_the_number_of_workers_changes_nothing(reference: PushTCollection, tmp_path: Path) -> None:
    config = replace(reference, out=tmp_path / "pusht.h5", workers=3)
    collect(config)
    assert same_columns(config.out, reference.out)


def test_a_killed_worker_is_told_and_parts_are_kept(
    reference: PushTCollection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(reference, out=tmp_path / "pusht.h5")
    collect_shards(config, config.recipe())
    config.shard_path(1).unlink()

    def killed(*_: object) -> None:
        raise BrokenProcessPool("A process in the process pool was terminated abruptly")

    monkeypatch.setattr(module.ProcessPoolExecutor, "submit", killed)
    with pytest.raises(ChildProcessError, match="for lack of memory; the same command continues"):
        collect(config)
    assert config.shard_path(0).is_file() and not config.out.exists()


def test_a_killed_run_is_continued(
    reference: PushTCollection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(reference, out=tmp_path / "pusht.h5")
    collect_shards(config, config.recipe())
    kept = config.shard_path(1)
    stamp = kept.stat().st_mtime_ns
    whole = config.shard_path(0).read_bytes()
    config.shard_path(0).write_bytes(whole[: len(whole) // 2])  # as by a failing disk
    (config.parts / ".00000.h5.partial").write_bytes(b"half a part")
    (tmp_path / ".pusht.h5.partial").write_bytes(b"half a file")
    monkeypatch.setattr(module.shutil, "rmtree", lambda path, **_: None)
    collect(config)
    assert kept.stat().st_mtime_ns == stamp
    assert same_columns(config.out, reference.out)
    monkeypatch.undo()
    collect(config)  # as after a kill between the file's appearance and the removal of its parts
    assert "complete already" in capsys.readouterr().out
    assert not config.parts.exists()


def test_another_recipe_overwrites_nothing(reference: PushTCollection, tmp_path: Path) -> None:
    before = reference.out.read_bytes()
    with pytest.raises(FileExistsError, match=r"seed: 0, not 1\) and stays as it is; choose another out="):
        collect(replace(reference, seed=1))
    assert reference.out.read_bytes() == before
    config = replace(reference, out=tmp_path / "pusht.h5", episodes=3)
    collect_shards(config, config.recipe())
    with pytest.raises(FileExistsError, match="steps: 2, not 5.*remove .*pusht.h5.parts"):
        collect(replace(config, steps=5))
    recipe = {**config.recipe(), "versions": "others"}
    with pytest.raises(FileExistsError, match="versions: .*, not others"):
        collect_shards(config, recipe)
    assert config.shard_path(0).exists()
    assert not config.out.exists()


def test_a_file_that_holds_no_episodes_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.h5").write_text("mine")
    with pytest.raises(ValueError, match="not a readable HDF5 file"):
        collect(PushTCollection(tmp_path / "notes.h5"))
    assert (tmp_path / "notes.h5").read_text() == "mine"
    with pytest.raises(FileExistsError, match="is a folder and stays as it is"):
        collect(PushTCollection(tmp_path))
    with pytest.raises(ValueError, match="out must be the name of what is made"):
        PushTCollection(Path())


@pytest.mark.parametrize("behaviour", [ScriptedBehaviour, RandomBehaviour])
def test_recorded_actions_lead_from_state_to_state(behaviour: type[ScriptedBehaviour | RandomBehaviour]) -> None:
    episode = Collector(behaviour(), seed=5, steps=6, image_size=SIZE).episode(7)
    env = gym.make("PushT-v0", observation_width=SIZE, observation_height=SIZE)
    observation, info = env.reset(options={"state": episode["state"][0]})
    for t in range(6):
        assert info["state"][:4] == pytest.approx(episode["state"][t, :4], abs=1e-6)
        assert np.array_equal(observation["pixels"], episode["pixels"][t])
        observation, _, _, _, info = env.step(episode["action"][t])


def test_episodes_depend_on_seed_and_index_alone() -> None:
    collector = Collector(RandomBehaviour(), seed=0, steps=3, image_size=SIZE)
    third = collector.episode(3)
    collector.episode(0)
    again = collector.episode(3)
    assert all(np.array_equal(third[name], again[name]) for name in third)
    others = (collector.episode(4), Collector(RandomBehaviour(), 1, 3, SIZE).episode(3))
    for other in others:
        assert not np.array_equal(third["action"], other["action"])


def test_seeds_give_the_episodes_they_always_gave() -> None:
    episode = Collector(ScriptedBehaviour(), seed=0, steps=21, image_size=1).episode(0)
    start = [427.175021153, 176.534860954, 316.702776595, 137.68092563, 5.79923152, 0, 0]
    assert episode["state"][0] == pytest.approx(start, abs=1e-8)
    assert episode["action"][0] == pytest.approx([-0.06309986, -0.1390838], abs=1e-6)
    assert episode["action"][20] == pytest.approx([-0.19472098, 0.23770212], abs=1e-3)


def test_random_actions_fill_the_action_space() -> None:
    collector = Collector(RandomBehaviour(), seed=0, steps=50, image_size=1)
    action: NDArray[np.float32] = np.concatenate([collector.episode(index)["action"] for index in range(4)])
    assert action.dtype == np.float32
    assert np.abs(action).max() <= 1
    assert np.histogram(action, bins=4, range=(-1, 1))[0].min() > 60


def test_scripted_data_pushes_the_block_and_stays_in_view() -> None:
    collector = Collector(ScriptedBehaviour(), seed=0, steps=80, image_size=1)
    states = np.stack([collector.episode(index)["state"] for index in range(30)])
    moved = np.linalg.norm(states[:, 25:, 2:4] - states[:, :-25, 2:4], axis=-1)
    assert 30 < np.median(moved) < 60
    assert states[..., :2].min() > 10
    assert states[..., :2].max() < 502


@pytest.mark.parametrize(
    ("algorithm", "obs_type", "policy", "size"),
    [
        (PPO, "state", "MlpPolicy", 96),
        (A2C, "environment_state_agent_pos", "MultiInputPolicy", 96),
        (PPO, "goal", "MultiInputPolicy", 40),
        (PPO, "pixels", "CnnPolicy", 48),
        (SAC, "state", "MlpPolicy", 96),
        (TD3, "state", "MlpPolicy", 96),
        (DDPG, "state", "MlpPolicy", 96),
    ],
)
def test_policy_files(tmp_path: Path, algorithm: type[BaseAlgorithm], obs_type: str, policy: str, size: int) -> None:
    env = PushTEnv(obs_type, observation_width=size, observation_height=size)
    path = save(tmp_path, algorithm, policy, env)
    assert detect_algorithm(path) == ("TD3" if algorithm is DDPG else algorithm.__name__)
    behaviour = SavedBehaviour(path)
    assert behaviour.env_arguments["obs_type"] == obs_type
    episode = Collector(behaviour, seed=0, steps=3, image_size=SIZE).episode(0)
    assert episode["pixels"].shape == (3, SIZE, SIZE, 3)
    observation, _ = env.reset(options={"state": episode["state"][0]})
    expected, _ = algorithm.load(path).predict(observation, deterministic=True)
    assert episode["action"][0] == pytest.approx(expected, abs=1e-5)
    assert episode["action"].dtype == np.float32


def test_a_policy_file_in_worker_processes(tmp_path: Path) -> None:
    path = save(tmp_path, PPO, "MlpPolicy", PushTEnv("state"))
    config = PushTCollection(tmp_path / "a.h5", episodes=3, steps=2, image_size=SIZE, workers=1, policy=str(path))
    collect(config)
    attrs = EpisodeFile(config.out).attrs
    assert attrs["policy"] == "policy.zip"
    assert str(tmp_path) not in str(attrs)
    local = Collector(SavedBehaviour(path, "PPO"), config.seed, config.steps, config.image_size)
    assert np.array_equal(EpisodeFile(config.out).read("action", 2), local.episode(2)["action"])
    save(tmp_path, A2C, "MlpPolicy", PushTEnv("state"))
    with pytest.raises(FileExistsError, match="policy_sha256"):
        collect(config)


def test_policy_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="takes scripted, random or a file"):
        collect(PushTCollection(tmp_path / "a.h5", policy="expert"))
    (tmp_path / "notes.zip").write_text("mine")
    with pytest.raises(ValueError, match="not a policy file"):
        SavedBehaviour(tmp_path / "notes.zip")
    path = save(tmp_path, PPO, "MlpPolicy", PushTEnv("state"))
    with pytest.raises(ValueError, match="cannot be loaded as SAC"):
        SavedBehaviour(path, "SAC")
    save(tmp_path, PPO, "MlpPolicy", PushTEnv("state", control="absolute"))
    with pytest.raises(ValueError, match="acts in Box.*control='relative'"):
        SavedBehaviour(path)
    save(tmp_path, PPO, "MlpPolicy", gym.wrappers.FlattenObservation(PushTEnv("pixels_agent_pos")))
    with pytest.raises(ValueError, match="none of Push-T's observation types"):
        SavedBehaviour(path)


@pytest.mark.parametrize(
    ("name", "value"), [("episodes", 2), ("steps", 0), ("image_size", 0), ("seed", -1), ("workers", -1)]
)
def test_numbers_out_of_range_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        PushTCollection(**{name: value})  # type: ignore[arg-type]


def test_unknown_algorithms_are_refused() -> None:
    with pytest.raises(ValueError, match="noise must be 0 to 1"):
        PushTCollection(noise=1.5)
    with pytest.raises(ValueError, match="algorithm must be one of"):
        PushTCollection(algorithm="DQN")


def test_the_command(tmp_path: Path) -> None:
    settings = (
        "cjepa_agent.collect",
        f"out={tmp_path / 'a.h5'}",
        "episodes=4",
        "steps=3",
        "image_size=16",
        "workers=2",
    )
    first = run(*settings)
    assert "4 episodes (2 train, 1 validation, 1 test), 12 frames" in first.stdout
    assert "collecting: 100%" in first.stderr
    assert len(EpisodeFile(tmp_path / "a.h5")) == 4
    again = run(*settings)
    assert "complete already" in again.stdout
    refused = run(*settings, "policy=random", expect=2)
    assert refused.stderr.startswith("FileExistsError: ")
    assert len(refused.stderr.splitlines()) == 1
    assert "episods" in run("cjepa_agent.collect", "episods=4", expect=1).stderr
    assert "image_size=64" in run("cjepa_agent.collect", "--help").stdout
