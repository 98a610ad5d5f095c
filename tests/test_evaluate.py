"""Evaluation: intervals, manifests, baselines, and the command end to end on a tiny configuration."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import run
from tiny_model import SETTINGS, tiny_checkpoint

from cjepa_agent.data.episodes import EpisodeFile, split_episodes, write_episodes
from cjepa_agent.evaluation.config import EvaluateConfig
from cjepa_agent.evaluation.controllers import OracleController
from cjepa_agent.evaluation.video import colour_masks
from cjepa_agent.intervals import share_of, wilson_interval
from cjepa_agent.manifest import Manifest, ManifestConfig, draw, evaluation_pairs
from envs.pusht import SUCCESS_RULES, PushTEnv, success_rule

SEEDS = (0, 1, 42)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe 1998, table I, and the closed forms at the ends
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson_interval(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_intervals_of_shares_cover_the_truth_where_hits_of_one_scene_are_alike() -> None:
    rng = np.random.default_rng(0)
    covered, naive = 0, 0
    for _ in range(400):
        sizes = rng.integers(1, 20, 60)
        scenes = np.repeat(np.arange(60), sizes)
        right = rng.random(len(scenes)) < np.repeat(rng.beta(4, 1, 60), sizes)  # 0.8 on average
        share = share_of(list(zip(scenes.tolist(), right.tolist(), strict=True)))
        assert share["mean"] == pytest.approx(100 * right.mean()) and share["number"] == len(right)
        covered += share["low"] < 80 < share["high"]
        low, high = wilson_interval(int(right.sum()), len(right))
        naive += low < 0.8 < high
    assert 0.92 <= covered / 400 <= 0.975 and naive / 400 < 0.85


@pytest.mark.parametrize("right", [0, 7, 10])
def test_intervals_of_shares_are_never_narrower_than_of_independent_hits(right: int) -> None:
    """As many hits in each scene as in any other tell of less spread than chance has, and a single scene of none."""
    expected = [100 * end for end in wilson_interval(10 * right, 100)]
    for hits in ([(i // 10, i % 10 < right) for i in range(100)], [(0, i % 10 < right) for i in range(100)]):
        share = share_of(hits)
        assert [share["low"], share["high"]] == pytest.approx(expected)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_interval_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(successes, n)


@pytest.mark.parametrize("rule", list(SUCCESS_RULES))
@pytest.mark.parametrize("seed", SEEDS)
def test_bundled_manifests(rule: str, seed: int) -> None:
    manifest = Manifest.read(rule, "test", seed)
    assert (manifest.rule, manifest.split, manifest.seed, manifest.offset) == (rule, "test", seed, 25)
    assert len(manifest.pairs) == 100 == len({pair.episode for pair in manifest.pairs})
    test_episodes = np.flatnonzero(split_episodes(manifest.dataset["episodes"]) == 2)
    assert {pair.episode for pair in manifest.pairs} <= set(test_episodes)
    starts, goals = (np.array([getattr(pair, name) for pair in manifest.pairs]) for name in ("state", "goal_state"))
    assert not success_rule(rule).satisfied(starts, goals).any()


def test_the_environment_takes_all_bundled_pairs() -> None:
    env = PushTEnv(task="goal_state", obs_type="state")
    for rule in ("released", "strict"):
        for _, _, pair in evaluation_pairs(rule, "test", SEEDS, 300):
            _, info = env.reset(options={"state": pair.state, "goal_state": pair.goal_state})
            np.testing.assert_allclose(info["state"], pair.state, rtol=0, atol=1e-9)  # pymunk rounds the block's centre
            np.testing.assert_array_equal(info["goal_state"], pair.goal_state)


def test_pairs_are_taken_evenly() -> None:
    taken = evaluation_pairs("released", "test", SEEDS, 20)
    assert [sum(seed == s for s, _, _ in taken) for seed in SEEDS] == [7, 7, 6]
    assert len({(seed, index) for seed, index, _ in taken}) == 20
    with pytest.raises(ValueError, match="need 101 pairs"):
        evaluation_pairs("released", "test", SEEDS, 301)


def random_walk(rng: np.random.Generator, length: int) -> dict[str, np.ndarray]:
    state = np.cumsum(rng.normal(0, 4, (length, 7)), axis=0) + [256, 256, 256, 256, 0, 0, 0]
    return {"state": state, "action": np.zeros((length, 2), np.float32)}


def test_drawing_and_reading_manifests(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_episodes(tmp_path / "data.h5", [random_walk(rng, 10 + i) for i in range(60)], {"policy": "walk"})
    data = EpisodeFile(tmp_path / "data.h5")
    data.attrs["note"] = np.bytes_("made elsewhere")
    manifest = draw(data, "strict", "test", seed=3, pairs=2, offset=5)
    assert manifest == draw(data, "strict", "test", seed=3, pairs=2, offset=5)
    assert manifest.dataset["policy"] == "walk"
    for pair in manifest.pairs:
        assert pair.episode in data.episodes("test")
        rows = data.read("state", pair.episode)
        assert pair.state == tuple(rows[pair.step]) and pair.goal_state == tuple(rows[pair.step + 5])
    path = manifest.write(tmp_path)
    assert Manifest.read("strict", "test", 3, tmp_path) == manifest
    text = path.read_text()
    path.write_text(text.replace(str(manifest.pairs[0].state[0]), "256.0"))
    with pytest.raises(ValueError, match="SHA-256"):
        Manifest.read("strict", "test", 3, tmp_path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="not a manifest"):
        Manifest.read("strict", "test", 3, tmp_path)
    with pytest.raises(ValueError, match="usable pairs"):
        draw(data, "strict", "test", seed=3, pairs=50, offset=5)
    with pytest.raises(FileNotFoundError, match="no manifest"):
        Manifest.read("strict", "test", 4, tmp_path)


@pytest.mark.parametrize(
    "change", [{"task": "flying"}, {"rules": ("lenient",)}, {"episodes": 0}, {"seeds": ()}, {"seeds": (0, 0)}]
)
def test_bad_settings_are_refused(change: dict) -> None:
    with pytest.raises(ValueError):
        EvaluateConfig(**change)
    if "rules" in change:
        with pytest.raises(ValueError):
            ManifestConfig(**change)


def test_oracle_simulates_what_the_environment_does() -> None:
    env = PushTEnv(task="goal_state", obs_type="state")
    _, info = env.reset(seed=0)
    start = info["state"]
    oracle = OracleController(tiny_checkpoint().prior, SETTINGS, success_rule("released"))
    actions = np.random.default_rng(0).uniform(-1, 1, (15, 2)).astype(np.float32)
    for action in actions:
        info = env.step(action)[-1]
    np.testing.assert_array_equal(oracle._simulate(start, actions), info["state"])
    with pytest.raises(ValueError, match="no gradient; leave the oracle out with oracle_episodes=0"):
        OracleController(tiny_checkpoint().prior, replace(SETTINGS, method="cem+gradient"), success_rule("released"))


def test_masks_are_coloured_by_slot() -> None:
    masks = np.zeros((2, 1, 2), np.float32)
    masks[0, 0, 0] = masks[1, 0, 1] = 1
    picture = colour_masks(masks)
    assert picture.shape == (1, 2, 3) and not np.array_equal(picture[0, 0], picture[0, 1])


TINY = [
    "weights=weights",
    "planner.method=cem",
    "planner.cem.n_samples=6",
    "planner.cem.n_iterations=2",
    "planner.cem.n_elites=3",
    "videos=1",
]


def test_planning_command(tmp_path: Path) -> None:
    tiny_checkpoint().save_pretrained(tmp_path / "weights")
    done = run("cjepa_agent.evaluate", *TINY, "episodes=3", "budget=7", "oracle_episodes=1", folder=tmp_path)
    report = json.loads((tmp_path / "results/pusht_planning.json").read_text())
    assert [(row["rule"], row["controller"], row["episodes"]) for row in report["rows"]] == [
        (rule, controller, n)
        for rule in SUCCESS_RULES
        for controller, n in (("no-op", 3), ("random", 3), ("C-JEPA", 3), ("oracle", 1))
    ]
    agent_rows = [row for row in report["rows"] if row["controller"] == "C-JEPA"]
    assert all(row["replans"] == 6 and row["seconds_per_replan"] > 0 for row in agent_rows)
    assert [row["planning_target"] for row in agent_rows][1:] == [
        "block slot + 0.3 proprio[0, 1], last step",
        "block slot, last step",
    ]
    assert report["config"]["planner"]["cem"]["n_samples"] == 6
    assert "torch" in report["provenance"]["versions"] and str(tmp_path) not in json.dumps(report["provenance"])
    with (tmp_path / "results/pusht_planning.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 30 and {"rule", "controller", "dataset_episode", "success", "steps"} <= set(lines[0])
    films = sorted(p.name for p in (tmp_path / "videos").iterdir())
    assert films == ["pusht_released_0.mp4", "pusht_strict_0.mp4"]  # moderate shares released's rollouts
    page = (tmp_path / "results/pusht_planning.html").read_text()
    assert page.count("data:video/mp4;base64,") == 2 and "95 % interval" in page and 'src="http' not in page
    assert "strict    C-JEPA" in done.stdout


def test_coverage_command(tmp_path: Path) -> None:
    tiny_checkpoint().save_pretrained(tmp_path / "weights")
    done = run("cjepa_agent.evaluate", *TINY, "task=coverage", "episodes=2", "budget=6", folder=tmp_path)
    report = json.loads((tmp_path / "results/pusht_coverage.json").read_text())
    assert [row["controller"] for row in report["rows"]] == ["no-op", "random", "C-JEPA"]
    assert all(0 <= row["max_coverage"] <= 1 for row in report["rows"])
    assert "mean of max coverage" in done.stdout
    assert (tmp_path / "videos/pusht_coverage_0.mp4").stat().st_size > 0


def test_user_errors_are_one_line(tmp_path: Path) -> None:
    done = run("cjepa_agent.evaluate", f"weights={tmp_path / 'none'}", folder=tmp_path, expect=2)
    assert done.stderr.count("\n") == 1 and "neither a checkpoint folder" in done.stderr


def test_records_do_not_tell_the_folders_of_a_machine(tmp_path: Path) -> None:
    record = EvaluateConfig(out=str(tmp_path), data=str(tmp_path / "pusht.h5"), weights="owner/name").record()
    assert record["out"] == tmp_path.name and record["data"] == "pusht.h5"
    assert record["weights"] == "owner/name" and record["planner"]["cem"]["n_samples"] == 300
