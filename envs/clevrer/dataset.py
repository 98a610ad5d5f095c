"""Folders in CLEVRER's layout, ours or the released one: where the files of a scene lie, and what is in them.

::

    video_train/video_00000-01000/video_00000.mp4
    annotation_train/annotation_00000-01000/annotation_00000.json
    counterfactual/train/counterfactual_00000-01000/counterfactual_00000.npz    ours alone
    questions/train.json

The same for ``validation``, with scenes from 10000 on, and ``test``, from 15000 on; the released test split has no
annotations. ``videos/train`` and ``annotations/train``, as others arrange the released files, are read as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from envs.clevrer.annotation import read_trajectory
from envs.clevrer.counterfactual import Counterfactuals
from envs.clevrer.physics import VISIBLE_FRAMES, Trajectory
from envs.clevrer.questions.facts import Facts
from envs.clevrer.questions.files import SPLITS, QuestionFile, read_questions
from envs.clevrer.video import read_video

FIRST = {"train": 0, "validation": 10_000, "test": 15_000}  # scene of each split
SCENES = 20_000
IN_FOLDER = 1000
# Where a split's files may be; the first is where ours are.
FOLDERS = {
    "video": ("video_{split}", "videos/{split}"),
    "annotation": ("annotation_{split}", "annotations/{split}"),
    "counterfactual": ("counterfactual/{split}",),
}
SUFFIXES = {"video": ".mp4", "annotation": ".json", "counterfactual": ".npz"}

T = TypeVar("T")


def split_of(scene: int) -> str:
    """The split that a scene index belongs to; raises ValueError unless it is 0 to 19999."""
    if not 0 <= scene < SCENES:
        raise ValueError(f"scene must be 0 to {SCENES - 1}, got {scene}")
    return max((split for split in SPLITS if FIRST[split] <= scene), key=lambda split: FIRST[split])


def scene_paths(folder: Path, kind: str, scene: int) -> list[Path]:
    """Where a scene's file of a kind (``video``, ``annotation``, ``counterfactual``) may be; ours comes first."""
    start = scene - scene % IN_FOLDER
    within = Path(f"{kind}_{start:05d}-{start + IN_FOLDER:05d}") / f"{kind}_{scene:05d}{SUFFIXES[kind]}"
    return [folder / place.format(split=split_of(scene)) / within for place in FOLDERS[kind]]


def question_file(folder: Path, split: str) -> Path:
    """The question file of a split, in ``questions`` or in the folder itself; the released ones may say ``val``.

    Raises:
        FileNotFoundError: if there is none; the message says where it was looked for.
    """
    names = [split, *(["val"] if split == "validation" else [])]
    return _existing(
        f"{split} questions", [place / f"{name}.json" for name in names for place in (folder / "questions", folder)]
    )


def facts_of(trajectory: Trajectory, counterfactuals: Counterfactuals | None) -> Facts:
    """All that is known of a scene."""
    facts = Facts.of(trajectory)
    return replace(facts, without=counterfactuals.pairs) if counterfactuals else facts


def _existing(what: str, paths: list[Path]) -> Path:
    for path in paths:
        if path.is_file():
            return path
    raise FileNotFoundError(f"no {what}: expected {' or '.join(map(str, paths))}")


@contextmanager
def _named(path: Path, scene: int) -> Iterator[None]:
    """Add file and scene to what is wrong with them; JSON's and Unicode's errors are ValueErrors as well."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: scene {scene}: {error}") from error


def _require_frames(number: int, needed: int = VISIBLE_FRAMES) -> None:
    if number < needed:
        advice = "; only what `python -m cjepa_agent.collect env=clevrer` writes goes on after the video"
        raise ValueError(f"{number} of {needed} frames{advice if needed > VISIBLE_FRAMES else ''}")


class Dataset:
    """Reads a folder in CLEVRER's layout.

    The released files have flaws: an annotation that is no JSON, questions without a subtype, videos that are short.
    Methods that read one scene raise an error that names its file; those that read a split report it and go on.

    Args:
        folder: the data set.

    Raises:
        FileNotFoundError: no such folder, or nothing of a data set in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not any(self.scenes(kind, split) for kind in FOLDERS for split in SPLITS) and not self._asks():
            raise FileNotFoundError(f"no CLEVRER data set at {folder}: expected {scene_paths(folder, 'video', 0)[0]}")

    def _asks(self) -> bool:
        """Whether there are questions, which are enough where slots of the videos are elsewhere."""
        for split in SPLITS:
            with suppress(FileNotFoundError):
                question_file(self.folder, split)
                return True
        return False

    def scenes(self, kind: str, split: str) -> list[int]:
        """Indices of the scenes of a split that have a file of a kind (``video``, ``annotation``, ...)."""
        pattern = re.compile(rf"{kind}_(\d{{5}}){re.escape(SUFFIXES[kind])}")
        names = (
            pattern.fullmatch(path.name)
            for place in FOLDERS[kind]
            for path in (self.folder / place.format(split=split)).glob(f"{kind}_*/{kind}_*")
        )
        return sorted({int(name[1]) for name in names if name})

    def path(self, kind: str, scene: int) -> Path:
        """A scene's file of a kind; raises FileNotFoundError if there is none, ValueError for an impossible index."""
        return _existing(f"{kind} of scene {scene}", scene_paths(self.folder, kind, scene))

    def video(self, scene: int) -> NDArray[np.uint8]:
        """The frames (128, H, W, 3) of a scene.

        Raises:
            FileNotFoundError: there is no video.
            ValueError: it cannot be read, or is short.
        """
        path = self.path("video", scene)
        with _named(path, scene):
            frames = read_video(path)
            _require_frames(len(frames))
        return frames[:VISIBLE_FRAMES]

    def trajectory(self, scene: int, frames: int = VISIBLE_FRAMES) -> Trajectory:
        """What the annotation of a scene tells.

        Args:
            scene: its index.
            frames: that are needed. Annotations as published end with the video; those that
                ``python -m cjepa_agent.collect env=clevrer`` writes go on.

        Raises:
            FileNotFoundError: there is no annotation.
            ValueError: it is broken, short, or another scene's.
        """
        path = self.path("annotation", scene)
        with _named(path, scene):
            annotation = json.loads(path.read_text())
            trajectory = read_trajectory(annotation)
            if annotation.get("scene_index") != scene:
                raise ValueError(f"annotates scene {annotation.get('scene_index')}")
            _require_frames(len(trajectory.inside), frames)
        return trajectory

    def counterfactuals(self, scene: int) -> Counterfactuals | None:
        """What happens without each object, None where that is not told; raises ValueError for a broken file."""
        (path,) = scene_paths(self.folder, "counterfactual", scene)
        with _named(path, scene):
            return Counterfactuals.load(path) if path.is_file() else None

    def facts(self, scene: int) -> Facts:
        """All that programs can ask of a scene; errors as of ``trajectory`` and ``counterfactuals``."""
        return facts_of(self.trajectory(scene), self.counterfactuals(scene))

    def videos(self, split: str, report: Callable[[str], object]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Index and frames of each video of a split; ``report`` is called with a line on each that is left out."""
        return self._each("video", split, self.video, report)

    def trajectories(self, split: str, report: Callable[[str], object]) -> Iterator[tuple[int, Trajectory]]:
        """Index and trajectory of each annotation of a split; ``report`` as of ``videos``."""
        return self._each("annotation", split, self.trajectory, report)

    def _each(
        self, kind: str, split: str, read: Callable[[int], T], report: Callable[[str], object]
    ) -> Iterator[tuple[int, T]]:
        for scene in self.scenes(kind, split):
            try:
                yield scene, read(scene)
            except (OSError, ValueError) as error:
                report(str(error))

    def questions(self, split: str) -> QuestionFile:
        """The questions of a split, with answers as far as there is a file that tells them; see ``read_questions``."""
        if split != "test":
            return read_questions(question_file(self.folder, split))
        try:
            return read_questions(question_file(self.folder, "test_answers"))
        except FileNotFoundError:
            return read_questions(question_file(self.folder, "test"), answers=False)
