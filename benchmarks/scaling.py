"""How the time of one CEM iteration grows with the size of the problem."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import linear_regression

import torch
from tqdm import tqdm

from benchmarks.contenders import Ours, Scenes, random_network
from benchmarks.contest import limited
from benchmarks.measuring import seconds
from benchmarks.report import write_figure
from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.encoders.kinds import EncoderConfig
from cjepa_agent.planning import ObjectiveSettings, PlannerSettings, PlanStart


@dataclass(frozen=True)
class Ranges:
    """Sizes to measure; one is varied, the others stay as they are given below.

    Attributes:
        envs: B.
        samples: N.
        horizons: H, action blocks.
        slots: S, of networks with random weights; compared in order, since exact matching takes 12 at most.
        fixed_envs, fixed_samples, fixed_horizon: while another size is varied.
        iterations: of the search, per measurement.
        repeats: measured rounds, of which the fastest counts.

    Raises:
        ValueError: a range has fewer than two sizes, or a number is out of range.
    """

    envs: tuple[int, ...] = (1, 4, 16, 64, 256)
    samples: tuple[int, ...] = (64, 256, 1024, 4096)
    horizons: tuple[int, ...] = (1, 2, 5, 10)
    slots: tuple[int, ...] = (4, 8, 12, 16)
    fixed_envs: int = 1
    fixed_samples: int = 64
    fixed_horizon: int = 5
    iterations: int = 2
    repeats: int = 3

    def __post_init__(self) -> None:
        for name in ("envs", "samples", "horizons", "slots"):
            sizes = getattr(self, name)
            if len(set(sizes)) < 2 or min(sizes) < (2 if name == "samples" else 1):
                raise ValueError(f"ranges.{name} is {list(sizes)}; expected two different sizes or more")
        if min(self.fixed_envs, self.fixed_horizon, self.iterations, self.repeats) < 1 or self.fixed_samples < 2:
            raise ValueError(f"fixed sizes, iterations and repeats must be at least 1, samples 2, got {self}")


@dataclass(frozen=True)
class Curve:
    """Seconds per solve of the whole batch over one size.

    Attributes:
        size: what is varied.
        values: of it, ascending.
        seconds: of each, encoding not counted.
        slope: of their logarithms: 1 where the time is proportional to the size, 0 where it does not depend on it.
    """

    size: str
    values: tuple[int, ...]
    seconds: tuple[float, ...]
    slope: float


def measure_scaling(
    checkpoint: Checkpoint,
    planner: PlannerSettings,
    objective: ObjectiveSettings,
    device: torch.device,
    ranges: Ranges,
    folder: Path,
) -> list[Curve]:
    """Measure all four curves and draw each to ``folder/benchmark_planning_<size>.png``."""

    def time(
        envs: int = ranges.fixed_envs,
        samples: int = ranges.fixed_samples,
        horizon: int = ranges.fixed_horizon,
        network: Checkpoint = checkpoint,
        judged: ObjectiveSettings = objective,
    ) -> float:
        solver = Ours(network, limited(planner, samples, ranges.iterations), judged, device)
        start, goal = Scenes.make(1, 0).to(device).encode(solver.model)
        starts, goals = PlanStart(start.history.repeat(envs), start.taken.repeat(envs, 1, 1)), goal.repeat(envs)
        warm_start = solver.planner.prior.mean.expand(envs, horizon, -1)

        def solve() -> None:
            solver.planner.plan(starts, goals, horizon, list(range(envs)), warm_start)

        solve()
        return min(seconds(solve, device) for _ in range(ranges.repeats))

    def of_slots(n_slots: int) -> float:
        config = checkpoint.model.config
        encoder = EncoderConfig(n_slots=n_slots, slot_dim=config.encoder.slot_dim)
        sized = replace(config, encoder=encoder, roles={})
        return time(
            network=random_network(sized, checkpoint.action_prior, 0),
            judged=replace(objective, objects="all", matching=False),
        )

    curves = [
        _curve("environments", ranges.envs, lambda n: time(envs=n)),
        _curve("candidates", ranges.samples, lambda n: time(samples=n)),
        _curve("horizon", ranges.horizons, lambda n: time(horizon=n)),
        _curve("slots", ranges.slots, of_slots),
    ]
    for curve in curves:
        _draw(curve, folder / f"benchmark_planning_{curve.size}.png")
    return curves


def _curve(size: str, values: Sequence[int], time: Callable[[int], float]) -> Curve:
    values = tuple(sorted(set(values)))
    spent = tuple(time(value) for value in tqdm(values, desc=size))
    return Curve(size, values, spent, log_slope(values, spent))


def log_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of the least-squares line through the logarithms."""
    return linear_regression([math.log(value) for value in x], [math.log(value) for value in y]).slope


def scaling_text(curves: Sequence[Curve]) -> str:
    """The slopes in words."""
    lines = []
    for curve in curves:
        first, last = curve.values[0], curve.values[-1]
        ratio = curve.seconds[-1] / curve.seconds[0]
        lines.append(
            f"{curve.size} {first} to {last} ({last / first:.3g} times): {curve.seconds[0]:.3g} to "
            f"{curve.seconds[-1]:.3g} s ({ratio:.3g} times); slope {curve.slope:.2f}, grows {_word(curve)}"
        )
    return "\n".join(lines)


def _word(curve: Curve) -> str:
    if curve.slope < 0.2:
        return "hardly at all"
    if curve.slope < 0.9:
        return "slower than in proportion"
    return "in proportion" if curve.slope <= 1.1 else "faster than in proportion"


def _draw(curve: Curve, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.loglog(curve.values, curve.seconds, "o-")
    axes.set_xlabel(curve.size)
    axes.set_ylabel("s per solve of the batch")
    axes.set_title(f"slope {curve.slope:.2f}")
    axes.grid(True, which="both", alpha=0.3)
    write_figure(path, figure)
