"""Steps per second of ``PushT-v0`` beside gym-pusht's, in one process: ``python -m benchmarks.pusht``."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

import envs  # noqa: F401  (registers PushT-v0 also where the distribution is not installed)
from cjepa_agent.files import write_json
from cjepa_agent.provenance import package_version, provenance

OURS, PEER = "PushT-v0", "gym_pusht/PushT-v0"
CASES = ("state", "pixels")


def make(env_id: str, obs_type: str) -> gym.Env[Any, Any]:
    """The environment with absolute control and 96 px images, as gym-pusht has them."""
    control: dict[str, Any] = {"control": "absolute"} if env_id == OURS else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gym.make(env_id, obs_type=obs_type, **control)


def steps_per_second(env: gym.Env[Any, Any], steps: int, seed: int) -> float:
    """Rate over ``steps`` steps toward targets in the middle of the arena, resets included."""
    targets = np.random.default_rng(seed).normal(256, 80, (steps, 2)).clip(0, 512).astype(np.float32)
    env.reset(seed=seed)
    start = time.perf_counter()
    for target in targets:
        _, _, terminated, truncated, _ = env.step(target)
        if terminated or truncated:
            env.reset()
    return steps / (time.perf_counter() - start)


def measure(obs_type: str, repeats: int, steps: int) -> dict[str, Any]:
    """Rates of both environments, measured in turns so that a change of load meets both alike."""
    pair = {name: make(name, obs_type) for name in (OURS, PEER)}
    rates: dict[str, list[float]] = {name: [] for name in pair}
    for seed in range(-1, repeats):
        for name, env in pair.items():
            rate = steps_per_second(env, steps, seed=max(seed, 0))
            if seed >= 0:  # the first round warms up
                rates[name].append(round(rate, 1))
    median = {name: statistics.median(values) for name, values in rates.items()}
    ratios = [ours / peer for ours, peer in zip(rates[OURS], rates[PEER], strict=True)]
    return {"steps_per_second": rates, "median": median, "ratio": statistics.median(ratios), "ratios": ratios}


def main() -> int:
    """Run the benchmark, print a table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="measured rounds per environment (default 5)")
    parser.add_argument("--steps", type=int, default=500, help="steps per round (default 500)")
    parser.add_argument("--output", type=Path, default=Path("results/benchmark_pusht.json"), help="JSON file to write")
    arguments = parser.parse_args()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import gym_pusht  # noqa: F401
    except ImportError:
        print(
            'The benchmark compares with gym-pusht, which is missing: pip install "gym-pusht==0.1.8"', file=sys.stderr
        )
        return 1

    results = {case: measure(case, arguments.repeats, arguments.steps) for case in CASES}
    print(f"{'observation':<14}{'PushT-v0':>12}{'gym-pusht':>12}{'ratio':>8}   steps/s, median of {arguments.repeats}")
    for case, result in results.items():
        print(f"{case:<14}{result['median'][OURS]:>12.0f}{result['median'][PEER]:>12.0f}{result['ratio']:>8.2f}")
    report = {
        **provenance(),
        "peer": f"gym-pusht {package_version('gym-pusht')}",
        "steps": arguments.steps,
        "repeats": arguments.repeats,
        "image": "96 x 96",
        "results": results,
    }
    write_json(arguments.output, report)
    print(f"written to {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
