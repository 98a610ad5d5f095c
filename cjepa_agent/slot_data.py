"""Frozen slots of a dataset on disk, and windows over them for training.

A slots folder holds ``slots.npy``, (rows, S, D) memory-mapped, row for row beside the episode file's columns, float16
or, converted from the authors' pickles, float32; and ``slots.json``, which says which dataset and encoder
it belongs to, how many episodes are done, and the stride: only every ``stride``-th frame of an episode has slots.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cjepa_agent.data import EpisodeFile, Split
from cjepa_agent.files import read_json
from cjepa_agent.latent import Latent


class SlotData:
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
        try:
            self.slots: NDArray[np.float16] = np.load(folder / "slots.npy", mmap_mode="r")
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder / 'slots.npy'} is not a readable array: {error}") from error
        self.episodes = episodes
        self.proprio = torch.from_numpy(episodes.read_all("proprio"))
        self.actions = torch.from_numpy(episodes.read_all("action"))
        if len(self.slots) != len(self.proprio):
            raise ValueError(
                f"{folder} holds slots of {len(self.slots)} frames, {episodes.path} has {len(self.proprio)}; "
                f"extract the slots of this dataset"
            )
        if not torch.isfinite(self.actions).all():
            raise ValueError(f"{episodes.path} has NaN or infinite actions")

    def done(self, split: Split) -> NDArray[np.int64]:
        """Episodes of ``split`` whose slots have been extracted."""
        chosen = self.episodes.episodes(split)
        return chosen[chosen < int(self.meta["episodes"])]

    def window_starts(self, split: Split, frames: int, block: int) -> NDArray[np.int64]:
        """Rows from which ``frames`` frames, ``block`` rows apart, have slots and lie inside one episode.

        Raises:
            ValueError: no episode of the split is that long, or the block is no multiple of the slots' stride.
        """
        span, stride = (frames - 1) * block, int(self.meta["stride"])
        if block % stride:
            raise ValueError(f"the slots' stride {stride} does not divide the action block {block}; extract them anew")
        starts = [
            np.arange(self.episodes.offsets[e], self.episodes.offsets[e] + self.episodes.lengths[e] - span, stride)
            for e in self.done(split)
        ]
        rows = np.concatenate(starts) if starts else np.zeros(0, dtype=np.int64)
        if len(rows) == 0:
            raise ValueError(
                f"{self.episodes.path} has no {split} episode of {span + 1} steps with slots; "
                f"collect longer episodes or extract more of them"
            )
        return rows

    def frames(self, rows: NDArray[np.int64]) -> Latent:
        """Raw slots (..., S, D) and proprioception (..., P), float32, of rows (...)."""
        return Latent(torch.from_numpy(self.slots[rows].astype(np.float32)), self.proprio[torch.from_numpy(rows)])

    def blocks(self, starts: NDArray[np.int64], blocks: int, block: int) -> Tensor:
        """Action blocks (B, blocks, block * action width) taken from rows (B,) on, in environment units."""
        rows = torch.from_numpy(starts)[:, None] + torch.arange(blocks * block)
        return self.actions[rows].reshape(len(starts), blocks, -1)

    def windows(self, starts: NDArray[np.int64], frames: int, block: int) -> tuple[Latent, Tensor]:
        """Frames ``block`` rows apart (B, frames, ...) and the action blocks between them (B, frames - 1, A)."""
        rows = starts[:, None] + np.arange(frames) * block
        return self.frames(rows), self.blocks(starts, frames - 1, block)
