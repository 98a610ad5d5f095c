"""Evaluation pairs: a start and a goal that lies 25 steps later in the same held-out episode.

``python -m cjepa_agent.manifest`` draws them; the test pairs ship with the package, so that everyone scores the same
ones. Episode-balanced: each pair of a manifest comes from another episode, each episode is equally likely, and within
it each step. Pairs whose start already satisfies the rule are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cjepa_agent.data.episodes import SPLITS, EpisodeFile, Split
from cjepa_agent.files import as_json
from cjepa_agent.paths import cache_folder
from configs.command import command
from envs.files import atomic
from envs.pusht.physics import WINDOW
from envs.pusht.success import SUCCESS_RULES, SuccessRule, success_rule

if TYPE_CHECKING:  # Python 3.10 has it elsewhere
    from importlib.resources.abc import Traversable

States = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """A start and a goal.

    Attributes:
        episode, step: where in the dataset the start lies.
        state, goal_state: agent x, y, block x, y [px], block angle [rad], agent vx, vy [px/s].
    """

    episode: int
    step: int
    state: tuple[float, ...]
    goal_state: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("state", "goal_state"):
            values = tuple(float(v) for v in getattr(self, name))
            if len(values) != 7 or not np.isfinite(values).all():
                raise ValueError(f"{name} of episode {self.episode} must be 7 finite numbers, got {values}")
            object.__setattr__(self, name, values)


@dataclass(frozen=True)
class Manifest:
    """Pairs for one success rule.

    Attributes:
        rule: name of the success rule by which no start is solved.
        split: part of the dataset that the episodes are from.
        seed: that the pairs were drawn with.
        offset: environment steps from start to goal.
        dataset: what the pairs were drawn from: number of episodes, SHA-256 of all states, the file's attributes.
        pairs: in the order of the dataset.
    """

    rule: str
    split: Split
    seed: int
    offset: int
    dataset: dict[str, Any]
    pairs: tuple[Pair, ...]

    @property
    def sha256(self) -> str:
        """Of the pairs' states, as little-endian float64."""
        states = np.array([[*pair.state, *pair.goal_state] for pair in self.pairs], dtype="<f8")
        return hashlib.sha256(states.tobytes()).hexdigest()

    def write(self, folder: Path) -> Path:
        """Write ``pusht_<rule>_<split>_seed<seed>.json``; returns its path."""
        folder.mkdir(parents=True, exist_ok=True)
        head = {key: value for key, value in asdict(self).items() if key != "pairs"}
        lines = ",\n".join(f"  {json.dumps(asdict(pair))}" for pair in self.pairs)
        text = f'{json.dumps({**head, "sha256": self.sha256}, indent=1)[:-2]},\n "pairs": [\n{lines}\n ]\n}}\n'
        path = folder / file_name(self.rule, self.split, self.seed)
        with atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return path

    @classmethod
    def read(cls, rule: str, split: str, seed: int, folder: str | Path | None = None) -> Manifest:
        """Read a manifest from ``folder``, or from those that ship with the package.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is no manifest, or its states have been changed.
        """
        name = file_name(rule, split, seed)
        root: Traversable = resources.files("cjepa_agent") / "manifests" if folder is None else Path(folder)
        path = root / name
        if not path.is_file():
            made = f"`python -m cjepa_agent.manifest split={split} 'seeds=[{seed}]' out={folder or 'manifests'}`"
            raise FileNotFoundError(f"there is no manifest {path}; make it with {made} and give manifests= that folder")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            expected = values.pop("sha256")
            manifest = cls(**{**values, "pairs": tuple(Pair(**pair) for pair in values["pairs"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a manifest: {error}") from error
        if manifest.sha256 != expected:
            raise ValueError(f"the states in {path} do not have the SHA-256 written there; restore the file")
        return manifest


def file_name(rule: str, split: str, seed: int) -> str:
    """Name of a manifest's file."""
    return f"pusht_{rule}_{split}_seed{seed}.json"


def draw(data: EpisodeFile, rule: str, split: Split, seed: int, pairs: int, offset: int) -> Manifest:
    """Draw a manifest.

    Raises:
        ValueError: fewer episodes than ``pairs`` hold a usable pair.
    """
    candidates = {}
    for episode in map(int, data.episodes(split)):
        states = data.read("state", episode)
        steps = _usable_steps(states, success_rule(rule), offset)
        if len(steps) > 0:
            candidates[episode] = (states, steps)
    if len(candidates) < pairs:
        raise ValueError(f"{data.path} has {len(candidates)} {split} episodes with usable pairs; {pairs} are needed")
    rng = np.random.default_rng(seed)
    drawn = []
    for episode in sorted(int(e) for e in rng.choice(list(candidates), pairs, replace=False)):
        states, steps = candidates[episode]
        step = int(rng.choice(steps))
        drawn.append(Pair(episode, step, tuple(states[step].tolist()), tuple(states[step + offset].tolist())))
    return Manifest(rule, split, seed, offset, _describe(data), tuple(drawn))


def _usable_steps(states: States, rule: SuccessRule, offset: int) -> NDArray[np.int64]:
    """Steps of an episode (T, 7) that are no solution themselves and lie, like their goals, inside the arena."""
    # Hard pushes can squeeze the block through a wall; the environment refuses to start there.
    inside = np.logical_and(states[:, :4] >= 0, states[:, :4] <= WINDOW).min(axis=1)
    start, goal = slice(0, max(len(states) - offset, 0)), slice(offset, None)
    usable = inside[start] & inside[goal] & ~rule.satisfied(states[start], states[goal])
    return np.flatnonzero(usable)


def _describe(data: EpisodeFile) -> dict[str, Any]:
    states = np.ascontiguousarray(data.read_all("state"), dtype="<f8")
    sha256 = hashlib.sha256(states.tobytes()).hexdigest()
    return {"episodes": len(data), "states_sha256": sha256, **as_json(data.attrs)}


@dataclass(frozen=True)
class ManifestConfig:
    """Draws pairs of start and goal for evaluation.

    Attributes:
        data: HDF5 file of Push-T episodes with a ``state`` column; empty means the cache's ``pusht.h5``.
        split: part of the dataset: ``test``, or ``validation`` for tuning.
        rules: success rules to draw pairs for.
        seeds: one manifest each.
        pairs: per manifest.
        offset: environment steps from start to goal.
        out: folder for the JSON files.
    """

    data: str = ""
    split: str = "test"
    rules: tuple[str, ...] = tuple(SUCCESS_RULES)
    seeds: tuple[int, ...] = (0, 1, 42)
    pairs: int = 100
    offset: int = 25
    out: str = "manifests"

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, got {self.split!r}")
        if self.pairs < 1 or self.offset < 1:
            raise ValueError(f"pairs and offset must be at least 1, got {self.pairs} and {self.offset}")
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds, default=0) < 0:
            raise ValueError(f"seeds must be 0 or more, each once, got {list(self.seeds)}")
        for rule in self.rules:
            success_rule(rule)


def manifests(config: ManifestConfig) -> Iterator[Manifest]:
    """The manifests that ``config`` asks for, one by one."""
    data = EpisodeFile(config.data or cache_folder() / "pusht.h5")
    split: Split = next(split for split in SPLITS if split == config.split)
    for rule in config.rules:
        for seed in config.seeds:
            yield draw(data, rule, split, seed, config.pairs, config.offset)


def write_manifests(config: ManifestConfig) -> None:
    """Write the manifests that ``config`` asks for."""
    for manifest in tqdm(manifests(config), total=len(config.rules) * len(config.seeds), unit="manifest"):
        tqdm.write(str(manifest.write(Path(config.out))))


def evaluation_pairs(
    rule: str, split: str, seeds: Sequence[int], count: int, folder: str | Path | None = None
) -> list[tuple[int, int, Pair]]:
    """``count`` pairs taken evenly from the manifests of ``seeds``, as (manifest seed, index in it, pair).

    Raises:
        ValueError: the manifests hold fewer, or a seed is given twice, whose pairs would count twice.
    """
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be given once each, got {list(seeds)}")
    chosen = []
    for i, seed in enumerate(seeds):
        share = count // len(seeds) + (i < count % len(seeds))
        pairs = Manifest.read(rule, split, seed, folder).pairs
        if share > len(pairs):
            raise ValueError(f"{count} episodes need {share} pairs of each manifest, seed {seed} has {len(pairs)}")
        # Manifests are in the dataset's order; evenly spread pairs keep a part as varied as the whole.
        spread = np.arange(share) * len(pairs) // max(share, 1)
        chosen += [(seed, int(index), pairs[index]) for index in spread]
    return chosen


main = command("manifest", ManifestConfig, write_manifests)

if __name__ == "__main__":
    main()
