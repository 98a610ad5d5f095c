"""Running episodes in lockstep."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from cjepa_agent.evaluation.controllers import Controller
from envs.pusht.env import PushTEnv

Watch = Callable[[int, PushTEnv, Mapping[str, Any], Any], None]


@dataclass(frozen=True)
class Trial:
    """An episode to run.

    Attributes:
        seed: of the controller.
        reset: keyword arguments of the environment's ``reset``.
        labels: where it comes from, for the results.
    """

    seed: int
    reset: Mapping[str, Any]
    labels: Mapping[str, int]


@dataclass(frozen=True)
class Outcome:
    """How an episode went.

    Attributes:
        labels: the trial's.
        success: whether the environment reported success within the budget.
        steps: environment steps until then, or the budget.
        max_coverage: largest covered share of the drawn goal, 0..1.
        replans: plans made.
        seconds: this episode's share of the controller's time.
    """

    labels: Mapping[str, int]
    success: bool
    steps: int
    max_coverage: float
    replans: int
    seconds: float


@dataclass
class _Run:
    """An episode under way."""

    index: int
    env: PushTEnv
    observation: Mapping[str, Any]
    info: Mapping[str, Any]
    state: Any
    success: bool = False
    steps: int = 0
    max_coverage: float = 0.0
    seconds: float = 0.0


def run_episodes(
    trials: Sequence[Trial],
    make_env: Callable[[], PushTEnv],
    controller: Controller,
    *,
    budget: int,
    batch: int,
    progress: tqdm,
    watch: Watch | None = None,
) -> list[Outcome]:
    """Run ``trials``, ``batch`` at a time in lockstep; an episode ends with its first success or with the budget.

    Args:
        trials: what to run.
        make_env: makes an environment with ``obs_type="goal"``.
        controller: acts.
        budget: environment steps per episode.
        batch: episodes at a time.
        progress: advanced by ``budget`` per episode.
        watch: called after every step with the trial's index, environment, observation with ``info``, and controller
            state.
    """
    outcomes: list[Outcome] = []
    for first in range(0, len(trials), batch):
        group = trials[first : first + batch]
        states = controller.begin([trial.seed for trial in group])
        runs = []
        for offset, (trial, state) in enumerate(zip(group, states, strict=True)):
            env = make_env()
            observation, info = env.reset(**trial.reset)
            runs.append(_Run(first + offset, env, observation, info, state))
        _run_group(runs, controller, budget, progress, watch)
        for trial, run in zip(group, runs, strict=True):
            replans = controller.replans(run.state)
            outcomes.append(Outcome(trial.labels, run.success, run.steps, run.max_coverage, replans, run.seconds))
            run.env.close()
        progress.set_postfix_str(f"{controller.name}: {sum(o.success for o in outcomes)} of {len(outcomes)} solved")
    return outcomes


def _run_group(runs: list[_Run], controller: Controller, budget: int, progress: tqdm, watch: Watch | None) -> None:
    for _ in range(budget):
        active = [run for run in runs if not run.success]
        if not active:
            return
        observations, infos = [run.observation for run in active], [run.info for run in active]
        begun = time.perf_counter()
        actions, states = controller.act(observations, infos, [run.state for run in active])
        share = (time.perf_counter() - begun) / len(active)
        for run, action, state in zip(active, actions, states, strict=True):
            run.observation, _, _, _, run.info = run.env.step(action)
            run.state, run.steps, run.seconds = state, run.steps + 1, run.seconds + share
            run.success = bool(run.info["is_success"])
            run.max_coverage = max(run.max_coverage, float(run.info["coverage"]))
            if watch is not None:
                watch(run.index, run.env, {**run.info, **run.observation}, state)
            progress.update(1 + (budget - run.steps if run.success else 0))
