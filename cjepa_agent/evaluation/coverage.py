"""``task=coverage``: cover the fixed green goal from random starts, as gym-pusht and LeRobot score Push-T."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from cjepa_agent.agent import CJEPAAgent
from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.evaluation.config import EvaluateConfig
from cjepa_agent.evaluation.episodes import Trial
from cjepa_agent.evaluation.session import beside_baselines, finish, make_env, trial_seed

EPISODES, BUDGET = 50, 300


def run(config: EvaluateConfig) -> str:
    """Score the agent beside no-op and random; returns a text to print."""
    n_episodes, budget = config.episodes or EPISODES, config.budget or BUDGET
    # Nothing says when the goal is due, so there is no time to count down to.
    receding = replace(config.planner.receding, shrink=False)
    config = replace(config, planner=replace(config.planner, receding=receding))
    checkpoint = Checkpoint.from_pretrained(config.weights)
    agent = CJEPAAgent(checkpoint, config.planner, config.objectives.coverage, config.device, config.seed)
    trials = [Trial(trial_seed(config.seed, 0, i), {"seed": i}, {"env_seed": i}) for i in range(n_episodes)]
    rows, paths = beside_baselines(config, "coverage", agent, trials, partial(make_env, task="coverage"), budget)
    films = [
        (path, f"seed {i}: largest coverage {rows[-1].outcomes[i].max_coverage:.3f}") for i, path in enumerate(paths)
    ]
    return finish(config, "pusht_coverage", "C-JEPA on Push-T: coverage", rows, films, with_coverage=True)
