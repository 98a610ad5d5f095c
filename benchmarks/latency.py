"""How long an agent waits that plans again after every action block."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.contest import with_fast_search
from cjepa_agent.agent import CJEPAAgent
from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.evaluation.results import plain_table
from cjepa_agent.evaluation.session import make_env
from cjepa_agent.planning import PlannerSettings

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Latency:
    """Settings of ``task=latency``.

    Attributes:
        replans: calls of ``predict`` that plan.
        episode_blocks: action blocks after which a new episode begins.

    Raises:
        ValueError: a number is below 1.
    """

    replans: int = 200
    episode_blocks: int = 10

    def __post_init__(self) -> None:
        if min(self.replans, self.episode_blocks) < 1:
            raise ValueError(f"latency.replans and episode_blocks must be at least 1, got {self}")


def measure_latency(
    checkpoint: Checkpoint, planner: PlannerSettings, latency: Latency, device: str, seed: int
) -> dict[str, Any]:
    """Seconds of each ``agent.predict`` that plans, encoding included, by the search and horizons of ``planner=fast``.

    Calls in between, which hand out the rest of a block, are not counted.
    """
    settings = with_fast_search(planner)
    agent = CJEPAAgent(checkpoint, settings, device=device, seed=seed)
    env = make_env(task="goal_state")
    observation: Mapping[str, Any] = {}
    spent: list[float] = []
    for replan in range(-latency.episode_blocks, latency.replans):  # the first episode warms up all horizons
        if replan % latency.episode_blocks == 0:
            observation, _ = env.reset(seed=seed + max(replan, 0))
            agent.reset()
        for step in range(settings.action_block):
            start = time.perf_counter()
            action, _ = agent.predict(observation)  # answers with an array on the host: nothing is left to wait for
            if step == 0 and replan >= 0:
                spent.append(time.perf_counter() - start)
            observation = env.step(action)[0]
    env.close()
    summary = {f"p{p}": float(np.percentile(spent, p)) for p in PERCENTILES}
    return {"replans": len(spent), "seconds": spent, **summary, "longest": max(spent)}


def latency_table(result: Mapping[str, Any]) -> str:
    """The percentiles for people."""
    names = [*(f"p{p}" for p in PERCENTILES), "longest"]
    header = [f"ms per replan (n = {result['replans']})", *names]
    return plain_table(header, [["agent.predict, planner=fast", *(f"{1000 * result[name]:.0f}" for name in names)]])
