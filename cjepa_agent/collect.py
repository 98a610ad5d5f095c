"""``python -m cjepa_agent.collect``: Push-T episodes to disk, on all cores; resumes where a killed run stood."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shapely.geometry import Point
from tqdm import tqdm

from cjepa_agent.behaviour import ALGORITHMS, Behaviour, SavedBehaviour, describe_behaviour, make_behaviour
from cjepa_agent.data import SPLITS, EpisodeFile, write_episodes
from cjepa_agent.paths import cache_folder
from configs.command import command
from envs.pusht.env import PushTEnv
from envs.pusht.observations import proprio, wrapped_state
from envs.pusht.options import GOAL_POSE
from envs.pusht.physics import block_outline, place
from envs.pusht.render import PushTRenderer

Episode = dict[str, NDArray[Any]]

CONTROL = "relative"
COLUMNS = ("pixels", "action", "proprio", "state")
SHARD = 50  # episodes per part; what a kill can cost each worker
# Agent x, y, block x, y [px], block angle [rad]: starts are uniform between these, with the agent clear of the block.
START_LOW = (50.0, 50.0, 100.0, 100.0, -np.pi)
START_HIGH = (450.0, 450.0, 400.0, 400.0, np.pi)
CLEARANCE = 16.0  # px from the agent's centre to the block at the start: agent radius and a margin
PACKAGES = ("cjepa-agent", "numpy", "pymunk", "pygame", "shapely")  # whose version can change an episode


@dataclass(frozen=True)
class CollectConfig:
    """Collects Push-T episodes into one HDF5 file in stable-worldmodel's layout.

    A killed run is continued by the same command. The result does not depend on the number of workers.

    Attributes:
        out: the HDF5 file; unfinished parts wait in the folder ``<out>.parts``.
        episodes: number of episodes, at least 3; a twentieth each goes to validation and to test.
        steps: environment steps of 0.1 s, and rows in the file, per episode.
        image_size: width and height of the frames [px].
        seed: of all episodes; each draws from a random stream of its own.
        workers: processes; 0 for one per core.
        policy: ``scripted`` (walks around the block and pushes it), ``random`` (uniform actions), or a ``.zip`` file
            saved by Stable-Baselines3, which acts deterministically. Such a file can run code: use those you trust.
        algorithm: class of a policy file: ``auto`` (told from the file), ``A2C``, ``DDPG``, ``PPO``, ``SAC`` or
            ``TD3``.
    """

    out: Path = field(default_factory=lambda: cache_folder() / "pusht.h5")
    episodes: int = 2000
    steps: int = 80
    image_size: int = 64
    seed: int = 0
    workers: int = 0
    policy: str = "scripted"
    algorithm: str = "auto"

    def __post_init__(self) -> None:
        for name, least in (("episodes", 3), ("steps", 1), ("image_size", 1), ("seed", 0), ("workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm must be one of {ALGORITHMS}, got {self.algorithm!r}")

    @property
    def parts(self) -> Path:
        """Folder of the unfinished file's parts."""
        return self.out.with_name(self.out.name + ".parts")

    def recipe(self) -> dict[str, Any]:
        """What the episodes follow from, kept as the file's attributes; raises FileNotFoundError without the policy."""
        return {
            "environment": "PushT-v0",
            **describe_behaviour(self.policy),
            "episodes": self.episodes,
            "steps": self.steps,
            "image_size": self.image_size,
            "seed": self.seed,
            "control": CONTROL,
            "goal_pose": list(GOAL_POSE),
            "versions": json.dumps({name: _version(name) for name in PACKAGES}),
        }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


class Collector:
    """Collects single episodes.

    Args:
        behaviour: what acts.
        seed: of all episodes.
        steps: rows per episode.
        image_size: of the recorded frames [px]; the behaviour may see frames of another size.
    """

    def __init__(self, behaviour: Behaviour, seed: int, steps: int, image_size: int) -> None:
        self.behaviour, self.seed, self.steps = behaviour, seed, steps
        self.env = PushTEnv(control=CONTROL, **behaviour.env_arguments)
        self.renderer = PushTRenderer(image_size, image_size)
        self.outline = block_outline("tee", scale=30.0)

    def episode(self, index: int) -> Episode:
        """Columns ``pixels`` (T, H, W, 3), ``action`` (T, 2), ``proprio`` (T, 4) and ``state`` (T, 7).

        It depends on nothing but ``index`` and the constructor's arguments. It goes on where the environment
        terminates, so that all episodes are equally long.
        """
        generator = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(index,)))
        observation, info = self.env.reset(options={"state": self._start(generator)})
        self.behaviour.begin(generator, info)
        rows = []
        for _ in range(self.steps):
            action = self.behaviour.act(observation, info)
            rows.append(self._row(info, action))
            observation, _, _, _, info = self.env.step(action)
        return {name: np.stack([row[name] for row in rows]) for name in COLUMNS}

    def _start(self, generator: np.random.Generator) -> NDArray[np.float64]:
        while True:
            start = generator.uniform(START_LOW, START_HIGH)
            if place(self.outline, start[2:]).distance(Point(start[:2])) > CLEARANCE:
                return start

    def _row(self, info: Mapping[str, Any], action: NDArray[np.float32]) -> Episode:
        state = info["state"]
        return {
            "pixels": self.renderer.frame(state, info["goal_pose"]),
            "action": action,
            "proprio": proprio(state),
            "state": np.concatenate([wrapped_state(state), state[5:]]),
        }


def collect(config: CollectConfig) -> None:
    """Collect what ``config`` asks for, unless it is there.

    Raises:
        FileExistsError: ``out`` or its parts were made otherwise.
        FileNotFoundError: there is no such policy file.
        ValueError: the policy file does not fit, or ``out`` or a part is no episode file.
        RuntimeError: a worker was killed.
    """
    recipe, began = config.recipe(), time.monotonic()
    if config.out.exists():
        # A finished file stays what it is when packages are updated; parts of one file must not differ in that.
        _check_recipe(config.out, recipe, config.out, ignored=("versions",))
        shutil.rmtree(config.parts, ignore_errors=True)
        print(f"{config.out} is complete already: {config.episodes} episodes by policy={config.policy}")
        return
    make_behaviour(config.policy, config.algorithm)  # fails here, rather than in every worker
    collect_shards(config, recipe)
    write_episodes(config.out, merged(config), recipe)
    shutil.rmtree(config.parts)
    print(f"{summary(config.out)}, {time.monotonic() - began:.0f} s")


def _check_recipe(path: Path, recipe: Mapping[str, Any], remove: Path, ignored: tuple[str, ...] = ()) -> None:
    attrs = {
        key: getattr(value, "tolist", lambda value=value: value)() for key, value in EpisodeFile(path).attrs.items()
    }
    keys = sorted({*recipe, *attrs} - set(ignored))
    changed = [f"{key}: {attrs.get(key)}, not {recipe.get(key)}" for key in keys if attrs.get(key) != recipe.get(key)]
    if changed:
        raise FileExistsError(
            f"{path} was made otherwise ({'; '.join(changed)}) and stays as it is; "
            f"choose another out= or remove {remove}"
        )


def collect_shards(config: CollectConfig, recipe: Mapping[str, Any]) -> None:
    """Collect those parts that are not there yet, on all workers, with a progress bar."""
    missing = []
    for shard in range(-(-config.episodes // SHARD)):
        if shard_path(config, shard).exists():
            _check_recipe(shard_path(config, shard), recipe, config.parts)
        else:
            missing.append(shard)
    done = config.episodes - sum(len(shard_episodes(config, shard)) for shard in missing)
    workers = min(config.workers or _cores(), len(missing))
    if not missing:
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker)
    try:
        with tqdm(total=config.episodes, initial=done, unit="episode", desc="collecting", mininterval=0.5) as bar:
            for future in as_completed(pool.submit(_collect_shard, config, recipe, shard) for shard in missing):
                bar.update(future.result())
    except BrokenProcessPool as error:
        raise RuntimeError("a worker was killed, perhaps for lack of memory; the same command continues") from error
    finally:
        pool.shutdown(cancel_futures=True)


def shard_path(config: CollectConfig, shard: int) -> Path:
    """File of a part."""
    return config.parts / f"{shard:05d}.h5"


def shard_episodes(config: CollectConfig, shard: int) -> range:
    """Episodes of a part."""
    return range(shard * SHARD, min((shard + 1) * SHARD, config.episodes))


def merged(config: CollectConfig) -> Iterator[Episode]:
    """The episodes of all parts in order, one at a time."""
    with tqdm(total=config.episodes, unit="episode", desc="merging") as bar:
        for shard in range(-(-config.episodes // SHARD)):
            part = EpisodeFile(shard_path(config, shard))
            for episode in range(len(part)):
                yield {name: part.read(name, episode) for name in COLUMNS}
                bar.update()


def summary(path: Path) -> str:
    """One line on an episode file: its episodes per split, frames and size."""
    data = EpisodeFile(path)
    parts = ", ".join(f"{len(data.episodes(split))} {split}" for split in SPLITS)
    return f"{path}: {len(data)} episodes ({parts}), {data.lengths.sum()} frames, {path.stat().st_size / 1e6:.0f} MB"


def _cores() -> int:
    # Only some systems tell which cores this process may use.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker() -> None:
    # An interrupt is for the main process, which lets workers finish their parts.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    # Without this, workers of a killed run would live on and write into the next one's parts.
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@cache
def _collector(config: CollectConfig) -> Collector:
    behaviour = make_behaviour(config.policy, config.algorithm)
    if isinstance(behaviour, SavedBehaviour):
        import torch

        torch.set_num_threads(1)  # the workers share the cores
    return Collector(behaviour, config.seed, config.steps, config.image_size)


def _collect_shard(config: CollectConfig, recipe: Mapping[str, Any], shard: int) -> int:
    episodes = shard_episodes(config, shard)
    write_episodes(shard_path(config, shard), map(_collector(config).episode, episodes), recipe)
    return len(episodes)


main = command("collect", CollectConfig, collect)

if __name__ == "__main__":
    main()
