"""``task=released``: the draw of the released code, and the command on a converted checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run
from foreign_files import module_of, world_model

from cjepa_agent.convert import ConvertConfig, convert
from cjepa_agent.data.episodes import EpisodeFile, write_episodes
from cjepa_agent.evaluation.config import EvaluateConfig
from cjepa_agent.evaluation.released import FLAWS, GOAL_OFFSET, RecordedScenes, draw_starts
from cjepa_agent.evaluation.released import run as score

LENGTHS = (20, 40, 26, 25, 60)


@pytest.fixture
def data(tmp_path: Path) -> EpisodeFile:
    rng = np.random.default_rng(0)
    episodes = []
    for length in LENGTHS:
        state = np.cumsum(rng.normal(0, 4, (length, 7)), axis=0) + [256, 256, 256, 256, 0, 0, 0]
        pixels = rng.integers(0, 256, (length, 28, 28, 3), np.uint8)
        action = rng.uniform(-1, 1, (length, 2)).astype(np.float32)
        proprio = state[:, [0, 1, 5, 6]].astype(np.float32)
        episodes.append({"state": state, "pixels": pixels, "action": action, "proprio": proprio})
    write_episodes(tmp_path / "data.h5", episodes)
    return EpisodeFile(tmp_path / "data.h5")


def test_starts_are_drawn_as_the_released_code_does(data: EpisodeFile) -> None:
    step = np.concatenate([np.arange(length) for length in LENGTHS])
    episode = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    valid = np.flatnonzero(step <= np.repeat(LENGTHS, LENGTHS) - 25 - 1)
    chosen = valid[np.random.default_rng(3).choice(len(valid) - 1, 20, replace=False)]
    starts = draw_starts(data, 3, 20)
    assert [(s.episode, s.step) for s in starts] == list(zip(episode[chosen], step[chosen], strict=True))
    assert all(s.step + GOAL_OFFSET - 1 < LENGTHS[s.episode] for s in starts)
    with pytest.raises(ValueError, match="has 50 rows with a goal 24 rows later, need 51"):
        draw_starts(data, 0, 51)


def test_the_files_pictures_are_shown_first(data: EpisodeFile) -> None:
    env = RecordedScenes(obs_type="goal", task="goal_state", observation_width=28, observation_height=28)
    states, pixels = data.read("state", 1), data.read("pixels", 1)
    options = {"state": states[0], "goal_state": states[24], "pixels": pixels[0], "goal_pixels": pixels[24]}
    observation, _ = env.reset(options=options)
    assert np.array_equal(observation["pixels"], pixels[0]) and np.array_equal(observation["goal_pixels"], pixels[24])
    observation = env.step(np.zeros(2, np.float32))[0]
    assert np.array_equal(observation["goal_pixels"], pixels[24]) and observation["pixels"].std() < pixels[0].std()


def test_a_file_of_another_arena_is_refused(data: EpisodeFile, tmp_path: Path) -> None:
    columns = ("state", "pixels", "action", "proprio")
    episodes = [{name: data.read(name, episode) for name in columns} for episode in range(len(LENGTHS))]
    write_episodes(tmp_path / "centred.h5", [{**own, "state": own["state"] - 1000} for own in episodes])
    config = EvaluateConfig("released", data=str(tmp_path / "centred.h5"), episodes=2, out=str(tmp_path / "out"))
    with pytest.raises(ValueError, match="all 6 starts or goals .* lie outside the arena"):
        score(config)


def test_command_on_a_converted_checkpoint(data: EpisodeFile, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(module_of(world_model()), tmp_path / "object.ckpt")
    convert(ConvertConfig(str(tmp_path / "object.ckpt"), str(tmp_path / "weights"), data=str(data.path), heads=4))
    arguments = ["task=released", "weights=weights", "data=data.h5", "planner=full", "planner.cem.n_samples=4"]
    arguments += ["planner.cem.n_iterations=2", "planner.cem.n_elites=2", "episodes=2", "budget=6", "videos=0"]
    done = run("cjepa_agent.evaluate", *arguments, folder=tmp_path)
    assert all(flaw in done.stdout for flaw in FLAWS) and "already solved: " in done.stdout
    assert "set planner=full" in done.stdout and "other seeds, episodes or budget" in done.stdout
    report = json.loads((tmp_path / "results/pusht_released.json").read_text())
    assert [(row["controller"], row["episodes"]) for row in report["rows"]] == [
        ("no-op", 6),
        ("random", 6),
        ("C-JEPA", 6),
    ]
    assert sorted({episode["manifest_seed"] for episode in report["episodes"]}) == [0, 1, 2]
    assert set(report["notes"]["success per seed, %"]) == {"0", "1", "2"}
    assert "training episodes" in (tmp_path / "results/pusht_released.html").read_text()
