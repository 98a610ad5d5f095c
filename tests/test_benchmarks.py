"""Benchmarks: that what they compare computes the same, what they count, and the commands on tiny settings."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_model import SETTINGS, tiny_checkpoint

from benchmarks import contenders, contest, planning, training
from benchmarks import planners as planners_benchmark
from benchmarks.contenders import Ours, Published, Scenes, StableWorldModel, match_on_host
from benchmarks.contest import Contest, Effort, Entry, entries, episode_horizons, extrapolated
from benchmarks.latency import Latency
from benchmarks.measuring import Counts, Predictions, Transfers
from benchmarks.planners import PlannersBenchmark, pareto_front, searches
from benchmarks.planning import PlanningBenchmark
from benchmarks.scaling import Ranges, log_slope
from benchmarks.training import TrainingBenchmark
from cjepa_agent.data.episodes import EpisodeFile, write_episodes
from cjepa_agent.latent import Latent
from cjepa_agent.manifest import draw
from cjepa_agent.matching import match_slots
from cjepa_agent.planning import ObjectiveSettings, PlannerSettings
from cjepa_agent.predictors.slotformer import SlotFormerConfig
from planners import CEMConfig, RecedingHorizon

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
MATCHED = ObjectiveSettings(matching=True)
TINY = PlannerSettings(cem=CEMConfig(n_samples=6, n_iterations=3, n_elites=3), receding=RecedingHorizon(3, 3))
needs_matplotlib = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")


@pytest.fixture(autouse=True)
def any_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """To measure the machine's takes longer than all the rest."""
    monkeypatch.setattr(contest, "matmul_rate", lambda device, dtype: 1e11)


@pytest.mark.parametrize("reencode", [False, True])
@pytest.mark.parametrize("objective", [MATCHED, replace(MATCHED, path="mean", proprio_dims=(0, 1))])
def test_the_published_way_costs_the_same_candidates_alike(reencode: bool, objective: ObjectiveSettings) -> None:
    checkpoint, scenes = tiny_checkpoint(), Scenes.make(2, seed=0)
    for head in (checkpoint.model.predictor.head_slot, checkpoint.model.predictor.head_proprio):
        torch.nn.init.normal_(head.weight)  # predictions so far from the start that slots swap
    ours = Ours(checkpoint, TINY, objective, CPU)
    published = Published(checkpoint, TINY, objective, CPU, reencode=reencode)
    actions = torch.rand(2, 7, 3, 10, generator=torch.Generator().manual_seed(0)) - 0.5
    with torch.no_grad():
        start, goal = scenes.encode(ours.model)
        expected = ours.planner.cost(start, goal, actions)
        ends = ours.model.rollout(start.history, start.taken, actions).slots[:, :, -1]
        order = match_slots(ends, goal.slots[:, None])
        for env in range(2):
            chosen = slice(env, env + 1)
            costs = published.cost(scenes.select(chosen), None, actions[chosen])
            torch.testing.assert_close(costs, expected[chosen], rtol=1e-4, atol=1e-5)
    assert not torch.equal(order, torch.arange(3).expand_as(order))
    assert expected.std() > 0.01
    torch.testing.assert_close(published.solve(scenes, 3, [0, 1]), ours.solve(scenes, 3, [0, 1]), rtol=1e-3, atol=1e-4)


def test_the_published_way_lets_a_history_grow_as_ours_does() -> None:
    predictor = SlotFormerConfig(depth=1, width=16, heads=2, mlp=16, history=3)
    checkpoint, scenes = tiny_checkpoint(predictor=predictor), Scenes.make(1, seed=0)
    assert checkpoint.model.predictor.grows
    for name, weight in checkpoint.model.predictor.named_parameters():
        if "head" in name:  # they begin at zero, which foretells what is seen
            torch.nn.init.normal_(weight)
    ours, published = (kind(checkpoint, TINY, MATCHED, CPU) for kind in (Ours, Published))
    actions = torch.rand(1, 5, 4, 10, generator=torch.Generator().manual_seed(0)) - 0.5
    with torch.no_grad():
        expected = ours.planner.cost(*scenes.encode(ours.model), actions)
        torch.testing.assert_close(published.cost(scenes, None, actions), expected, rtol=1e-4, atol=1e-5)


def test_a_part_of_a_shrinking_search_tells_nothing_of_the_whole() -> None:
    settings = PlannerSettings.preset("fast")
    entry = Entry(Ours, tiny_checkpoint(), settings, Effort(iterations=1))
    with pytest.raises(ValueError, match="fast searches with fewer candidates each round"):
        Contest({"fast": entry}, MATCHED, CPU, envs=1, episode_blocks=2, repeats=1, seed=0)


def test_matching_on_the_host_is_the_matching_on_the_device() -> None:
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn(2, 5, 4, 3, generator=generator), torch.randn(2, 1, 4, 3, generator=generator)
    assert torch.equal(match_on_host(source, target), match_slots(source, target))


def test_the_solver_of_stable_worldmodel_finds_plans_of_low_cost() -> None:
    pytest.importorskip("stable_worldmodel.solver")
    checkpoint, scenes = tiny_checkpoint(), Scenes.make(2, seed=0)
    torch.nn.init.normal_(checkpoint.model.predictor.head_slot.weight)
    settings = replace(TINY, cem=CEMConfig(n_samples=60, n_iterations=6, n_elites=8))
    ours = Ours(checkpoint, settings, MATCHED, CPU)
    start, goal = scenes.encode(ours.model)
    plans = [c.solve(scenes, 3, [0, 1]) for c in (ours, StableWorldModel(checkpoint, settings, MATCHED, CPU))]
    with torch.no_grad():
        found, peer, still = (
            ours.planner.cost(start, goal, plan.unsqueeze(1))[:, 0]
            for plan in (*plans, checkpoint.prior.mean.expand(2, 3, -1))
        )
    assert (peer < still).all() and torch.allclose(found, peer, rtol=0.2)


def test_horizons_of_an_episode() -> None:
    assert episode_horizons(RecedingHorizon(5, 5), 10) == [5, 5]
    assert episode_horizons(PlannerSettings.preset("fast").receding, 10) == [5, 4, 3, 2, 2, 3, 2, 2, 3, 2]


def test_predictions_whose_gradient_is_asked_for_count_three_times() -> None:
    model = tiny_checkpoint().model
    history = Latent(torch.zeros(5, 1, 3, 20), torch.zeros(5, 1, model.config.proprio_dim))
    actions = torch.zeros(5, 1, model.config.action_dim)
    with Predictions(model.predictor) as predictions:
        with torch.no_grad():
            model.predictor(history, actions)
        assert predictions.count == 5
        model.predictor(history, actions)
    assert predictions.count == 20


def test_extrapolation_is_linear_in_what_grows() -> None:
    fixed, each = 0.5, 0.2
    assert extrapolated(fixed + 3 * each, fixed + 6 * each, 10) == pytest.approx(fixed + 30 * each)
    assert extrapolated(3 * each, 6.1 * each, 1) == pytest.approx(3.1 * each)


def test_rows_count_all_of_the_work() -> None:
    checkpoint = tiny_checkpoint()
    entry = Entry(Ours, checkpoint, TINY, Effort())
    part = replace(entry, effort=Effort(envs=1, iterations=1, samples=3))
    missing = replace(entry, make=StableWorldModel)
    measured = Contest(
        {"all": entry, "part": part, "missing": missing},
        MATCHED,
        CPU,
        envs=2,
        episode_blocks=6,
        repeats=1,
        seed=0,
    )
    whole = measured.row("all")
    # 3 iterations of 6 candidates and the final mean, 3 steps each.
    assert whole.predictions == 3 * (3 * 6 + 1) and whole.solves == 4 and whole.note == "all"
    counts = Counts.of(
        lambda: Ours(checkpoint, TINY, MATCHED, CPU).solve(measured.scenes.select(slice(1)), 3, [0]),
        checkpoint.model.predictor,
    )
    assert whole.flops == counts.flops > 0
    extrapolation = measured.row("part")
    assert extrapolation.note == ("1 of 2 environments, 1 of 3 iterations, 3 of 6 candidates, extrapolated linearly")
    assert extrapolation.predictions == whole.predictions
    assert extrapolation.flops == pytest.approx(whole.flops, rel=1e-6)
    assert whole.seconds_per_evaluation == pytest.approx(4 * whole.seconds_per_solve)
    if importlib.util.find_spec("stable_worldmodel") is None:
        row = measured.row("missing")
        assert row.seconds_per_solve is None and "stable_worldmodel is not installed" in row.note


def test_transfers_are_copies_between_devices() -> None:
    with Transfers() as transfers:
        x = torch.ones(3).to(torch.float64).clone()
        assert transfers.count == 0
        x.to("meta")
        torch.empty(3, device="meta").copy_(x)
    assert transfers.count == 2


def test_the_pareto_front_rises_with_work() -> None:
    points = {"a": (1.0, 50.0), "b": (2.0, 40.0), "c": (3.0, 60.0), "d": (3.0, 70.0), "e": (9.0, 70.0)}
    assert pareto_front(points) == ["a", "d"]


def test_slopes_are_those_of_powers() -> None:
    assert log_slope((1, 2, 8), (3.0, 12.0, 192.0)) == pytest.approx(2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "guess"}, "task is 'guess'"),
        ({"rows": ("theirs",)}, "theirs"),
        ({"planner": replace(TINY, method="mppi")}, "measures cem"),
        ({"envs": 0}, "at least 1"),
    ],
)
def test_bad_settings_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PlanningBenchmark(**change)
    with pytest.raises(ValueError, match=r"ranges\.slots"):
        Ranges(slots=(4,))
    with pytest.raises(ValueError, match="samples is 1"):
        Effort(samples=1)
    with pytest.raises(ValueError, match="expected some of"):
        PlannersBenchmark(searches=("guess",))


def test_rows_of_the_command_exist() -> None:
    efforts = dict.fromkeys(("ours", "published", "peer", "patches"), Effort())
    rows = entries("pusht", TINY, efforts, 0)
    assert set(planning.ROWS) == set(rows)
    entry, settings = rows["patches"], replace(TINY, cem=CEMConfig(2, 1, 2))
    patches = entry.make(entry.checkpoint, settings, MATCHED, CPU)
    assert patches.solve(Scenes.make(1, 0), 1, [0]).shape == (1, 1, 10)
    assert planning.PlanningBenchmark().rows == planning.ROWS


def test_table_and_latency_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_checkpoint().save_pretrained(tmp_path / "weights")
    small = PlanningBenchmark(
        weights=str(tmp_path / "weights"),
        planner=TINY,
        envs=2,
        rows=("ours", "published"),
        latency=Latency(replans=3),
        out=str(tmp_path),
    )
    planning.run(small)
    report = json.loads((tmp_path / "benchmark_planning_table.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["ours", "published"]
    # Three steps, and the goal, per candidate: matching on the host is what differs, not the network's arithmetic.
    assert report["rows"][0]["predictions"] == report["rows"][1]["predictions"]
    assert "s / evaluation" in capsys.readouterr().out
    planning.run(replace(small, task="latency"))
    latency = json.loads((tmp_path / "benchmark_planning_latency.json").read_text())
    assert latency["replans"] == 3 and 0 < latency["p50"] <= latency["p95"] <= latency["p99"]
    assert str(tmp_path) not in json.dumps(latency)


@needs_matplotlib
def test_scaling_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_checkpoint().save_pretrained(tmp_path / "weights")
    ranges = Ranges((1, 2), (2, 4), (1, 2), (2, 13), fixed_samples=2, fixed_horizon=1, iterations=1, repeats=1)
    planning.run(PlanningBenchmark("scaling", weights=str(tmp_path / "weights"), ranges=ranges, out=str(tmp_path)))
    report = json.loads((tmp_path / "benchmark_planning_scaling.json").read_text())
    assert [curve["size"] for curve in report["curves"]] == ["environments", "candidates", "horizon", "slots"]
    assert len(list(tmp_path.glob("*.png"))) == 4 and "slope" in capsys.readouterr().out


@needs_matplotlib
def test_planners_are_compared_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tiny_checkpoint()
    checkpoint.save_pretrained(tmp_path / "weights")
    write_validation_pairs(tmp_path, pairs=2)
    small = {
        "one": SETTINGS,
        "two": replace(SETTINGS, cem=CEMConfig(4, 1, 2)),
        "other": replace(SETTINGS, method="random"),
    }
    monkeypatch.setattr(planners_benchmark, "searches", lambda: small)
    monkeypatch.setattr(planners_benchmark, "BUDGET", 6)
    config = PlannersBenchmark(
        weights=str(tmp_path / "weights"),
        episodes=2,
        seeds=(0,),
        manifests=str(tmp_path),
        out=str(tmp_path),
    )
    planners_benchmark.run(config)
    path = tmp_path / "benchmark_planners.json"
    first = json.loads(path.read_text())
    # Two plans, of 3 and 2 blocks: 2 x 6 or 1 x 4 candidates and the final mean.
    assert [first["searches"][n]["predictions_per_episode"] for n in ("one", "two")] == [5 * 13, 5 * 5]
    monkeypatch.setattr(planners_benchmark, "measure", lambda *_: pytest.fail("measured again"))
    planners_benchmark.run(config)
    assert json.loads(path.read_text()) == first
    assert path.with_suffix(".png").stat().st_size > 0 and "Pareto" in capsys.readouterr().out
    with pytest.raises(ValueError, match="give another out"):
        planners_benchmark.run(replace(config, episodes=1))
    tiny_checkpoint(seed=1).save_pretrained(tmp_path / "other" / "weights")
    with pytest.raises(ValueError, match="give another out"):
        planners_benchmark.run(replace(config, weights=str(tmp_path / "other" / "weights")))


def write_validation_pairs(folder: Path, pairs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    episodes = []
    for _ in range(60):
        walk = torch.randn(40, 7, generator=generator, dtype=torch.float64).mul(4).cumsum(0).numpy()
        episodes.append({"state": walk + [256, 256, 256, 256, 0, 0, 0], "action": walk[:, :2].astype("float32")})
    write_episodes(folder / "data.h5", episodes, {"policy": "walk"})
    draw(EpisodeFile(folder / "data.h5"), "released", "validation", 0, pairs, 25).write(folder)


def test_the_compared_searches_are_valid() -> None:
    checkpoint = tiny_checkpoint()
    for settings in searches().values():
        Ours(checkpoint, settings, MATCHED, CPU)


def test_training_steps_are_timed_at_published_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (sizes, _), (paper, _) = (TrainingBenchmark().rows()[f"{name}-paper"] for name in ("dino-wm", "c-jepa"))
    assert (sizes.encoder.n_slots, sizes.encoder.slot_dim, sizes.predictor.width) == (196, 384, 384)
    assert (sizes.predictor.depth, sizes.predictor.heads, sizes.predictor.head_dim) == (6, 16, 64)
    assert (paper.encoder.n_slots, paper.predictor.width, paper.predictor.depth) == (4, 128, 6)
    monkeypatch.setattr(contenders, "PATCHES", 8)
    monkeypatch.setattr(contenders, "PATCH_WIDTH", 64)
    training.run(TrainingBenchmark(systems=("ocvp",), batch=2, patches_batch=1, repeats=2, out=str(tmp_path)))
    rows = json.loads((tmp_path / "benchmark_training.json").read_text())["rows"]
    assert list(rows) == ["c-jepa-1", "ocvp", "c-jepa-paper", "dino-wm-paper"]
    for row in rows.values():
        for kind in ("one_frame", "whole_history"):
            assert len(row["seconds"][kind]) == 2 and row["seconds_per_window"][kind] > 0
    assert (rows["dino-wm-paper"]["tokens"], rows["dino-wm-paper"]["batch"]) == (8, 1)
    assert "8 x 64" in capsys.readouterr().out
    with pytest.raises(ValueError, match="'lstm'"):
        TrainingBenchmark(systems=("lstm",))
    for name in ("dino-wm", "ctt", "ocvp-image"):
        with pytest.raises(ValueError, match="more than a predictor of slots"):
            TrainingBenchmark(systems=(name,))
