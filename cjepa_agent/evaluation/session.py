"""What the Push-T tasks share: environments, seeds, and writing everything down at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cjepa_agent.agent import CJEPAAgent
from cjepa_agent.evaluation.config import EvaluateConfig
from cjepa_agent.evaluation.controllers import AgentController, Controller, NoOpController, RandomController
from cjepa_agent.evaluation.episodes import Trial, run_episodes
from cjepa_agent.evaluation.report import write_page
from cjepa_agent.evaluation.results import Row, plain_table, table, write_results
from cjepa_agent.evaluation.video import PANEL, Camera
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


def beside_baselines(
    config: EvaluateConfig,
    rule: str,
    agent: CJEPAAgent,
    trials: Sequence[Trial],
    make: Callable[[], PushTEnv],
    budget: int,
) -> tuple[list[Row], list[Path]]:
    """The rows of doing nothing, of random actions and of the agent, and films of its first episodes.

    Args:
        config: its ``batch``, ``videos`` and ``video_folder`` are read.
        rule: name of the rows.
        agent: acts last.
        trials: episodes.
        make: makes their environments.
        budget: steps of each.
    """
    controllers: list[Controller] = [NoOpController(), RandomController(), AgentController(agent)]
    camera = Camera(agent, Path(config.video_folder), f"pusht_{rule}", min(config.videos, len(trials)))
    rows = []
    with tqdm(total=len(controllers) * len(trials) * budget, unit="step", miniters=1, smoothing=0.05) as progress:
        for controller in controllers:
            watch = camera if isinstance(controller, AgentController) else None
            outcomes = run_episodes(
                trials, make, controller, budget=budget, batch=config.batch, progress=progress, watch=watch
            )
            rows.append(Row(rule, controller.name, controller.target, tuple(outcomes)))
    return rows, camera.write()


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
