"""Tables of success with intervals, and the files they are kept in."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cjepa_agent.evaluation.episodes import Outcome
from cjepa_agent.files import write_json
from envs.files import atomic

Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
RESAMPLES, PAIRED_RESAMPLES = 2000, 10_000
DRAWN_AT_ONCE = 10_000_000  # scenes of resamples, 80 MB


def wilson_interval(successes: float, n: float, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a success probability, in [0, 1]; counts may be effective ones, with fractions.

    Raises:
        ValueError: not 0 <= successes <= n with n >= 1.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"got {successes} successes of {n}; expected 0 to n, and n at least 1")
    rate, spread = successes / n, z * z / n
    centre = (rate + spread / 2) / (1 + spread)
    half = math.sqrt(rate * (1 - rate) * spread + spread * spread / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def share_of(hits: Sequence[tuple[int, bool]]) -> dict[str, float]:
    """Percentage of hits, each in a scene, with a 95 % interval that knows that hits of one scene depend on each other.

    It is Wilson's interval of as many hits as tell as much if they were independent: their number divided by the design
    effect, the variance of the share by differences between scenes (Taylor linearisation) over that of independent
    hits, taken as 1 where it is less (Kish, Survey Sampling, 1965; with Wilson's interval, Dean & Pagano 2015). One
    scene tells no such effect.
    """
    scenes, right = (np.array(part) for part in zip(*hits, strict=True))
    share, n = float(right.mean()), len(right)
    totals = np.bincount(np.unique(scenes, return_inverse=True)[1], right - share)
    variance = float((totals**2).sum()) / n**2 * len(totals) / max(1, len(totals) - 1)
    effect = max(1.0, variance * n / (share * (1 - share))) if 0 < share < 1 else 1.0
    low, high = wilson_interval(share * n / effect, n / effect)
    return {"mean": 100 * share, "low": 100 * low, "high": 100 * high, "number": n}


def interval_text(value: Mapping[str, float] | None, digits: int) -> str:
    """A ``mean`` with ``low`` and ``high`` end of its interval, as tables have it; empty where there is none."""
    if not value:
        return ""
    return f"{value['mean']:.{digits}f} ({value['low']:.{digits}f} to {value['high']:.{digits}f})"


def scene_mean(values: Sequence[tuple[int, float]], rng: np.random.Generator) -> dict[str, float]:
    """Mean of values, each of a scene, with an interval of 95 % from scenes drawn with replacement; empty of none."""
    if not values:
        return {}
    scenes, each = zip(*values, strict=True)
    return _bootstrapped(np.array(each), scenes, rng, RESAMPLES)


def paired_difference(own: ArrayLike, other: ArrayLike, seed: int, scenes: ArrayLike | None = None) -> dict[str, float]:
    """The difference of two shares of right answers to the same items, in points, with a bootstrap 95 % interval.

    Args:
        own: (items,) or (seeds, items) whether each answer is right, or how often; items are drawn, seeds are not.
        other: likewise.
        seed: of what is drawn, the same whatever else is compared.
        scenes: (items,) the scene of each item, for scenes to be drawn with all their items; by default items are.
    """
    difference = 100 * (np.atleast_2d(own).mean(0) - np.atleast_2d(other).mean(0))
    drawn = np.arange(len(difference)) if scenes is None else scenes
    return _bootstrapped(difference, drawn, np.random.default_rng(seed), PAIRED_RESAMPLES)


def _bootstrapped(
    values: NDArray[np.float64], scenes: ArrayLike, rng: np.random.Generator, resamples: int
) -> dict[str, float]:
    """Mean of values with an interval of 95 % from scenes drawn with replacement."""
    scene = np.unique(scenes, return_inverse=True)[1]
    sums, counts = np.bincount(scene, values), np.bincount(scene)
    n = len(sums)
    means = []
    for part in np.array_split(np.arange(resamples), 1 + resamples * n // DRAWN_AT_ONCE):
        drawn = rng.integers(0, n, (len(part), n))
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return {"mean": float(sums.sum() / counts.sum()), "low": float(low), "high": float(high), "number": len(values)}


def points_text(value: Mapping[str, float]) -> str:
    """A paired difference as tables have it."""
    return f"{value['mean']:+.1f} ({value['low']:+.1f} to {value['high']:+.1f})"


@dataclass(frozen=True)
class Row:
    """Outcomes of one controller under one rule.

    Attributes:
        rule: how success was scored.
        controller: who acted.
        target: what plans were judged by.
        outcomes: one per episode.
    """

    rule: str
    controller: str
    target: str
    outcomes: tuple[Outcome, ...]

    def summary(self) -> dict[str, Any]:
        """Success with its 95 % interval (percent), mean of the maximum coverage, and planning time (s)."""
        n, successes = len(self.outcomes), sum(o.success for o in self.outcomes)
        low, high = wilson_interval(successes, n)
        seconds, replans = sum(o.seconds for o in self.outcomes), sum(o.replans for o in self.outcomes)
        return {
            "rule": self.rule,
            "controller": self.controller,
            "episodes": n,
            "successes": successes,
            "success": 100 * successes / n,
            "low": 100 * low,
            "high": 100 * high,
            "max_coverage": sum(o.max_coverage for o in self.outcomes) / n,
            "replans": replans,
            "seconds_per_replan": seconds / replans if replans else None,
            "seconds_per_episode": seconds / n if replans else None,
            "planning_target": self.target,
        }


def table(rows: Sequence[Row], with_coverage: bool = False) -> tuple[list[str], list[list[str]]]:
    """Header and cells for people."""
    columns = [_cells(row.summary()) for row in rows]
    header = [name for name in columns[0] if with_coverage or name != "mean of max coverage"]
    return header, [[cells[name] for name in header] for cells in columns]


def _cells(summary: Mapping[str, Any]) -> dict[str, str]:
    replan, episode = (summary[key] for key in ("seconds_per_replan", "seconds_per_episode"))
    return {
        "rule": summary["rule"],
        "controller": summary["controller"],
        "success": f"{summary['success']:.1f} %",
        "95 % interval": f"{summary['low']:.1f} .. {summary['high']:.1f} %",
        "mean of max coverage": f"{summary['max_coverage']:.3f}",
        "episodes": str(summary["episodes"]),
        "s / replan": "" if replan is None else f"{replan:.2f}",
        "s / episode": "" if episode is None else f"{episode:.2f}",
        "planning target": summary["planning_target"],
    }


def plain_table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Aligned columns for a terminal."""
    lines = [header, *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def write_results(
    folder: Path,
    name: str,
    rows: Sequence[Row],
    config: Mapping[str, Any],
    origin: Mapping[str, Any],
    notes: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write ``<name>.json`` (settings, summaries, episodes, origin, notes) and ``<name>.csv`` (a line per episode)."""
    folder.mkdir(parents=True, exist_ok=True)
    json_path, csv_path = folder / f"{name}.json", folder / f"{name}.csv"
    episodes = [_flat(row, outcome) for row in rows for outcome in row.outcomes]
    summaries = [row.summary() for row in rows]
    report = {"config": config, "rows": summaries, "episodes": episodes, "provenance": origin}
    write_json(json_path, {**report, "notes": notes} if notes else report)
    with atomic(csv_path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(episodes[0]))
        writer.writeheader()
        writer.writerows(episodes)
    return [json_path, csv_path]


def _flat(row: Row, outcome: Outcome) -> dict[str, Any]:
    values = asdict(outcome)
    return {"rule": row.rule, "controller": row.controller, **values.pop("labels"), **values}
