"""Episode files: HDF5 in stable-worldmodel's flat layout.

One array per column, all episodes one after another along the first axis; ``ep_len`` and ``ep_offset`` say
where each episode lies. Row ``t`` holds what was seen at ``t`` and the action taken from there. Columns of
Push-T: ``pixels`` uint8 (H, W, 3), ``action`` float32 (2,), ``proprio`` float32 (4,) = agent x, y px, vx, vy
px/s, ``state`` float64 (7,). Files of ours also carry ``split`` (0 train, 1 validation, 2 test), constant in
each episode but one entry per row, since stable-worldmodel cuts every column like that. The columns of CLEVRER scenes
are listed in ``collecting.clevrer``.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import DTypeLike, NDArray

from envs.files import atomic

# Registers further compression filters with h5py; files of stable-worldmodel may use one.
with contextlib.suppress(ImportError):
    importlib.import_module("hdf5plugin")

Split = Literal["train", "validation", "test", "all"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SPLIT_EVERY = 20
CLEVRER_FRAMES = "frames.h5"  # the episode file of a CLEVRER data set
CHUNK_BYTES = 16 * 64 * 64 * 3  # a window of 64 px frames then touches one or two chunks
CHUNK_ROWS = 4096  # at most
TYPES: dict[str, DTypeLike] = {"action": np.float32, "proprio": np.float32, "state": np.float64}


def require_splits(splits: Sequence[str]) -> None:
    """Raise ValueError where one of some names is none of ``SPLITS``."""
    if unknown := set(splits) - set(SPLITS):
        raise ValueError(f"splits has {sorted(unknown)}; expected some of {list(SPLITS)}")


def split_episodes(n_episodes: int) -> NDArray[np.int8]:
    """Assign each episode to train (0), validation (1) or test (2): one in ``SPLIT_EVERY`` to each of the latter.

    An episode's part does not depend on how many follow, so that a longer collection of the same seed keeps it.

    Raises:
        ValueError: with fewer than three episodes no split has all parts.
    """
    if n_episodes < 3:
        raise ValueError(f"need at least 3 episodes to split into train, validation and test, got {n_episodes}")
    split = np.zeros(n_episodes, dtype=np.int8)
    split[1::SPLIT_EVERY] = 1
    split[2::SPLIT_EVERY] = 2
    return split


def write_episodes(
    path: str | Path, episodes: Iterable[Mapping[str, NDArray[Any]]], attrs: Mapping[str, Any] | None = None
) -> None:
    """Write episodes (dicts of equally long columns) to ``path``; the file appears only when it is complete.

    One episode at a time is in memory. Without a column ``split`` of theirs, ``split_episodes`` makes it; with fewer
    than three episodes the file has none then.

    Raises:
        ValueError: no episodes, an empty one, or columns that do not fit together.
    """
    with atomic(Path(path)) as partial:
        lengths: list[int] = []
        rows = 0
        with h5py.File(partial, "w") as file:
            for episode in episodes:
                lengths.append(_append(file, episode, rows))
                rows += lengths[-1]
            if not lengths:
                raise ValueError(f"no episodes to write to {path}")
            file["ep_len"] = np.array(lengths, dtype=np.int32)
            file["ep_offset"] = np.concatenate([[0], np.cumsum(lengths[:-1])]).astype(np.int64)
            if "split" not in file and len(lengths) >= 3:
                file["split"] = np.repeat(split_episodes(len(lengths)), lengths)
            file.attrs.update(attrs or {})


def _append(file: h5py.File, episode: Mapping[str, NDArray[Any]], at: int) -> int:
    episode = {name: np.asarray(column) for name, column in episode.items()}
    shapes = {name: column.shape for name, column in episode.items()}
    lengths = {shape[0] if shape else 0 for shape in shapes.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"the columns of an episode must be equally long and not empty, got {shapes}")
    if "action" not in episode or not {"ep_len", "ep_offset"}.isdisjoint(episode):
        raise ValueError(
            f"an episode needs a column 'action', and 'ep_len' and 'ep_offset' are made here, got {sorted(episode)}"
        )
    types = {name: str(column.dtype) for name, column in episode.items()}
    wrong = {name for name, column in episode.items() if column.dtype.kind not in "biuf"}
    if wrong or types.get("pixels", "uint8") != "uint8":
        raise ValueError(f"columns must hold numbers, and pixels uint8, got {types}")
    if at and set(file) != set(episode):
        raise ValueError(f"episodes must have the same columns, got {sorted(file)} and {sorted(episode)}")
    for name, column in episode.items():
        if name not in file:
            _create(file, name, column)
        dataset = file[name]
        if dataset.shape[1:] != column.shape[1:]:
            raise ValueError(f"column {name!r} has rows of shape {dataset.shape[1:]} and {column.shape[1:]}")
        if dataset.dtype != column.dtype:
            raise ValueError(f"column {name!r} has {dataset.dtype} and {column.dtype}; give all episodes one dtype")
        dataset.resize(at + len(column), axis=0)
        dataset[at:] = column
    return lengths.pop()


def _create(file: h5py.File, name: str, column: NDArray[Any]) -> None:
    shape = column.shape[1:]
    rows = max(1, min(CHUNK_ROWS, CHUNK_BYTES // max(1, column[0].nbytes)))
    compression = "lzf" if column.ndim > 2 else None
    file.create_dataset(
        name, (0, *shape), column.dtype, maxshape=(None, *shape), chunks=(rows, *shape), compression=compression
    )


def open_episodes(path: Path) -> EpisodeFile:
    """The episode file at ``path``, or in the CLEVRER data set there; raises as ``EpisodeFile`` does."""
    return EpisodeFile(path / CLEVRER_FRAMES if path.is_dir() else path)


class EpisodeFile:
    """Read access to an episode file; opens lazily, so that instances can be sent to worker processes.

    ``action``, ``proprio`` and ``state`` are read in the types above, whatever the file has. An episode's last
    action, whose outcome is not in the file, reads as 0 where it is missing (NaN). Where the file has no split,
    it is that of ``split_episodes``.

    Args:
        path: an HDF5 file in the layout above, ours or stable-worldmodel's.

    Attributes:
        columns: shape of each column.
        lengths: (E,) rows of each episode.
        offsets: (E,) first row of each episode.
        attrs: the file's attributes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an HDF5 file, or a column is missing or has the wrong length or shape.
    """

    REQUIRED = ("action", "ep_len", "ep_offset")

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no episode file at {self.path}; make one with `python -m cjepa_agent.collect`")
        self._file: h5py.File | None = None
        try:
            with h5py.File(self.path, "r") as file:
                self.columns = {name: item.shape for name, item in file.items() if isinstance(item, h5py.Dataset)}
                missing = [name for name in self.REQUIRED if name not in self.columns]
                if missing:
                    raise ValueError(f"{self.path} lacks the columns {missing}; it has {sorted(self.columns)}")
                self.lengths: NDArray[np.int64] = file["ep_len"][:].astype(np.int64)
                self.offsets: NDArray[np.int64] = file["ep_offset"][:].astype(np.int64)
                self.attrs = dict(file.attrs)
        except OSError as error:
            raise ValueError(
                f"{self.path} is not a readable HDF5 file (truncated or another format): {error}"
            ) from error
        self._check_shapes()

    def _check_shapes(self) -> None:
        rows = int(self.lengths.sum())
        wrong = {n: s[:1] for n, s in self.columns.items() if not n.startswith("ep_") and s[:1] != (rows,)}
        if wrong:
            raise ValueError(f"{self.path}: ep_len adds up to {rows} rows, but columns have {wrong}")
        if not np.array_equal(self.offsets, np.cumsum(self.lengths) - self.lengths) or np.any(self.lengths < 1):
            raise ValueError(f"{self.path}: ep_offset and ep_len do not lay the episodes one after another")
        flat = {name: s for name in ("action", "proprio") if len(s := self.columns.get(name, (rows, 1))) != 2}
        if flat:
            raise ValueError(f"{self.path}: action and proprio must be (rows, numbers), got {flat}")
        frame = self.columns.get("pixels", (rows, 1, 1, 3))[1:]
        if len(frame) != 3 or frame[2] != 3:
            raise ValueError(f"{self.path}: pixels must be (rows, H, W, 3), got {self.columns['pixels']}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def split(self) -> NDArray[np.int8]:
        """(E,) the part of the data that each episode belongs to, as an index into ``SPLITS``."""
        if "split" not in self.columns:
            return split_episodes(len(self))
        split: NDArray[np.int8] = self.read_all("split")[self.offsets]
        if unknown := sorted(set(split.tolist()) - set(range(len(SPLITS)))):
            raise ValueError(f"{self.path} has {unknown} in its column split; expected 0, 1, 2 for {list(SPLITS)}")
        return split

    def episodes(self, split: Split) -> NDArray[np.int64]:
        """Indices of the episodes in ``split``; raises ValueError for another name, or for fewer than three."""
        if split == "all":
            return np.arange(len(self))
        require_splits([split])
        return np.flatnonzero(self.split == SPLITS.index(split))

    def read(self, column: str, episode: int, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows ``start:stop`` of one episode's ``column``.

        Raises:
            IndexError: no such episode or rows.
            ValueError: no such column, or the rows are damaged or have NaN among actions that were taken.
        """
        if not 0 <= episode < len(self):
            raise IndexError(f"episode {episode} of {len(self)} in {self.path}")
        offset, length = int(self.offsets[episode]), int(self.lengths[episode])
        stop = length if stop is None else stop
        if not 0 <= start <= stop <= length:
            raise IndexError(f"rows {start}:{stop} of episode {episode}, which has {length}")
        last = np.arange(max(length - 1, start) - start, stop - start)
        return self._rows(column, offset + start, offset + stop, last)

    def read_all(self, column: str) -> NDArray[Any]:
        """The whole column, all episodes; raises as ``read`` does."""
        return self._rows(column, 0, int(self.lengths.sum()), self.offsets + self.lengths - 1)

    def _rows(self, column: str, start: int, stop: int, last: NDArray[np.int64]) -> NDArray[Any]:
        """Rows ``start:stop`` of the file; ``last`` are those among them that end an episode."""
        dataset = self._dataset(column)
        try:
            rows: NDArray[Any] = dataset[start:stop]
        except OSError as error:
            raise ValueError(
                f"cannot read {column!r} of {self.path}: the file is damaged, or compressed with a filter that "
                f"`pip install hdf5plugin` adds ({error})"
            ) from error
        rows = rows.astype(TYPES.get(column, rows.dtype), copy=False)
        if column == "action":
            rows[last] = np.where(np.isnan(rows[last]), 0.0, rows[last])
            if np.isnan(rows).any():
                raise ValueError(f"{self.path} has NaN among actions that are not the last of their episode")
        return rows

    def _dataset(self, column: str) -> h5py.Dataset:
        if column not in self.columns:
            raise ValueError(f"{self.path} has no column {column!r}; it has {sorted(self.columns)}")
        if self._file is None:
            self._file = h5py.File(self.path, "r")
        return self._file[column]
