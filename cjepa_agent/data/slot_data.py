"""Frozen slots of a dataset on disk, and windows over them for training.

A slots folder of episodes holds ``slots.npy``, (rows, S, D) memory-mapped, row for row beside the episode file's
columns, float16 or, converted from the authors' pickles, float32; and ``slots.json``, which says which dataset and
encoder it belongs to, how many episodes are done, and the stride: only every ``stride``-th frame of an episode has
slots. Slots of videos are in the folders of ``VideoSlots``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cjepa_agent.data.clevrer_slots import ObservedScenes
from cjepa_agent.data.episodes import EpisodeFile, Split
from cjepa_agent.data.video_slots import META, VideoSlots
from cjepa_agent.files import load_array, read_json
from cjepa_agent.latent import Latent
from cjepa_agent.tensors import digest
from envs.clevrer.dataset import split_of
from envs.clevrer.physics import VISIBLE_FRAMES


class SlotWindows(ABC):
    """Windows over slots, proprioception and actions of many episodes or videos, which lie one after another in rows.

    Attributes:
        name: of the dataset, for messages.
        origin: what the dataset is, for the record of a training.
        slots: (rows, S, D).
        proprio: (rows, P).
        actions: (rows, A of one environment action).
        stride: windows start at every ``stride``-th row of an episode.
    """

    name: str
    origin: Mapping[str, Any]
    slots: NDArray[np.floating[Any]]
    proprio: Tensor
    actions: Tensor
    stride: int

    @abstractmethod
    def spans(self, split: Split) -> list[tuple[int, int]]:
        """First row and number of rows of each episode of ``split`` whose slots have been extracted."""

    @abstractmethod
    def pixels(self, rows: NDArray[np.int64]) -> Tensor:
        """The frames (M, H, W, 3) uint8 of rows (M,).

        Raises:
            FileNotFoundError: there is no data set of the videos that slots are of.
            ValueError: the dataset has no frames, or not those.
        """

    def window_starts(self, split: Split, frames: int, block: int) -> NDArray[np.int64]:
        """Rows from which ``frames`` frames, ``block`` rows apart, have slots and lie inside one episode.

        Raises:
            ValueError: no episode of the split is that long, or the block is no multiple of the slots' stride.
        """
        span = (frames - 1) * block
        if block % self.stride:
            raise ValueError(
                f"the slots' stride {self.stride} does not divide the action block {block}; extract them anew"
            )
        starts = [np.arange(first, first + rows - span, self.stride) for first, rows in self.spans(split)]
        rows = np.concatenate(starts) if starts else np.zeros(0, dtype=np.int64)
        if len(rows) == 0:
            raise ValueError(
                f"{self.name} has no {split} episode of {span + 1} steps with slots; "
                f"collect longer episodes or extract more of them"
            )
        return rows

    def frames(self, rows: NDArray[np.int64]) -> Latent:
        """Raw slots (..., S, D) and proprioception (..., P), float32, of rows (...)."""
        return Latent(torch.from_numpy(self.slots[rows].astype(np.float32)), self.proprio[torch.from_numpy(rows)])

    def blocks(self, starts: NDArray[np.int64], blocks: int, block: int) -> Tensor:
        """Action blocks (B, blocks, block * action width) taken from rows (B,) on, in environment units."""
        rows = torch.from_numpy(starts)[:, None] + torch.arange(blocks * block)
        taken: Tensor = self.actions[rows].unflatten(1, (blocks, block))
        return taken.flatten(2)

    def windows(self, starts: NDArray[np.int64], frames: int, block: int) -> tuple[Latent, Tensor]:
        """Frames ``block`` rows apart (B, frames, ...) and the action blocks between them (B, frames - 1, A)."""
        rows = starts[:, None] + np.arange(frames) * block
        return self.frames(rows), self.blocks(starts, frames - 1, block)


def content(actions: Tensor, proprio: Tensor) -> str:
    """What tells episodes from others of the same lengths: SHA-256 of their actions (M, A) and proprio (M, P)."""
    return digest({"action": actions, "proprio": proprio})


class SlotData(SlotWindows):
    """Slots, proprioception and actions of a dataset, in memory-mapped and plain arrays.

    Args:
        episodes: the dataset.
        folder: its slots, written by ``python -m cjepa_agent.extract``.

    Raises:
        FileNotFoundError: no slots there.
        ValueError: the slots belong to another dataset, or are not readable.
    """

    def __init__(self, episodes: EpisodeFile, folder: Path) -> None:
        if not (folder / "slots.json").is_file():
            raise FileNotFoundError(f"no slots in {folder}; make them with `python -m cjepa_agent.extract`")
        self.meta = read_json(folder / "slots.json")
        if not isinstance(self.meta, dict) or not {"stride", "episodes"} <= set(self.meta):
            raise ValueError(f"{folder / 'slots.json'} does not tell stride and episodes; extract the slots again")
        self.slots = load_array(folder / "slots.npy")
        self.episodes, self.name = episodes, str(episodes.path)
        self.stride = int(self.meta["stride"])
        self.proprio = torch.from_numpy(episodes.read_all("proprio"))
        self.actions = torch.from_numpy(episodes.read_all("action"))
        if self.slots.ndim != 3:
            raise ValueError(f"{folder / 'slots.npy'} has shape {self.slots.shape}; expected (frames, slots, numbers)")
        if len(self.slots) != len(self.proprio):
            raise ValueError(
                f"{folder} holds slots of {len(self.slots)} frames, {episodes.path} has {len(self.proprio)}; "
                f"extract the slots of this dataset"
            )
        made_of = content(self.actions, self.proprio)
        if self.meta.get("content", made_of) != made_of:  # older folders do not tell
            raise ValueError(
                f"{folder} holds slots of episodes with other actions than those of {episodes.path}; "
                f"extract the slots of this dataset"
            )
        self.origin = {**episodes.attrs, "content": made_of}
        for name, column in (("actions", self.actions), ("proprio", self.proprio)):
            if not torch.isfinite(column).all():
                raise ValueError(f"{episodes.path} has NaN or infinite {name}")

    def done(self, split: Split) -> NDArray[np.int64]:
        """Episodes of ``split`` whose slots have been extracted."""
        chosen = self.episodes.episodes(split)
        return chosen[chosen < int(self.meta["episodes"])]

    def spans(self, split: Split) -> list[tuple[int, int]]:
        """See ``SlotWindows``."""
        offsets, lengths = self.episodes.offsets, self.episodes.lengths
        return [(int(offsets[episode]), int(lengths[episode])) for episode in self.done(split)]

    def pixels(self, rows: NDArray[np.int64]) -> Tensor:
        """See ``SlotWindows``."""
        if "pixels" not in self.episodes.columns:
            raise ValueError(f"{self.name} has no pixels, only {sorted(self.episodes.columns)}; give data= with frames")
        episodes = np.searchsorted(self.episodes.offsets, rows, side="right") - 1
        steps = rows - self.episodes.offsets[episodes]
        frames = [
            self.episodes.read("pixels", int(e), int(t), int(t) + 1) for e, t in zip(episodes, steps, strict=True)
        ]
        return torch.from_numpy(np.concatenate(frames))


class VideoSlotData(SlotWindows):
    """Slots of CLEVRER videos, in which nobody acts: no proprioception and no actions (P = A = 0).

    Args:
        videos: their slots.
        data: the data set of the videos; only ``pixels`` reads it.
    """

    stride = 1

    def __init__(self, videos: VideoSlots, data: Path) -> None:
        if "observed" in videos.identity:
            raise ValueError(f"{videos.folder} holds frames that a predictor made; give the slots that extract wrote")
        self.videos, self.data, self.name, self.origin = videos, data, str(videos.folder), videos.identity
        self.slots = videos.array.reshape(-1, *videos.array.shape[2:])
        self.proprio = self.actions = torch.empty(len(self.slots), 0)

    def spans(self, split: Split) -> list[tuple[int, int]]:
        """See ``SlotWindows``; a video's split follows from its index, as in ``envs.clevrer.dataset``."""
        frames = self.videos.frames
        return [
            (row * frames, frames) for row, scene in enumerate(self.videos.scenes) if split in ("all", split_of(scene))
        ]

    def pixels(self, rows: NDArray[np.int64]) -> Tensor:
        """See ``SlotWindows``; without ``frames.h5`` in the data set each frame takes the decoding of a whole video."""
        places = [divmod(int(row), self.videos.frames) for row in rows]
        return torch.from_numpy(
            np.concatenate([self._pictures.read(self.videos.scenes[v], frame, frame + 1) for v, frame in places])
        )

    @cached_property
    def _pictures(self) -> ObservedScenes:
        if self.videos.frames > VISIBLE_FRAMES:
            raise ValueError(
                f"{self.name} has slots of {self.videos.frames} frames, of which {VISIBLE_FRAMES} were seen; "
                f"take the slots that extract wrote"
            )
        pictures = ObservedScenes(self.data, "pixels", 0)
        if missing := sorted(set(self.videos.scenes) - set(pictures.scenes)):
            raise ValueError(f"{self.data} has no videos of scenes {missing[:5]} that {self.name} has slots of")
        return pictures


def open_slots(data: Path, folder: Path) -> SlotWindows:
    """The slots in a folder: those of the episode file ``data``, or those of videos, which need no other file.

    Raises:
        FileNotFoundError: no slots there, or no episode file.
        ValueError: the slots belong to another dataset, or are not readable.
    """
    meta = folder / META
    if meta.is_file() and "scenes" in read_json(meta):
        return VideoSlotData(VideoSlots(folder), data)
    return SlotData(EpisodeFile(data), folder)
