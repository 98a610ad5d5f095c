"""Success against the world model's work, for every planner: ``python -m benchmarks.planners``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.measuring import Predictions
from benchmarks.report import Report, write_figure
from cjepa_agent.agent import CJEPAAgent
from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.evaluation.controllers import AgentController
from cjepa_agent.evaluation.episodes import run_episodes
from cjepa_agent.evaluation.planning import BUDGET, pair_trial
from cjepa_agent.evaluation.results import Row, plain_table
from cjepa_agent.evaluation.session import make_env
from cjepa_agent.manifest import evaluation_pairs
from cjepa_agent.planning import PlannerSettings, RuleObjectives
from cjepa_agent.provenance import settings_record
from cjepa_agent.tensors import digest, require_device
from configs.command import command
from envs.pusht.success import success_rule
from planners import CEMConfig, GradientConfig, ICEMConfig, MPPIConfig, RandomShootingConfig

CEM_SIZES = ((16, 4), (32, 4), (32, 8), (64, 4), (64, 8), (128, 8), (300, 10))  # candidates, iterations
FAST_SIZES = (32, 64, 256)  # candidates of planner=fast's first iteration, in place of its own
SHORT_SIZES = ((8, 3), (16, 3), (16, 5), (32, 5), (64, 5), (128, 6))
RANDOM_SIZES = (64, 256, 1024)
GRADIENT_SIZES = ((1, 10), (4, 10), (8, 20))  # restarts, iterations


def searches() -> dict[str, PlannerSettings]:
    """What is compared, by name. All but ``full`` share the horizons of ``planner=fast``."""
    fast, full = PlannerSettings.preset("fast"), PlannerSettings.preset("full")
    found = {"fast": fast, "full": full, "full, fast's horizons": replace(full, receding=fast.receding)}
    for n in FAST_SIZES:
        found[f"fast {n}"] = replace(fast, icem=replace(fast.icem, n_samples=n))
    for n, rounds in CEM_SIZES:
        config = CEMConfig(n, rounds, max(n // 8, 2))
        found[f"cem {n} x {rounds}"] = replace(fast, method="cem", cem=config)
        if n <= 32:
            polish = GradientConfig(1, 5, learning_rate=0.1)
            found[f"cem {n} x {rounds} + gradient"] = replace(fast, method="cem+gradient", cem=config, gradient=polish)
    for n, rounds in SHORT_SIZES:
        elites = max(n // 8, 3)
        found[f"icem {n} x {rounds}"] = replace(fast, method="icem", icem=ICEMConfig(n, rounds, elites))
        found[f"mppi {n} x {rounds}"] = replace(fast, method="mppi", mppi=MPPIConfig(n, rounds, max(n // 4, 2)))
    for n in RANDOM_SIZES:
        found[f"random {n}"] = replace(fast, method="random", random=RandomShootingConfig(n))
    for n, rounds in GRADIENT_SIZES:
        found[f"gradient {n} x {rounds}"] = replace(fast, method="gradient", gradient=GradientConfig(n, rounds))
    return found


@dataclass(frozen=True)
class PlannersBenchmark:
    """Runs every planner on the same pairs; a table, a plot with the Pareto front, and a JSON file to resume from.

    Attributes:
        searches: names of those to run, as the table names them; empty for all.
        weights: checkpoint: a folder, a Hub id, or ``pusht`` for the bundled one.
        rule: how success is scored, and thereby what plans are judged by.
        episodes: pairs, taken evenly from the manifests of ``seeds``.
        split: part of the dataset that the pairs are from; settings are chosen on ``validation``.
        seeds: manifests to take pairs from.
        manifests: folder with manifests (``python -m cjepa_agent.manifest split=validation``); empty for those of
            the package, which are of the test split.
        batch: episodes in lockstep; no effect on results on the CPU.
        device: ``cpu`` or ``cuda``.
        seed: of the planners.
        out: folder for results.

    Raises:
        ValueError: a setting is out of range.
    """

    searches: tuple[str, ...] = ()
    weights: str = "pusht"
    rule: str = "released"
    episodes: int = 100
    split: str = "validation"
    seeds: tuple[int, ...] = (0, 1, 42)
    manifests: str = "manifests"
    batch: int = 4
    device: str = "cpu"
    seed: int = 0
    out: str = "results"

    def __post_init__(self) -> None:
        success_rule(self.rule)
        known = searches()
        if unknown := sorted(set(self.searches) - set(known)):
            raise ValueError(f"searches has {unknown}; expected some of {list(known)}")
        if min(self.episodes, self.batch) < 1 or self.seed < 0 or not self.seeds:
            raise ValueError("episodes and batch must be at least 1, seed at least 0, seeds not empty")

    def identity(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """The settings and the weights that results depend on; those of one file must share them."""
        values = settings_record(self) | {"weights_sha256": digest(checkpoint.model.state_dict())}
        for name in ("searches", "batch", "manifests", "out"):
            del values[name]
        return values


def run(config: PlannersBenchmark) -> None:
    """Run what is missing in the file, then print the table and draw the plot."""
    require_device(config.device)
    path = Path(config.out) / "benchmark_planners.json"
    checkpoint, known = Checkpoint.from_pretrained(config.weights), searches()
    report = Report(path, config.identity(checkpoint), "searches")
    wanted = config.searches or tuple(known)
    for name in tqdm(wanted, unit="search"):
        settings = asdict(known[name])
        if report.entries.get(name, {}).get("settings") != settings:
            report.add(name, {**measure(config, checkpoint, known[name]), "settings": settings})
    done = report.entries
    rows = {name: done[name] for name in wanted}
    front = pareto_front({name: (row["predictions_per_episode"], row["success"]) for name, row in rows.items()})
    draw(rows, front, path.with_suffix(".png"))
    header = ["search", "success", "95 % interval", "predictions / episode", "s / replan", "Pareto"]
    print(plain_table(header, [_cells(name, rows[name], front) for name in _by_work(rows)]))
    print(f"\nwritten to {path}")


def measure(config: PlannersBenchmark, checkpoint: Checkpoint, settings: PlannerSettings) -> dict[str, Any]:
    """Success of one search, with its interval, and predictions of the world model, of which a gradient costs three."""
    pairs = evaluation_pairs(config.rule, config.split, config.seeds, config.episodes, config.manifests or None)
    objective = RuleObjectives.named(config.rule)
    controller = AgentController(CJEPAAgent(checkpoint, settings, objective, config.device, config.seed))
    with (
        tqdm(total=len(pairs) * BUDGET, unit="step", leave=False) as progress,
        Predictions(checkpoint.model.predictor) as predictions,
    ):
        outcomes = run_episodes(
            [pair_trial(config.seed, *pair) for pair in pairs],
            lambda: make_env(task="goal_state", success_rule=config.rule),
            controller,
            budget=BUDGET,
            batch=config.batch,
            progress=progress,
        )
    summary = Row(config.rule, controller.name, controller.target, tuple(outcomes)).summary()
    work = {"predictions_per_episode": predictions.count / len(pairs)}
    return {**summary, **work, "solved": [outcome.success for outcome in outcomes]}


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names whose success no other reaches with as little work, by rising work, of (work, success)."""
    front: list[str] = []
    for name in sorted(points, key=lambda n: (points[n][0], -points[n][1])):
        if not front or points[name][1] > points[front[-1]][1]:
            front.append(name)
    return front


def draw(rows: Mapping[str, Mapping[str, Any]], front: Sequence[str], path: Path) -> None:
    """Success over work, with intervals, and the Pareto front as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for method in sorted({row["settings"]["method"] for row in rows.values()}):
        chosen = [row for row in rows.values() if row["settings"]["method"] == method]
        x, y = [row["predictions_per_episode"] for row in chosen], [row["success"] for row in chosen]
        below, above = [r["success"] - r["low"] for r in chosen], [r["high"] - r["success"] for r in chosen]
        axes.errorbar(x, y, yerr=[below, above], fmt="o", label=method, elinewidth=0.7)
    line = [(rows[name]["predictions_per_episode"], rows[name]["success"]) for name in front]
    axes.plot(*zip(*line, strict=True), "k--", linewidth=1, label="Pareto front")
    axes.set_xscale("log")
    axes.set_xlabel("predictions of the world model per episode")
    axes.set_ylabel("success, %")
    axes.grid(True, alpha=0.3)
    axes.legend()
    write_figure(path, figure)


def _by_work(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return sorted(rows, key=lambda name: float(rows[name]["predictions_per_episode"]))


def _cells(name: str, row: Mapping[str, Any], front: Sequence[str]) -> list[str]:
    return [
        name,
        f"{row['success']:.1f} %",
        f"{row['low']:.1f} .. {row['high']:.1f} %",
        f"{row['predictions_per_episode']:.0f}",
        f"{row['seconds_per_replan']:.3f}",
        "*" if name in front else "",
    ]


main = command("planners", PlannersBenchmark, run, package="benchmarks")

if __name__ == "__main__":
    main()
