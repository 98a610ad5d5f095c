"""Frames per second of ``CLEVRER-v0`` by size, on one core: ``python -m benchmarks.clevrer``."""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from cjepa_agent.files import write_json
from cjepa_agent.provenance import provenance
from envs.clevrer.physics import FRAMES, VISIBLE_FRAMES, Trajectory, simulate
from envs.clevrer.render import CLEVRERRenderer
from envs.clevrer.sampling import sample_scene

SIZES = ((64, 64), (128, 128), (240, 160), (480, 320))


def seconds(trajectories: list[Trajectory], renderer: CLEVRERRenderer, frames: int) -> tuple[float, float]:
    """Wall and processor time per frame, of ``frames`` frames spread over the visible ones of each trajectory."""
    chosen = np.linspace(0, VISIBLE_FRAMES - 1, frames).astype(int)
    wall, processor = time.perf_counter(), time.process_time()
    for trajectory in trajectories:
        for frame in chosen:
            renderer.draw(trajectory, int(frame))
    count = frames * len(trajectories)
    return (time.perf_counter() - wall) / count, (time.process_time() - processor) / count


def measure(trajectories: list[Trajectory], size: tuple[int, int], repeats: int, frames: int) -> dict[str, Any]:
    """Frames per second of wall and of processor time; the two differ where other jobs share the core."""
    renderer = CLEVRERRenderer(*size)
    seconds(trajectories[:1], renderer, 1)  # warms up
    rounds = [seconds(trajectories, renderer, frames) for _ in range(repeats)]
    rates = {clock: [round(1 / times[i], 1) for times in rounds] for i, clock in enumerate(("wall", "processor"))}
    return {"frames_per_second": rates, "median": {clock: statistics.median(rates[clock]) for clock in rates}}


def main() -> None:
    """Run the benchmark, print a table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="measured rounds per size (default 5)")
    parser.add_argument("--scenes", type=int, default=10, help="random scenes, of seed 0 (default 10)")
    parser.add_argument("--frames", type=int, default=32, help="frames drawn of each scene per round (default 32)")
    parser.add_argument(
        "--output", type=Path, default=Path("results/benchmark_clevrer.json"), help="JSON file to write"
    )
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    start = time.process_time()
    scenes = [sample_scene(rng) for _ in range(arguments.scenes)]
    sampled = time.process_time()
    trajectories = [simulate(scene) for scene in scenes]
    simulated = time.process_time()
    results = {f"{w} x {h}": measure(trajectories, (w, h), arguments.repeats, arguments.frames) for w, h in SIZES}

    print(f"{'size':<12}{'wall':>10}{'processor':>12}   frames/s, median of {arguments.repeats}")
    for size, result in results.items():
        print(f"{size:<12}{result['median']['wall']:>10.0f}{result['median']['processor']:>12.0f}")
    milliseconds = {
        "draw a random scene": round(1e3 * (sampled - start) / arguments.scenes, 2),
        f"simulate {FRAMES} frames": round(1e3 * (simulated - sampled) / arguments.scenes, 2),
    }
    for task, value in milliseconds.items():
        print(f"{task}: {value} ms of processor time")
    report = {
        **provenance(),
        "scenes": arguments.scenes,
        "repeats": arguments.repeats,
        "frames": arguments.frames,
        "results": results,
        "milliseconds": milliseconds,
    }
    write_json(arguments.output, report)
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
