"""``task=released``: Push-T planning by the protocol that C-JEPA's numbers were published with, flaws included.

Starts are drawn from the rows of the file that the model was trained on, goals lie 24 rows later, and both are shown
as the file's own pictures. ``task=planning`` is the evaluation to trust; this one is for comparison with the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cjepa_agent.agent import CJEPAAgent
from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.data.episodes import EpisodeFile
from cjepa_agent.evaluation.config import EvaluateConfig
from cjepa_agent.evaluation.episodes import Trial
from cjepa_agent.evaluation.results import Row
from cjepa_agent.evaluation.session import beside_baselines, finish, make_env, trial_seed
from cjepa_agent.matching import LARGEST
from cjepa_agent.paths import cache_folder
from cjepa_agent.planning import ObjectiveSettings, PlannerSettings
from envs.pusht.env import PushTEnv
from envs.pusht.physics import WINDOW
from envs.pusht.success import success_rule

SEEDS, EPISODES, BUDGET = (0, 1, 2), 50, 50  # episodes per seed
GOAL_OFFSET = 25  # rows that a start leaves room for; the goal is the last row before that, at + 24
FRAME = 224  # px, side of live frames
FLAWS = (
    "training episodes: starts and goals are from the file that the model was trained on",
    "row-uniform starts: each row is equally likely, so that long episodes count more and may repeat",
    "off by one: the goal is 24 steps away, not 25, and the last start is never drawn",
    "first hit: success counts at any step, so that passing through the goal is enough",
    "the agent counts: its position is in the distance of 20 px, and most plans move little else",
    "50 episodes per seed: the interval of one seed is about 20 points wide",
    "two kinds of pictures: the first frame is the file's, later ones are drawn live",
    "open loop: 25 actions are executed before the only second look",
)
DEPARTURES = (
    "slots start from fixed noise (the authors draw it anew, unseeded, for every plan)",
    "the search keeps within the bounds of actions, five deviations from their mean; the authors' search is free",
    "targets of the agent are clipped to the arena, and the start is exact; the authors' environment does neither",
)


@dataclass(frozen=True)
class Start:
    """A drawn start: its episode, its row there, and its number in the seed's draw."""

    seed: int
    index: int
    episode: int
    step: int


def draw_starts(data: EpisodeFile, seed: int, count: int) -> list[Start]:
    """``count`` starts as the released code draws them.

    Raises:
        ValueError: the file has fewer rows to start from.
    """
    room = np.maximum(data.lengths - GOAL_OFFSET, 0)
    first = np.cumsum(room) - room
    usable = int(room.sum()) - 1  # the released code leaves the last one out
    if usable < count:
        raise ValueError(
            f"{data.path} has {max(usable, 0)} rows with a goal {GOAL_OFFSET - 1} rows later, need {count}"
        )
    rows = np.random.default_rng(seed).choice(usable, count, replace=False)
    episodes = np.searchsorted(np.cumsum(room), rows, side="right")
    return [Start(seed, i, int(e), int(row - first[e])) for i, (row, e) in enumerate(zip(rows, episodes, strict=True))]


class RecordedScenes(PushTEnv):
    """Push-T whose first frame and goal are pictures of a file, given to ``reset`` as options of these names."""

    _recorded_goal: NDArray[np.uint8] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; see ``PushTEnv.reset``."""
        given = dict(options or {})
        start, self._recorded_goal = given.pop("pixels", None), given.pop("goal_pixels", None)
        observation, info = super().reset(seed=seed, options=given)
        if start is not None:
            observation = {**observation, "pixels": start}
        return self._with_goal(observation), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Act; see ``PushTEnv.step``."""
        observation, *rest = super().step(action)
        return self._with_goal(observation), *rest  # type: ignore[return-value]

    def _with_goal(self, observation: Mapping[str, Any]) -> Mapping[str, Any]:
        return observation if self._recorded_goal is None else {**observation, "goal_pixels": self._recorded_goal}


def run(config: EvaluateConfig) -> str:
    """Score the agent beside no-op and random; returns a text to print, with the protocol's flaws."""
    data = EpisodeFile(config.data or cache_folder() / "pusht.h5")
    seeds, count, budget = config.seeds or SEEDS, config.episodes or EPISODES, config.budget or BUDGET
    starts = [start for seed in seeds for start in draw_starts(data, seed, count)]
    trials, outside, solved = [], 0, 0
    for start in starts:
        states = data.read("state", start.episode, start.step, start.step + GOAL_OFFSET)[[0, -1]]
        if not ((states[:, :4] >= 0) & (states[:, :4] <= WINDOW)).all():
            outside += 1
            continue
        solved += int(success_rule("released").satisfied(*states))
        trials.append(_trial(data, start, states, config.seed))
    if not trials:
        raise ValueError(f"all {outside} starts or goals that were drawn from {data.path} lie outside the arena")
    checkpoint = Checkpoint.from_pretrained(config.weights)
    # All slots, each with the one that fits it, and all of proprioception.
    objective = ObjectiveSettings(matching=checkpoint.model.config.encoder.n_slots <= LARGEST)
    agent = CJEPAAgent(checkpoint, config.planner, objective, config.device, config.seed)
    rows, paths = beside_baselines(config, "released", agent, trials, _env, budget)
    notes = {
        "known flaws of this protocol": [
            *FLAWS,
            f"already solved: {solved} of {len(trials)} starts meet the rule before the first action",
            *([f"outside: {outside} starts or goals lie outside the arena and were left out"] if outside else []),
        ],
        "departures from the released code": [*DEPARTURES, *_setting_departures(config, data, objective)],
        "success per seed, %": _per_seed(rows[-1]),
    }
    films = [(path, f"episode {trials[i].labels['dataset_episode']}") for i, path in enumerate(paths)]
    return finish(config, "pusht_released", "C-JEPA on Push-T: released protocol", rows, films, notes=notes)


def _trial(data: EpisodeFile, start: Start, states: NDArray[np.float64], seed: int) -> Trial:
    options: dict[str, Any] = {"state": states[0], "goal_state": states[1]}
    if "pixels" in data.columns:
        for name, row in (("pixels", start.step), ("goal_pixels", start.step + GOAL_OFFSET - 1)):
            options[name] = data.read("pixels", start.episode, row, row + 1)[0]
    labels = {
        "manifest_seed": start.seed,
        "index": start.index,
        "dataset_episode": start.episode,
        "dataset_step": start.step,
    }
    return Trial(trial_seed(seed, start.seed, start.index), {"options": options}, labels)


def _env() -> PushTEnv:
    return make_env(
        RecordedScenes,
        task="goal_state",
        success_rule="released",
        observation_width=FRAME,
        observation_height=FRAME,
    )


def _setting_departures(config: EvaluateConfig, data: EpisodeFile, objective: ObjectiveSettings) -> list[str]:
    departures = []
    if not objective.matching:
        departures.append(f"tokens are compared in their order: exact matching takes up to {LARGEST}")
    if config.planner != PlannerSettings.preset("full"):
        departures.append("another search than the paper's: set planner=full")
    if (config.seeds or SEEDS, config.episodes or EPISODES, config.budget or BUDGET) != (SEEDS, EPISODES, BUDGET):
        departures.append(f"other seeds, episodes or budget than {SEEDS}, {EPISODES} and {BUDGET}")
    if "pixels" not in data.columns:
        departures.append("the file has no pictures: all are drawn live")
    return departures


def _per_seed(row: Row) -> dict[str, float]:
    seeds = sorted({outcome.labels["manifest_seed"] for outcome in row.outcomes})
    groups = {seed: [o.success for o in row.outcomes if o.labels["manifest_seed"] == seed] for seed in seeds}
    return {str(seed): 100 * float(np.mean(group)) for seed, group in groups.items()}
