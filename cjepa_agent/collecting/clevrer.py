"""CLEVRER data sets: videos, annotations, counterfactuals and balanced questions in the official layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cjepa_agent.collecting.collection import Collection, Episode, versions
from cjepa_agent.data.episodes import CLEVRER_FRAMES, SPLITS
from cjepa_agent.paths import cache_folder
from envs.clevrer.annotation import annotate
from envs.clevrer.counterfactual import Counterfactuals
from envs.clevrer.dataset import FIRST, SCENES, scene_paths, split_of
from envs.clevrer.env import object_states
from envs.clevrer.physics import FRAMES, VISIBLE_FRAMES, simulate
from envs.clevrer.questions import Candidate, balance, scene_entry, scene_pool, write_questions
from envs.clevrer.render import CLEVRERRenderer
from envs.clevrer.sampling import sample_scene
from envs.clevrer.video import encode_video
from envs.files import atomic

PACKAGES = ("cjepa-agent", "numpy")  # whose version can change a scene
WATCH = 0  # the action that takes nothing away


@dataclass(frozen=True)
class CLEVRERCollection(Collection):
    """Makes a CLEVRER data set with questions, in the official layout, and its frames as one HDF5 file for training.

    Half of the videos are for training (from scene 0 on), a quarter each for validation (from 10000) and test (from
    15000). The answers of the test questions are in a file of their own, ``questions/test_answers.json``. A killed run
    is continued by the same command. The result does not depend on the number of workers.

    Attributes:
        out: folder of the data set; unfinished parts wait in the folder ``<out>.parts``.
        videos: number of videos of 128 frames, 3 to 20000.
        width, height: of the videos and frames [px], even numbers.
        window: frames, 1 to 180, whose collisions count for counterfactual questions: 128 are what a video shows, 180
            all that is simulated.
        pictures: without them there are no videos and no ``pixels``: enough for slots of the true state
            (``encoder=state``).
    """

    out: Path = field(default_factory=lambda: cache_folder() / "clevrer")
    videos: int = 1000
    width: int = 64
    height: int = 64
    window: int = FRAMES
    pictures: bool = True

    UNIT: ClassVar[str] = "video"
    SHARD: ClassVar[int] = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(videos=3, width=2, height=2, window=1)
        for name, most in (("videos", SCENES), ("window", FRAMES)):
            if getattr(self, name) > most:
                raise ValueError(f"{name} must be at most {most}, got {getattr(self, name)}")
        if self.width % 2 or self.height % 2:
            raise ValueError(f"width and height of a video must be even, got {self.width} x {self.height}")

    @property
    def size(self) -> int:
        """See ``Collection``."""
        return self.videos

    @property
    def file(self) -> Path:
        """See ``Collection``."""
        return self.out / CLEVRER_FRAMES

    @property
    def columns(self) -> tuple[str, ...]:
        """See ``Collection``."""
        return (*(("pixels",) if self.pictures else ()), "action", "state", "scene", "split")

    @cached_property
    def scenes(self) -> list[int]:
        """Indices of all scenes, in order."""
        held_out = max(1, self.videos // 4)
        train = min(self.videos - 2 * held_out, FIRST["validation"])
        sizes = {"train": train, "validation": self.videos - train - held_out, "test": held_out}
        return [FIRST[split] + number for split in SPLITS for number in range(sizes[split])]

    def recipe(self) -> dict[str, Any]:
        """See ``Collection``."""
        return {
            "environment": "CLEVRER-v0",
            "videos": self.videos,
            "width": self.width,
            "height": self.height,
            "window": self.window,
            **({} if self.pictures else {"pictures": False}),
            "seed": self.seed,
            "versions": versions(PACKAGES),
        }

    def maker(self) -> Callable[[int], Episode]:
        """See ``Collection``."""
        if not self.parts.exists() and self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise FileExistsError(f"{self.out} holds something else and stays as it is; choose another out=")
        if not self.out.exists() and any(self.shard_path(shard).exists() for shard in self.shards):
            raise FileExistsError(f"{self.parts} goes on from {self.out}, which is gone; remove it, too")
        return _SceneWriter(self).write

    def pool_path(self, scene: int) -> Path:
        """Where the questions that could be asked about a scene wait for the balancing."""
        return self.parts / f"pool_{scene:05d}.json"

    def finish(self) -> None:
        """Pick the questions of each split, which takes the pools of all its scenes, and write them."""
        for split in SPLITS:
            scenes = [scene for scene in self.scenes if split_of(scene) == split]
            pools = {
                scene: [Candidate.from_json(given) for given in json.loads(self.pool_path(scene).read_text())]
                for scene in scenes
            }
            entries = [scene_entry(scene, questions) for scene, questions in balance(pools, self.seed).items()]
            write_questions(self.out / "questions", split, entries)
            number = sum(len(entry["questions"]) for entry in entries)
            print(f"{split}: {number} questions about {len(scenes)} videos")


class _SceneWriter:
    """Writes all files of single scenes.

    Args:
        collection: of which they are.
    """

    def __init__(self, collection: CLEVRERCollection) -> None:
        self.collection = collection
        self.renderer = CLEVRERRenderer(collection.width, collection.height)

    def write(self, number: int) -> Episode:
        """Write the files of scene ``number`` of the collection, and return what training needs of it.

        Columns ``pixels`` (128, H, W, 3) uint8, if there are pictures, ``action`` (128, 1) float32, all 0 since nothing
        is taken away, ``state`` (128, 48) float32 as in ``CLEVREREnv``, ``scene`` (128,) int32 the scene's index, and
        ``split`` (128,) int8.
        """
        index = self.collection.scenes[number]
        stream = np.random.SeedSequence(self.collection.seed, spawn_key=(index,))
        scene = sample_scene(np.random.default_rng(stream))
        pool = scene_pool(scene, int(stream.generate_state(1)[0]), self.collection.window)
        # First, since the folder of the parts tells that `out` is ours.
        _write_json(self.collection.pool_path(index), [candidate.to_json() for candidate in pool])
        Counterfactuals.of(scene, self.collection.window).save(self._path("counterfactual", index))
        trajectory = simulate(scene)
        _write_json(self._path("annotation", index), annotate(trajectory, index))
        frames = range(VISIBLE_FRAMES)
        episode: Episode = {
            "action": np.full((VISIBLE_FRAMES, 1), WATCH, np.float32),
            "state": np.stack([object_states(trajectory, frame) for frame in frames]),
            "scene": np.full(VISIBLE_FRAMES, index, np.int32),
            "split": np.full(VISIBLE_FRAMES, SPLITS.index(split_of(index)), np.int8),
        }
        if not self.collection.pictures:
            return episode
        pixels = np.stack([self.renderer.draw(trajectory, frame)[0] for frame in frames])
        with atomic(self._path("video", index)) as temporary:
            temporary.write_bytes(encode_video(pixels))
        return {"pixels": pixels, **episode}

    def _path(self, kind: str, index: int) -> Path:
        return scene_paths(self.collection.out, kind, index)[0]


def _write_json(path: Path, value: Any) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value))
