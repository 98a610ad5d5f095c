"""What the Push-T tasks share: environments, seeds, and writing everything down at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cjepa_agent.evaluation.config import EvaluateConfig
from cjepa_agent.evaluation.report import write_page
from cjepa_agent.evaluation.results import Row, plain_table, table, write_results
from cjepa_agent.evaluation.video import PANEL
from cjepa_agent.provenance import provenance
from envs.pusht.env import PushTEnv

IMAGE_SIZE = 64  # px, the size of the training frames


def make_env(kind: type[PushTEnv] = PushTEnv, **arguments: Any) -> PushTEnv:
    """A Push-T environment as agents are scored in."""
    size = {"observation_width": IMAGE_SIZE, "observation_height": IMAGE_SIZE}
    view = {"visualization_width": PANEL, "visualization_height": PANEL, "render_mode": "rgb_array"}
    return kind(obs_type="goal", **{**size, **view, **arguments})


def trial_seed(seed: int, manifest_seed: int, index: int) -> int:
    """Seed of an episode's controller: it depends on the episode, not on the others of the run."""
    return (seed * 1000 + manifest_seed) * 1000 + index


def finish(
    config: EvaluateConfig,
    name: str,
    title: str,
    rows: Sequence[Row],
    videos: Sequence[tuple[Path, str]],
    with_coverage: bool = False,
    notes: Mapping[str, Any] | None = None,
) -> str:
    """Write JSON, CSV and HTML; returns the table, the notes and the list of files as text."""
    folder, settings, origin = Path(config.out), config.record(), provenance()
    files = write_results(folder, name, rows, settings, origin, notes)
    header, cells = table(rows, with_coverage)
    details = {**(notes or {}), "Settings": settings, "Origin": origin}
    remarks = [line for key, value in (notes or {}).items() for line in (f"{key}:", *_lines(value), "")]
    page = write_page(folder / f"{name}.html", title, header, cells, videos, details)
    paths = [*files, *(path for path, _ in videos), page]
    return "\n".join(["", plain_table(header, cells), "", *remarks, "written:", *(f"  {path}" for path in paths)])


def _lines(value: Any) -> list[str]:
    items = [f"{key}: {number:.1f}" for key, number in value.items()] if isinstance(value, Mapping) else value
    return [f"  {item}" for item in items]
