"""``task=coverage``: cover the fixed green goal from random starts, as gym-pusht and LeRobot score Push-T."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from cjepa_agent.agent import CJEPAAgent
from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.evaluation.config import EvaluateConfig
from cjepa_agent.evaluation.controllers import AgentController, Controller, NoOpController, RandomController
from cjepa_agent.evaluation.episodes import Trial, run_episodes
from cjepa_agent.evaluation.results import Row
from cjepa_agent.evaluation.session import finish, make_env, trial_seed
from cjepa_agent.evaluation.video import Camera

EPISODES, BUDGET = 50, 300


def run(config: EvaluateConfig) -> str:
    """Score the agent beside no-op and random; returns a text to print."""
    n_episodes, budget = config.episodes or EPISODES, config.budget or BUDGET
    # Nothing says when the goal is due, so there is no time to count down to.
    receding = replace(config.planner.receding, shrink=False)
    config = replace(config, planner=replace(config.planner, receding=receding))
    checkpoint = Checkpoint.from_pretrained(config.weights)
    agent = CJEPAAgent(checkpoint, config.planner, config.objectives.coverage, config.device, config.seed)
    controllers: list[Controller] = [NoOpController(), RandomController(), AgentController(agent)]
    camera = Camera(agent, Path(config.video_folder), "pusht_coverage", min(config.videos, n_episodes))
    trials = [Trial(trial_seed(config.seed, 0, i), {"seed": i}, {"env_seed": i}) for i in range(n_episodes)]
    rows = []
    with tqdm(total=len(controllers) * n_episodes * budget, unit="step", miniters=1, smoothing=0.05) as progress:
        for controller in controllers:
            watch = camera if isinstance(controller, AgentController) else None
            outcomes = run_episodes(
                trials,
                lambda: make_env(task="coverage"),
                controller,
                budget=budget,
                batch=config.batch,
                progress=progress,
                watch=watch,
            )
            rows.append(Row("coverage", controller.name, controller.target, tuple(outcomes)))
    films = [
        (path, f"seed {i}: largest coverage {rows[-1].outcomes[i].max_coverage:.3f}")
        for i, path in enumerate(camera.write())
    ]
    return finish(config, "pusht_coverage", "C-JEPA on Push-T: coverage", rows, films, with_coverage=True)
