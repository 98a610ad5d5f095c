"""How long planning takes, and on what: ``python -m benchmarks.planning``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from benchmarks.contest import HEADER, Contest, Effort, checkpoint_of, entries, report
from benchmarks.latency import Latency, latency_table, measure_latency
from benchmarks.scaling import Ranges, measure_scaling, scaling_text
from cjepa_agent.evaluation.results import plain_table
from cjepa_agent.files import write_json
from cjepa_agent.planning import ObjectiveSettings, PlannerSettings
from cjepa_agent.provenance import provenance, settings_record
from cjepa_agent.tensors import require_device
from configs.command import command

EPISODE_BLOCKS = 10
ROWS = (
    "ours",
    "ours-bf16",
    "ours-compiled",
    "fast",
    "fast-bf16",
    "published",
    "reencoding",
    "stable-worldmodel",
    "patches",
)


@dataclass(frozen=True)
class PlanningBenchmark:
    """Measures planners: a table or plots, and a JSON file.

    Attributes:
        task: ``table`` compares ways to plan the same evaluation, ``scaling`` shows how the time grows with the size
            of the problem, ``latency`` how long an agent waits that plans again after every action block.
        rows: of the table: ``ours``; ``ours-bf16``, in bfloat16; ``ours-compiled``, with compiled kernels besides;
            ``fast`` and ``fast-bf16``, which are ours with the search and horizons of ``planner=fast``;
            ``published``, an environment at a time, slots assigned on the host; ``reencoding``, the same with the
            pictures encoded in every cost call; ``stable-worldmodel``, its ``CEMSolver``; and ``patches``, ours with
            DINO-WM at its published size, 196 tokens of 384 numbers, in place of C-JEPA.
        weights: checkpoint: a folder, a Hub id, ``pusht`` for the bundled one, or ``paper`` for the paper's predictor
            with random weights.
        planner: how to plan; ``planner.method`` must be ``cem``. The latency is that of ``planner=fast``'s search.
        objective: what plans are judged by; in ``task=latency`` they are by the agent's own.
        envs: episodes of an evaluation, which plan side by side.
        repeats: measured rounds, of which the fastest counts.
        ours, published, peer, patches: how much of each kind of row is measured.
        ranges: sizes of ``task=scaling``.
        latency: settings of ``task=latency``.
        threads: of the CPU, 0 for PyTorch's choice.
        device: ``cpu`` or ``cuda``.
        seed: of scenes, noise and random weights.
        out: folder for results.

    Raises:
        ValueError: a setting is out of range.
    """

    PRESETS: ClassVar[dict[str, str]] = {"planner": "full"}

    task: str = "table"
    rows: tuple[str, ...] = ROWS
    weights: str = "pusht"
    planner: PlannerSettings = field(default_factory=PlannerSettings)
    objective: ObjectiveSettings = field(default_factory=lambda: ObjectiveSettings(matching=True))
    envs: int = 50
    repeats: int = 1
    ours: Effort = field(default_factory=lambda: Effort(envs=4))
    published: Effort = field(default_factory=lambda: Effort(envs=2))
    peer: Effort = field(default_factory=lambda: Effort(envs=2))
    patches: Effort = field(default_factory=lambda: Effort(envs=1, iterations=1, samples=8))
    ranges: Ranges = field(default_factory=Ranges)
    latency: Latency = field(default_factory=Latency)
    threads: int = 0
    device: str = "cpu"
    seed: int = 0
    out: str = "results"

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task is {self.task!r}; expected one of {list(TASKS)}")
        if unknown := sorted(set(self.rows) - set(ROWS)):
            raise ValueError(f"rows has {unknown}; expected some of {list(ROWS)}")
        if self.planner.method != "cem":
            raise ValueError(f"planner.method is {self.planner.method!r}; the benchmark measures cem")
        if min(self.envs, self.repeats) < 1 or min(self.threads, self.seed) < 0:
            raise ValueError("envs and repeats must be at least 1, threads and seed at least 0")


def table(config: PlanningBenchmark) -> tuple[str, dict[str, Any]]:
    """``task=table``: the text to print and what the JSON file holds."""
    efforts = {name: getattr(config, name) for name in ("ours", "published", "peer", "patches")}
    known = entries(config.weights, config.planner, efforts, config.seed)
    contest = Contest(
        {name: known[name] for name in config.rows},
        config.objective,
        torch.device(config.device),
        envs=config.envs,
        episode_blocks=EPISODE_BLOCKS,
        repeats=config.repeats,
        seed=config.seed,
    )
    rows = []
    for name in config.rows:
        rows.append(contest.row(name))
        print(f"{name}: {rows[-1].seconds_per_evaluation or 0:.4g} s per evaluation; {rows[-1].note}", flush=True)
    return plain_table(HEADER, [row.cells() for row in rows]), report(rows, contest.rates)


def scaling(config: PlanningBenchmark) -> tuple[str, dict[str, Any]]:
    """``task=scaling``: likewise, beside a plot per size."""
    checkpoint = checkpoint_of(config.weights, config.seed)
    curves = measure_scaling(
        checkpoint, config.planner, config.objective, torch.device(config.device), config.ranges, Path(config.out)
    )
    return scaling_text(curves), {"curves": [asdict(curve) for curve in curves]}


def latency(config: PlanningBenchmark) -> tuple[str, dict[str, Any]]:
    """``task=latency``: likewise."""
    checkpoint = checkpoint_of(config.weights, config.seed)
    result = measure_latency(checkpoint, config.planner, config.latency, config.device, config.seed)
    return latency_table(result), result


TASKS: dict[str, Callable[[PlanningBenchmark], tuple[str, dict[str, Any]]]] = {
    "table": table,
    "scaling": scaling,
    "latency": latency,
}


def run(config: PlanningBenchmark) -> None:
    """Run the task, print its table and write ``benchmark_planning_<task>.json``."""
    require_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    text, results = TASKS[config.task](config)
    path = Path(config.out) / f"benchmark_planning_{config.task}.json"
    write_json(path, {"config": settings_record(config), **results, "provenance": provenance()})
    print(f"\n{text}\n\nwritten to {path}")


main = command("planning", PlanningBenchmark, run, package="benchmarks")

if __name__ == "__main__":
    main()
