"""Slots of many videos of one length on disk: encoded, or continued by a predictor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from cjepa_agent.files import load_array, read_json, write_json

META, ARRAY = "slots.json", "slots.npy"


class VideoSlots:
    """Slots (V, T, S, D) of V videos, memory-mapped, in a folder.

    Args:
        folder: made by ``VideoSlots.write``.

    Attributes:
        scenes: index of each video in its data set, V of them, ascending.
        array: (V, T, S, D), float16 or float32.
        identity: what they were made of, as told to ``write``.

    Raises:
        FileNotFoundError: no slots there.
        ValueError: they are not readable, or unfinished.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / META).is_file():
            raise FileNotFoundError(f"no slots in {folder}; make them with `python -m cjepa_agent.extract`")
        meta = read_json(folder / META)
        try:
            self.scenes, self.identity = [int(s) for s in meta["scenes"]], dict(meta["identity"])
            done = int(meta["done"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder / META} does not describe slots of videos: {error!r}") from error
        self.array: NDArray[np.floating[Any]] = load_array(folder / ARRAY)
        if self.scenes != sorted(set(self.scenes)):
            raise ValueError(f"{folder / META} must tell scenes in order, each once, got {self.scenes}")
        fits = self.array.ndim == 4 and len(self.array) == len(self.scenes)
        if not fits or self.array.dtype not in (np.float16, np.float32):
            raise ValueError(
                f"{folder / ARRAY} is {self.array.dtype} {self.array.shape}; expected float16 or float32 "
                f"({len(self.scenes)}, T, S, D)"
            )
        if done < len(self.scenes):
            raise ValueError(f"{folder} has {done} of {len(self.scenes)} videos; run the command that makes it again")
        self._row = {scene: row for row, scene in enumerate(self.scenes)}

    @property
    def frames(self) -> int:
        """T."""
        return int(self.array.shape[1])

    def require_whole(self) -> None:
        """Raise ValueError where the videos are predictions without one of their objects."""
        if "remove" in self.identity:
            raise ValueError(
                f"{self.folder} holds videos without an object; give slots of whole videos. task=intervention scores "
                "removals, and intervened= lets counterfactual questions read such a rollout"
            )

    def read(self, scene: int, frames: slice = slice(None)) -> Tensor:
        """Slots (T, S, D) float32 of some frames of a scene; raises KeyError where there are none."""
        if scene not in self._row:
            raise KeyError(f"{self.folder} has no slots of scene {scene}; it holds {len(self.scenes)} scenes")
        return torch.from_numpy(self.array[self._row[scene], frames].astype(np.float32))

    @staticmethod
    def write(
        folder: Path,
        identity: Mapping[str, Any],
        scenes: list[int],
        shape: tuple[int, int, int],
        videos: Iterable[Tensor],
        every: int = 50,
        dtype: DTypeLike = np.float16,
    ) -> None:
        """Write slots video by video; a killed run is continued if ``videos`` starts at ``finished(folder, ...)``.

        Args:
            folder: made if absent.
            identity: what the slots are made of; JSON.
            scenes: index of each video.
            shape: T, S, D.
            videos: slots (T, S, D) of the scenes that are not finished, in order.
            every: videos between two marks of how far it came.
            dtype: of the array.

        Raises:
            ValueError: slots of another shape, or with NaN or infinite values.
        """
        SlotsWriter(folder, identity, scenes, shape, dtype).append(videos, every)

    @staticmethod
    def finished(
        folder: Path, identity: Mapping[str, Any], scenes: list[int], shape: tuple[int, int, int] | None = None
    ) -> int:
        """How many of the scenes are in the folder already.

        Args:
            folder: of the slots.
            identity: what they are made of.
            scenes: index of each video.
            shape: T, S, D; any without.

        Raises:
            ValueError: it holds slots of something else, or of another shape.
        """
        if not (folder / META).is_file():
            return 0
        meta = read_json(folder / META)
        if meta.get("identity") != dict(identity) or meta.get("scenes") != scenes:
            raise ValueError(f"{folder} holds slots made of {meta.get('identity')}; choose another out=")
        found = load_array(folder / ARRAY).shape[1:]
        if shape is not None and found != shape:
            raise ValueError(f"{folder} holds slots (T, S, D) {found}, these are {shape}; choose another out=")
        return int(meta["done"])


class SlotsWriter:
    """Writes slots of videos, some at a time; a killed run goes on where it was.

    Args:
        folder, identity, scenes, shape, dtype: see ``VideoSlots.write``.

    Attributes:
        done: videos that are in the folder; after an error, some of them may be written again by the next run.

    Raises:
        ValueError: it holds slots of something else, or of another shape.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        scenes: list[int],
        shape: tuple[int, int, int],
        dtype: DTypeLike,
    ) -> None:
        self.done = VideoSlots.finished(folder, identity, scenes, shape)
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._identity, self._scenes = folder, dict(identity), scenes
        self._array = np.lib.format.open_memmap(
            folder / ARRAY, mode="r+" if self.done else "w+", dtype=dtype, shape=(len(scenes), *shape)
        )

    def append(self, videos: Iterable[Tensor], every: int = 50) -> None:
        """Write slots (T, S, D) of the videos that come next; raises ValueError where shape or numbers are wrong."""
        shape = self._array.shape[1:]
        for slots in videos:
            self._array[self.done] = as_stored(slots, shape, self._array.dtype, f"scene {self._scenes[self.done]}")
            self.done += 1
            if self.done % every == 0:
                self._mark()
        self._mark()

    def _mark(self) -> None:
        self._array.flush()
        write_json(self._folder / META, {"identity": self._identity, "scenes": self._scenes, "done": self.done})


def as_stored(slots: Tensor | NDArray[Any], shape: tuple[int, ...], dtype: np.dtype[Any], of: str) -> NDArray[Any]:
    """Slots as a file holds them; raises ValueError where their shape is another or the type holds no such numbers."""
    with np.errstate(over="ignore"):  # told below
        stored = np.asarray(slots).astype(dtype)
    if stored.shape != shape:
        raise ValueError(f"slots of {of} are {stored.shape}, expected {shape}")
    if not np.isfinite(stored).all():
        raise ValueError(f"slots of {of} hold NaN or numbers too large for {dtype}")
    return stored
