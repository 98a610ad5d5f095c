"""One table of planners on the same scenes: ``python -m benchmarks.planning``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.contenders import Contender, Ours, Published, Scenes, StableWorldModel, paper_network, patch_network
from benchmarks.measuring import Counts, matmul_rate, peak_bytes, reset_peak, seconds
from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.planning import ObjectiveSettings, PlannerSettings
from planners import CEMConfig, RecedingHorizon, RecedingState

PAPER = "paper"
Make = Callable[[Checkpoint, PlannerSettings, ObjectiveSettings, torch.device], Contender]


@dataclass(frozen=True)
class Effort:
    """How much of a row is measured; the rest is extrapolated linearly, and the row says so.

    Attributes:
        envs: environments, null for all.
        iterations: of the search, null for all; of fewer, twice as many are measured, too, to tell what a solve takes
            besides iterations.
        samples: candidates per iteration, null for all.

    Raises:
        ValueError: a number is out of range.
    """

    envs: int | None = None
    iterations: int | None = None
    samples: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("envs", 1), ("iterations", 1), ("samples", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; expected at least {least}, or null for all")


@dataclass(frozen=True)
class Entry:
    """A row to be: who plans, with what.

    Attributes:
        make: the contender.
        checkpoint, settings: network and search.
        effort: how much of it is measured.
    """

    make: Make
    checkpoint: Checkpoint
    settings: PlannerSettings
    effort: Effort


@dataclass(frozen=True)
class Row:
    """What a planner takes for an evaluation, per solve of one environment on average.

    Attributes:
        name: who plans.
        note: how much was measured, where it is not all, or why nothing was.
        seconds_per_solve: None where nothing was measured, like all that follow.
        seconds_per_evaluation: of all episodes together, without the environments' own time.
        solves: plans of an evaluation.
        predictions: per solve: frames that the world model predicts, one candidate each.
        flops: per solve: arithmetic of matrix products and attention.
        rate_share: of the machine's measured matrix-multiply rate.
        peak_bytes: most memory in use while measured; the whole process on the CPU, tensors on a GPU.
        transfers: per solve: copies between host and device and values the host reads; None on the CPU.
    """

    name: str
    note: str = ""
    seconds_per_solve: float | None = None
    seconds_per_evaluation: float | None = None
    solves: int | None = None
    predictions: float | None = None
    flops: float | None = None
    rate_share: float | None = None
    peak_bytes: int | None = None
    transfers: float | None = None

    def cells(self) -> list[str]:
        """The row for people."""
        numbers: list[tuple[float | None, float, str]] = [
            (self.seconds_per_solve, 1, ".3g"),
            (self.seconds_per_evaluation, 1, ".4g"),
            (self.predictions, 1, ".0f"),
            (self.flops, 1e-12, ".3g"),
            (self.rate_share, 100, ".1f"),
            (self.peak_bytes, 1e-6, ".0f"),
            (self.transfers, 1, ".4g"),
        ]
        return [self.name, *("" if n is None else f"{n * unit:{form}}" for n, unit, form in numbers), self.note]


HEADER = [
    "planner",
    "s / solve",
    "s / evaluation",
    "predictions / solve",
    "TFLOP / solve",
    "% of rate",
    "peak MB",
    "copies / solve",
    "measured",
]


class Contest:
    """Measures planners one after the other.

    Args:
        entries: by the names of their rows.
        objective: what plans are judged by.
        device: where the networks run.
        envs: episodes of an evaluation, which plan side by side.
        episode_blocks: length of an episode, action blocks.
        repeats: measured rounds, of which the fastest counts.
        seed: of scenes and noise.

    Raises:
        ValueError: a part of a search whose population shrinks is asked for.
    """

    def __init__(
        self,
        entries: dict[str, Entry],
        objective: ObjectiveSettings,
        device: torch.device,
        *,
        envs: int,
        episode_blocks: int,
        repeats: int,
        seed: int,
    ) -> None:
        for name, entry in entries.items():
            if search_of(entry.settings).decay > 1 and (entry.effort.iterations or entry.effort.samples):
                raise ValueError(
                    f"{name} searches with fewer candidates each round, of which a part tells nothing of the whole; "
                    "leave iterations and samples of its effort empty, or the row out"
                )
        self.entries, self.objective, self.device = entries, objective, device
        self.envs, self.episode_blocks, self.repeats = envs, episode_blocks, repeats
        self.scenes, self.seeds = Scenes.make(envs, seed), list(range(seed, seed + envs))
        self.rates = {dtype: matmul_rate(device, getattr(torch, dtype)) for dtype in ("float32", "bfloat16")}

    def row(self, name: str) -> Row:
        """Measure one planner."""
        entry = self.entries[name]
        try:
            return self._measure(name, entry)
        except ImportError as error:
            return Row(name, f"not measured: {error.name} is not installed")

    def _measure(self, name: str, entry: Entry) -> Row:
        settings, effort = entry.settings, entry.effort
        horizons = episode_horizons(settings.receding, self.episode_blocks)
        search, envs = search_of(settings), min(effort.envs or self.envs, self.envs)
        iterations = min(effort.iterations or search.n_iterations, search.n_iterations)
        samples = min(effort.samples or search.n_samples, search.n_samples)
        share = search.n_samples / samples
        contender = entry.make(entry.checkpoint, limited(settings, samples, iterations), self.objective, self.device)
        self._warm_up(contender, settings, envs, horizons)
        reset_peak(self.device)
        spent = {h: self._fastest(contender, envs, h) / envs for h in set(horizons)}
        peak = peak_bytes(self.device)
        if iterations < search.n_iterations:
            twice = limited(settings, samples, 2 * iterations)
            longer = entry.make(entry.checkpoint, twice, self.objective, self.device)
            self._warm_up(longer, settings, envs, horizons)
            for h, first in spent.items():
                second = self._fastest(longer, envs, h) / envs
                spent[h] = extrapolated(first, second, share * search.n_iterations / iterations)
        elif share > 1:
            spent = {h: share * value for h, value in spent.items()}
        counts = self._counts(entry, settings, samples, horizons)
        mean = sum(spent[h] for h in horizons) / len(horizons)
        return Row(
            name=name,
            note=_note((envs, self.envs), (iterations, search.n_iterations), (samples, search.n_samples)),
            seconds_per_solve=mean,
            seconds_per_evaluation=mean * self.envs * len(horizons),
            solves=self.envs * len(horizons),
            predictions=counts.predictions,
            flops=counts.flops,
            rate_share=counts.flops / mean / self.rates[settings.precision],
            peak_bytes=peak,
            transfers=counts.transfers if self.device.type == "cuda" else None,
        )

    def _warm_up(self, contender: Contender, settings: PlannerSettings, envs: int, horizons: Sequence[int]) -> None:
        """One solve, or of compiled kernels all that will be measured: each horizon is compiled for itself."""
        if settings.compile == "off":
            self._solve(contender, 1, horizons[0])
            return
        for horizon in set(horizons):
            self._solve(contender, envs, horizon)

    def _fastest(self, contender: Contender, envs: int, horizon: int) -> float:
        return min(seconds(lambda: self._solve(contender, envs, horizon), self.device) for _ in range(self.repeats))

    def _solve(self, contender: Contender, envs: int, horizon: int) -> Tensor:
        return contender.solve(self.scenes.select(slice(envs)), horizon, self.seeds[:envs])

    def _counts(self, entry: Entry, settings: PlannerSettings, samples: int, horizons: Sequence[int]) -> Counts:
        """Mean per solve; where iterations are alike, two tell what all take."""
        search = search_of(settings)
        factor = search.n_iterations * search.n_samples / samples
        total = Counts(0, 0, 0)
        for horizon in set(horizons):
            if search.decay > 1:
                solve = self._count(entry, settings, horizon)
            else:
                first, second = (self._count(entry, limited(settings, samples, n), horizon) for n in (1, 2))
                solve = first + (second + first * -1) * (factor - 1)
            total = total + solve * (horizons.count(horizon) / len(horizons))
        return total

    def _count(self, entry: Entry, settings: PlannerSettings, horizon: int) -> Counts:
        # What is compiled cannot be watched, and does the same.
        contender = entry.make(entry.checkpoint, replace(settings, compile="off"), self.objective, self.device)
        return Counts.of(lambda: self._solve(contender, 1, horizon), entry.checkpoint.model.predictor)


def episode_horizons(receding: RecedingHorizon, blocks: int) -> list[int]:
    """Horizons of the plans of an episode of so many action blocks."""
    state, horizons = RecedingState(), list[int]()
    while state.executed < blocks:
        horizons.append(receding.next_horizon(state))
        _, state = receding.hand_out(state, torch.zeros(horizons[-1], 1))
    return horizons


def search_of(settings: PlannerSettings) -> CEMConfig:
    """The settings of the search that ``planner.method`` names, CEM's or iCEM's."""
    search: CEMConfig = getattr(settings, settings.method)
    return search


def with_fast_search(planner: PlannerSettings) -> PlannerSettings:
    """``planner`` with the search and horizons of ``planner=fast``."""
    fast = PlannerSettings.preset("fast")
    searches: dict[str, Any] = {method: getattr(fast, method) for method in fast.methods}
    return replace(planner, method=fast.method, receding=fast.receding, **searches)


def limited(settings: PlannerSettings, samples: int, iterations: int) -> PlannerSettings:
    """The same search with another number of candidates and iterations."""
    search = search_of(settings)
    fewer: dict[str, Any] = {
        settings.method: replace(
            search, n_samples=samples, n_iterations=iterations, n_elites=min(search.n_elites, samples)
        )
    }
    return replace(settings, **fewer)


def extrapolated(first: float, second: float, factor: float) -> float:
    """``factor`` times the work that ``second`` has more than ``first``, and what both have besides (0 or more)."""
    work = second - first
    return max(first - work, 0.0) + factor * work


def _note(*parts: tuple[int, int]) -> str:
    names = ("environments", "iterations", "candidates")
    fewer = [f"{n} of {of} {name}" for (n, of), name in zip(parts, names, strict=True) if n < of]
    return f"{', '.join(fewer)}, extrapolated linearly" if fewer else "all"


def checkpoint_of(weights: str, seed: int) -> Checkpoint:
    """A checkpoint by its name; ``paper`` is the paper's predictor with random weights from ``seed``."""
    if weights == PAPER:
        return paper_network(Checkpoint.from_pretrained(), seed)
    return Checkpoint.from_pretrained(weights)


def entries(weights: str, planner: PlannerSettings, efforts: dict[str, Effort], seed: int) -> dict[str, Entry]:
    """The rows that can be asked for.

    Args:
        weights: see ``checkpoint_of``.
        planner: settings of the search.
        efforts: ``ours``, ``published``, ``peer`` and ``patches``.
        seed: of random weights.
    """
    checkpoint = checkpoint_of(weights, seed)
    patches = patch_network(checkpoint, seed)
    # The others know neither of these.
    plain = replace(planner, precision="float32", compile="off")
    halved = replace(planner, precision="bfloat16")
    return {
        "ours": Entry(Ours, checkpoint, planner, efforts["ours"]),
        "ours-bf16": Entry(Ours, checkpoint, halved, efforts["ours"]),
        "ours-compiled": Entry(Ours, checkpoint, replace(halved, compile="kernels"), efforts["ours"]),
        "fast": Entry(Ours, checkpoint, with_fast_search(planner), efforts["ours"]),
        "fast-bf16": Entry(Ours, checkpoint, with_fast_search(halved), efforts["ours"]),
        "published": Entry(Published, checkpoint, plain, efforts["published"]),
        "reencoding": Entry(_reencoding, checkpoint, plain, efforts["published"]),
        "stable-worldmodel": Entry(StableWorldModel, checkpoint, plain, efforts["peer"]),
        "patches": Entry(_in_order, patches, planner, efforts["patches"]),
    }


def _reencoding(
    checkpoint: Checkpoint, settings: PlannerSettings, objective: ObjectiveSettings, device: torch.device
) -> Contender:
    return Published(checkpoint, settings, objective, device, reencode=True)


def _in_order(
    checkpoint: Checkpoint, settings: PlannerSettings, objective: ObjectiveSettings, device: torch.device
) -> Contender:
    # Patches stay where they are: there is nothing to match.
    return Ours(checkpoint, settings, replace(objective, objects="all", matching=False), device)


def report(rows: Sequence[Row], rates: dict[str, float]) -> dict[str, Any]:
    """What the JSON file holds of a table."""
    return {"matmul_flops_per_second": rates, "rows": [asdict(row) for row in rows]}
