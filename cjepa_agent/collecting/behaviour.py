"""Policies that collect data: the scripted pusher, random actions, and files of Stable-Baselines3."""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.pusht.observations import OBS_TYPES, observation_space
from envs.pusht.scripted import ScriptedPusher

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

ACTION_SPACE = spaces.Box(-1.0, 1.0, (2,), np.float32)

PERSISTENCE = 0.75  # of noise from one action to the next, about that of the scripted pusher's own actions

# A setting by which a policy file's algorithm is known; the first that it has counts. DDPG files have those of TD3,
# of which DDPG is a special case.
SIGNATURES = {"clip_range": "PPO", "gae_lambda": "A2C", "target_entropy": "SAC", "policy_delay": "TD3"}
ALGORITHMS = ("auto", "A2C", "DDPG", "PPO", "SAC", "TD3")


class Behaviour(Protocol):
    """Acts in Push-T, one episode after another.

    Attributes:
        env_arguments: of the ``PushTEnv`` whose observations it takes.
    """

    env_arguments: dict[str, Any]

    def begin(self, generator: np.random.Generator, info: Mapping[str, Any]) -> None:
        """Start an episode; all randomness in it must come from ``generator``."""
        ...

    def act(self, observation: Any, info: Mapping[str, Any]) -> NDArray[np.float32]:
        """Relative action (2,) float32 in [-1, 1]."""
        ...


class ScriptedBehaviour:
    """The scripted pusher; it sees the true state."""

    env_arguments: dict[str, Any] = {"obs_type": "state"}

    def begin(self, generator: np.random.Generator, info: Mapping[str, Any]) -> None:
        """See ``Behaviour``."""
        self.pusher = ScriptedPusher(generator)
        self.pusher.reset(info["state"])

    def act(self, observation: Any, info: Mapping[str, Any]) -> NDArray[np.float32]:
        """See ``Behaviour``."""
        return self.pusher.act(info["state"])


class RandomBehaviour:
    """Uniform over the action space, independent at each step."""

    env_arguments: dict[str, Any] = {"obs_type": "state"}

    def begin(self, generator: np.random.Generator, info: Mapping[str, Any]) -> None:
        """See ``Behaviour``."""
        self.generator = generator

    def act(self, observation: Any, info: Mapping[str, Any]) -> NDArray[np.float32]:
        """See ``Behaviour``."""
        return self.generator.uniform(-1.0, 1.0, 2).astype(np.float32)


class NoisyBehaviour:
    """Another behaviour with smooth noise added to its actions, of a strength that is drawn for each episode.

    A planner tries actions that no behaviour takes; without them in the data its model is wrong about most candidates.

    Args:
        behaviour: what is disturbed.
        largest: standard deviation of the noise, units of actions, is uniform between 0 and this.
    """

    def __init__(self, behaviour: Behaviour, largest: float) -> None:
        self.behaviour, self.largest = behaviour, largest
        self.env_arguments = behaviour.env_arguments

    def begin(self, generator: np.random.Generator, info: Mapping[str, Any]) -> None:
        """See ``Behaviour``."""
        self.behaviour.begin(generator, info)
        self.generator, self.std = generator, generator.uniform(0.0, self.largest)
        self.noise = generator.standard_normal(2)

    def act(self, observation: Any, info: Mapping[str, Any]) -> NDArray[np.float32]:
        """See ``Behaviour``."""
        action = self.behaviour.act(observation, info) + np.float32(self.std) * self.noise
        fresh = self.generator.standard_normal(2)
        self.noise = PERSISTENCE * self.noise + math.sqrt(1 - PERSISTENCE**2) * fresh
        clipped: NDArray[np.float32] = action.clip(-1.0, 1.0).astype(np.float32)
        return clipped


class SavedBehaviour:
    """A policy saved by Stable-Baselines3; it acts deterministically.

    Args:
        path: the ``.zip`` file. Loading it runs code that the file holds: use files that you trust.
        algorithm: one of ``ALGORITHMS``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file cannot be loaded, or its spaces are not those of Push-T.
    """

    def __init__(self, path: Path, algorithm: str = "auto") -> None:
        name = detect_algorithm(path) if algorithm == "auto" else algorithm
        self.model = _load(path, name)
        if self.model.action_space != ACTION_SPACE:
            raise ValueError(
                f"{path} acts in {self.model.action_space}, Push-T's relative control in {ACTION_SPACE}: "
                f"train the policy with gym.make('PushT-v0', control='relative')"
            )
        self.env_arguments = matching_env(self.model.observation_space, path)

    def begin(self, generator: np.random.Generator, info: Mapping[str, Any]) -> None:
        """See ``Behaviour``."""

    def act(self, observation: Any, info: Mapping[str, Any]) -> NDArray[np.float32]:
        """See ``Behaviour``."""
        action, _ = self.model.predict(observation, deterministic=True)
        return action


def make_behaviour(policy: str, algorithm: str = "auto") -> Behaviour:
    """The behaviour that ``policy`` names: ``scripted``, ``random``, or a file; raises as ``SavedBehaviour`` does."""
    if policy == "scripted":
        return ScriptedBehaviour()
    if policy == "random":
        return RandomBehaviour()
    return SavedBehaviour(Path(policy), algorithm)


def describe_behaviour(policy: str) -> dict[str, Any]:
    """What identifies the behaviour that ``policy`` names, without the folder that a file lies in."""
    if policy in ("scripted", "random"):
        return {"policy": policy}
    path = Path(policy)
    _check_file(path)
    return {"policy": path.name, "policy_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def detect_algorithm(path: Path) -> str:
    """Name of the algorithm that a policy file is from, by the settings in it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a policy file, or of an unknown algorithm.
    """
    _check_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            settings = json.loads(archive.read("data"))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a policy file of Stable-Baselines3: {error}") from error
    for setting, algorithm in SIGNATURES.items():
        if setting in settings:
            return algorithm
    raise ValueError(f"cannot tell which algorithm {path} is from; say algorithm=, one of {ALGORITHMS[1:]}")


def matching_env(space: spaces.Space[Any], path: Path) -> dict[str, Any]:
    """Arguments of the ``PushTEnv`` that observes in ``space``; raises ValueError without one.

    Args:
        space: images may have their channels first, as Stable-Baselines3 keeps them, and any size.
        path: where the policy is from, for the message.
    """
    wanted = channels_last(space)
    parts = wanted.values() if isinstance(wanted, spaces.Dict) else [wanted]
    sizes = {part.shape[:2] for part in parts if part.shape is not None and len(part.shape) == 3}
    height, width = sizes.pop() if sizes else (96, 96)
    for obs_type in OBS_TYPES:
        if observation_space(obs_type, width, height) == wanted:
            return {"obs_type": obs_type, "observation_width": width, "observation_height": height}
    raise ValueError(f"{path} observes {space}, which is none of Push-T's observation types {list(OBS_TYPES)}")


def channels_last(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """``space`` with images (3, H, W) turned to (H, W, 3)."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: channels_last(part) for key, part in space.items()})
    if isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[2] != 3:
        return spaces.Box(space.low.transpose(1, 2, 0), space.high.transpose(1, 2, 0), dtype=np.uint8)
    return space


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"no policy file at {path}; policy= takes scripted, random or a file's path")


def _load(path: Path, algorithm: str) -> BaseAlgorithm:
    # Late: it brings PyTorch, which the other policies do without.
    import stable_baselines3

    try:
        model: BaseAlgorithm = getattr(stable_baselines3, algorithm).load(path, device="cpu")
    # What goes wrong inside depends on the file: missing keys, other versions' pickles, tensors that do not fit.
    except Exception as error:
        raise ValueError(f"{path} cannot be loaded as {algorithm}: {type(error).__name__}: {error}") from error
    return model
