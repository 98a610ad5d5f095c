"""Push-T episodes, by a scripted pusher or any other policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from shapely.geometry import Point

from cjepa_agent.collecting.behaviour import (
    ALGORITHMS,
    Behaviour,
    NoisyBehaviour,
    SavedBehaviour,
    describe_behaviour,
    make_behaviour,
)
from cjepa_agent.collecting.collection import Collection, Episode, versions
from cjepa_agent.data.episodes import split_episodes
from cjepa_agent.paths import cache_folder
from envs.pusht.env import PushTEnv
from envs.pusht.observations import proprio, wrapped_state
from envs.pusht.options import GOAL_POSE
from envs.pusht.physics import block_outline, place
from envs.pusht.render import PushTRenderer

CONTROL = "relative"
COLUMNS = ("pixels", "action", "proprio", "state")
# Agent x, y, block x, y [px], block angle [rad]: starts are uniform between these, with the agent clear of the block.
# One block in twenty reaches into a wall, which pushes it out by some px in the first steps: unlike the environment's
# own starts these are not drawn again, since the episodes that the bundled weights learned from have them.
START_LOW = (50.0, 50.0, 100.0, 100.0, -np.pi)
START_HIGH = (450.0, 450.0, 400.0, 400.0, np.pi)
CLEARANCE = 16.0  # px from the agent's centre to the block at the start: agent radius and a margin
PACKAGES = ("cjepa-agent", "numpy", "pymunk", "pygame", "shapely")  # whose version can change an episode


@dataclass(frozen=True)
class PushTCollection(Collection):
    """Collects Push-T episodes into one HDF5 file in stable-worldmodel's layout.

    A killed run is continued by the same command. The result does not depend on the number of workers.

    Attributes:
        out: the HDF5 file; unfinished parts wait in the folder ``<out>.parts``.
        episodes: number of episodes, at least 3; a twentieth each goes to validation and to test.
        steps: environment steps of 0.1 s, and rows in the file, per episode.
        image_size: width and height of the frames [px].
        policy: ``scripted`` (walks around the block and pushes it), ``random`` (uniform actions), or a ``.zip`` file
            saved by Stable-Baselines3, which acts deterministically. Such a file can run code: use those you trust.
        algorithm: class of a policy file: ``auto`` (told from the file), ``A2C``, ``DDPG``, ``PPO``, ``SAC`` or
            ``TD3``.
        noise: smooth noise is added to the actions of training episodes, with a standard deviation that is uniform
            between 0 and this in each; held-out episodes stay as they are.
    """

    out: Path = field(default_factory=lambda: cache_folder() / "pusht.h5")
    episodes: int = 2000
    steps: int = 80
    image_size: int = 64
    policy: str = "scripted"
    algorithm: str = "auto"
    noise: float = 0.0

    SHARD: ClassVar[int] = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(episodes=3, steps=1, image_size=1)
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm must be one of {ALGORITHMS}, got {self.algorithm!r}")
        if not 0 <= self.noise <= 1:
            raise ValueError(f"noise must be 0 to 1, the largest action, got {self.noise}")

    @property
    def size(self) -> int:
        """See ``Collection``."""
        return self.episodes

    @property
    def columns(self) -> tuple[str, ...]:
        """See ``Collection``."""
        return COLUMNS

    def recipe(self) -> dict[str, Any]:
        """See ``Collection``; raises FileNotFoundError without the policy."""
        return {
            "environment": "PushT-v0",
            **describe_behaviour(self.policy),
            **({"noise": self.noise} if self.noise else {}),
            "episodes": self.episodes,
            "steps": self.steps,
            "image_size": self.image_size,
            "seed": self.seed,
            "control": CONTROL,
            "goal_pose": list(GOAL_POSE),
            "versions": versions(PACKAGES),
        }

    def maker(self) -> Callable[[int], Episode]:
        """See ``Collection``; raises ValueError for a policy file that does not fit."""
        behaviour = make_behaviour(self.policy, self.algorithm)
        if isinstance(behaviour, SavedBehaviour) and parent_process() is not None:
            import torch

            torch.set_num_threads(1)  # the workers share the cores
        collector = Collector(behaviour, self.seed, self.steps, self.image_size)
        if not self.noise:
            return collector.episode
        noisy = Collector(NoisyBehaviour(behaviour, self.noise), self.seed, self.steps, self.image_size)
        held_out = split_episodes(self.episodes) > 0
        return lambda index: (collector if held_out[index] else noisy).episode(index)


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
