"""``task=planning``: reach the state that a held-out episode reached 25 steps later, from pixels."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

from tqdm import tqdm

from cjepa_agent.agent import CJEPAAgent
from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.evaluation.config import EvaluateConfig
from cjepa_agent.evaluation.controllers import (
    AgentController,
    Controller,
    NoOpController,
    OracleController,
    RandomController,
)
from cjepa_agent.evaluation.episodes import Trial, run_episodes
from cjepa_agent.evaluation.results import Row, plain_table, table
from cjepa_agent.evaluation.session import finish, make_env, trial_seed
from cjepa_agent.evaluation.video import Camera
from cjepa_agent.manifest import Pair, evaluation_pairs
from envs.pusht.success import success_rule

EPISODES, BUDGET, SEEDS = 20, 50, (0, 1, 42)
LabelledPair = tuple[int, int, Pair]


def run(config: EvaluateConfig) -> str:
    """Score the agent beside no-op, random and oracle; returns a text to print."""
    evaluation = PlanningEvaluation(config)
    rows = [row for rule in config.rules for row in evaluation.rows(rule)]
    return finish(config, "pusht_planning", "C-JEPA on Push-T: planning", rows, evaluation.videos)


class PlanningEvaluation:
    """Runs the rows of the table one by one.

    Rules that agree in predicate, pairs and planning target share their rollouts.

    Args:
        config: what to run.
    """

    def __init__(self, config: EvaluateConfig) -> None:
        self.config, self.budget = config, config.budget or BUDGET
        self.checkpoint = Checkpoint.from_pretrained(config.weights)
        folder, count = config.manifests or None, config.episodes or EPISODES
        self.pairs = {r: evaluation_pairs(r, config.split, config.seeds or SEEDS, count, folder) for r in config.rules}
        self.videos: list[tuple[Path, str]] = []
        self._shared: dict[Hashable, Row] = {}
        episodes = sum(self._episodes(rule, c) for rule in config.rules for c in self._controllers(rule))
        self._progress = tqdm(total=episodes * self.budget, unit="step", miniters=1, smoothing=0.05)

    def rows(self, rule: str) -> list[Row]:
        """The rows of one rule; each is printed as soon as it is known."""
        rows = []
        for controller in self._controllers(rule):
            rows.append(self._row(rule, controller))
            header, cells = table(rows[-1:])
            tqdm.write(plain_table(header, cells).splitlines()[-1])
        if rule == self.config.rules[-1]:
            self._progress.close()
        return rows

    def _controllers(self, rule: str) -> list[Controller]:
        config, scored = self.config, success_rule(rule)
        objective = getattr(config.objectives, rule)
        agent = CJEPAAgent(self.checkpoint, config.planner, objective, config.device, config.seed)
        controllers: list[Controller] = [NoOpController(), RandomController()] if config.baselines else []
        controllers.append(AgentController(agent))
        if config.oracle_episodes:
            controllers.append(OracleController(self.checkpoint.action_prior, config.planner, scored))
        return controllers

    def _episodes(self, rule: str, controller: Controller) -> int:
        count = len(self.pairs[rule])
        return min(count, self.config.oracle_episodes) if isinstance(controller, OracleController) else count

    def _row(self, rule: str, controller: Controller) -> Row:
        scored, n_episodes = success_rule(rule), self._episodes(rule, controller)
        pairs = spread(self.pairs[rule], n_episodes)
        predicate = (scored.distance, scored.angle, scored.uses_agent, scored.hold)
        key = (controller.name, controller.target, predicate, tuple(pairs))
        if key in self._shared:
            self._progress.update(n_episodes * self.budget)
            return Row(rule, controller.name, controller.target, self._shared[key].outcomes)
        self._progress.set_description(rule)
        camera = None
        if isinstance(controller, AgentController):
            folder = Path(self.config.video_folder)
            camera = Camera(controller.agent, folder, f"pusht_{rule}", min(self.config.videos, n_episodes))
        outcomes = run_episodes(
            [pair_trial(self.config.seed, *pair) for pair in pairs],
            lambda: make_env(task="goal_state", success_rule=rule),
            controller,
            budget=self.budget,
            batch=self.config.batch,
            progress=self._progress,
            watch=camera,
        )
        if camera is not None:
            paths = camera.write()
            for path, outcome in zip(paths, outcomes[: len(paths)], strict=True):
                ending = f"solved after {outcome.steps} steps" if outcome.success else "not solved"
                self.videos.append((path, f"{rule}, episode {outcome.labels['dataset_episode']}: {ending}"))
        self._shared[key] = Row(rule, controller.name, controller.target, tuple(outcomes))
        return self._shared[key]


def pair_trial(seed: int, manifest_seed: int, index: int, pair: Pair) -> Trial:
    """The episode of a pair, for a run of seed ``seed``."""
    options = {"state": pair.state, "goal_state": pair.goal_state}
    labels = {
        "manifest_seed": manifest_seed,
        "index": index,
        "dataset_episode": pair.episode,
        "dataset_step": pair.step,
    }
    return Trial(trial_seed(seed, manifest_seed, index), {"options": options}, labels)


def spread(pairs: list[LabelledPair], count: int) -> list[LabelledPair]:
    """``count`` of the pairs, evenly spread."""
    return [pairs[i * len(pairs) // count] for i in range(count)]
