"""Tables of success with intervals, and the files they are kept in."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cjepa_agent.evaluation.episodes import Outcome
from cjepa_agent.files import write_json
from cjepa_agent.intervals import wilson_interval
from envs.files import atomic


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
