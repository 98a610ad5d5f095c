"""Datasets of stable-worldmodel that are folders: tables of numbers beside a video or pictures of each episode.

| kind | holds |
| --- | --- |
| videos | ``ep_len.npz``, ``<column>.npz`` (rows, ...), all episodes one after another, ``<column>/ep_<i>.mp4`` |
| pictures | the same with ``<column>/ep_<i>_step_<j>.jpeg`` |
| Arrow, of versions before 0.1 | ``data-*.arrow``, a row per step: numbers, and paths of a video or picture |

C-JEPA's Push-T data is of the third kind, whose tables need pyarrow. LanceDB tables are not read; the error tells how
stable-worldmodel itself writes them as another kind.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from envs.clevrer.video import read_video

Columns = dict[str, NDArray[Any]]
Frames = Callable[[int, int], NDArray[np.uint8]]  # of an episode of so many steps
INDICES = ("ep_len", "ep_offset", "ep_idx", "episode_idx", "step_idx", "episode_len")  # what the HDF5 layout tells
NUMBERS = "biuf"  # kinds of NumPy types that are kept
FILES = (".mp4", ".jpeg", ".jpg", ".png")  # what a column of paths leads to


@dataclass(frozen=True)
class EpisodeFolder:
    """A dataset as found in a folder.

    Attributes:
        kind: what it is, for messages.
        count: episodes.
        columns: names of what each episode has.
        left_out: names of columns that hold no numbers.
        episodes: equally long columns of one after another, pictures (T, H, W, 3) uint8 among them.
    """

    kind: str
    count: int
    columns: list[str]
    left_out: list[str]
    episodes: Iterator[Columns]


def read_folder(folder: Path) -> EpisodeFolder:
    """What is in a folder; pictures are read when ``episodes`` gets there.

    Raises:
        ValueError: another kind of folder, one that needs a missing library, no actions, or tables that do not fit.
            The same holds for videos and pictures while ``episodes`` is read.
    """
    if (folder / "ep_len.npz").is_file():
        return _of_tables(folder)
    if shards := sorted(folder.glob("data-*.arrow")):
        return _of_arrow(folder, shards)
    raise ValueError(
        f"{folder} is none of the folders known here: slots (slots.json), or a dataset of stable-worldmodel with "
        f"ep_len.npz or data-*.arrow. What it keeps in other forms (LanceDB, LeRobot) it writes itself as such a "
        f"folder, `swm convert <name> <new name> --dest-format video`, or as HDF5, which needs no conversion here, "
        f"`stable_worldmodel.data.convert(source, target, dest_format='hdf5')`"
    )


def _of_tables(folder: Path) -> EpisodeFolder:
    lengths = _table(folder / "ep_len.npz")
    if lengths.ndim != 1 or lengths.dtype.kind not in NUMBERS or (lengths != np.floor(lengths)).any():
        raise ValueError(f"{folder / 'ep_len.npz'} must hold one whole number per episode, got {lengths}")
    if (lengths < 1).any():
        raise ValueError(f"{folder / 'ep_len.npz'} has episodes without steps: {lengths.tolist()}")
    lengths = lengths.astype(np.int64)
    tables = {path.stem: _table(path) for path in sorted(folder.glob("*.npz")) if path.stem not in INDICES}
    pictures: dict[str, Frames] = {}
    for place in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        reader = _episode_video if any(place.glob("ep_*.mp4")) else _episode_pictures
        pictures[place.name] = partial(reader, place)
    return _dataset(folder, "tables beside videos or pictures", lengths, tables, pictures)


def _table(path: Path) -> NDArray[Any]:
    try:
        with np.load(path) as archive:
            values: NDArray[Any] = archive["arr_0"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is truncated or not a table of numbers: {error}") from error
    return values


def _of_arrow(folder: Path, shards: list[Path]) -> EpisodeFolder:
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise ValueError(f"{folder} holds Arrow tables, which pyarrow reads: pip install pyarrow ({error})") from error
    try:
        streams = [pyarrow.ipc.open_stream(pyarrow.memory_map(str(shard))) for shard in shards]
        table = pyarrow.concat_tables([stream.read_all() for stream in streams])
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{shards[0]} is truncated or not an Arrow stream: {error}") from error
    if missing := {"episode_idx", "step_idx"} - set(table.column_names):
        raise ValueError(f"{folder} lacks the columns {sorted(missing)}; it has {table.column_names}")
    if not len(table):
        raise ValueError(f"{folder} holds no rows")
    episode, step = (table[name].to_numpy() for name in ("episode_idx", "step_idx"))
    order = np.lexsort((step, episode))
    first = np.flatnonzero(np.diff(episode[order], prepend=-1))
    lengths = np.diff(first, append=len(order))
    if not np.array_equal(step[order], np.arange(len(order)) - np.repeat(first, lengths)):
        raise ValueError(f"{folder} lacks steps of some episodes: step_idx must count from 0 in each")
    tables: Columns = {}
    pictures: dict[str, Frames] = {}
    for name in table.column_names:
        column = table[name]
        if str(column[0]).endswith(FILES):
            pictures[name] = partial(_referred, folder, column.take(pyarrow.array(order)), first)
        elif name not in INDICES:
            tables[name] = _numbers(column)[order]
    return _dataset(folder, "Arrow tables beside videos or pictures", lengths, tables, pictures)


def _numbers(column: Any) -> NDArray[Any]:
    """A column (rows, ...) of numbers or of equally long lists of numbers."""
    from pyarrow import compute

    values, shape = column.combine_chunks(), [len(column)]
    while hasattr(values.type, "value_type"):
        lengths = compute.list_value_length(values).unique().to_pylist()
        if len(lengths) != 1 or lengths[0] is None:
            raise ValueError(f"a column of Arrow tables holds lists of different lengths {lengths}: {column.type}")
        values = values.flatten()
        shape.append(lengths[0])
    flat: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return flat.reshape(shape)


def _dataset(
    folder: Path, kind: str, lengths: NDArray[np.int64], tables: Columns, pictures: Mapping[str, Frames]
) -> EpisodeFolder:
    numbers = {name: table for name, table in tables.items() if table.dtype.kind in NUMBERS}
    if "action" not in numbers:
        raise ValueError(f"{folder} has no actions; it has {sorted({*tables, *pictures})}")
    if wrong := {name: table.shape for name, table in numbers.items() if table.shape[:1] != (lengths.sum(),)}:
        raise ValueError(f"{folder}: episodes have {lengths.sum()} steps in all, but columns have {wrong}")
    if len(pictures) == 1:  # whatever it is called, other commands look for pixels
        pictures = dict(zip(["pixels"], pictures.values(), strict=True))

    def episodes() -> Iterator[Columns]:
        ends = np.cumsum(lengths)
        for index, (end, length) in enumerate(zip(ends.tolist(), lengths.tolist(), strict=True)):
            rows = {name: table[end - length : end] for name, table in numbers.items()}
            yield {**rows, **{name: frames(index, length) for name, frames in pictures.items()}}

    left_out = sorted(tables.keys() - numbers.keys())
    return EpisodeFolder(kind, len(lengths), sorted({*numbers, *pictures}), left_out, episodes())


def _episode_video(place: Path, index: int, length: int) -> NDArray[np.uint8]:
    return _video(place / f"ep_{index}.mp4", length)


def _episode_pictures(place: Path, index: int, length: int) -> NDArray[np.uint8]:
    paths = [place / f"ep_{index}_step_{step}.jpeg" for step in range(length)]
    return _pictures([path if path.is_file() else path.with_suffix(".jpg") for path in paths])


def _referred(folder: Path, column: Any, first: NDArray[np.int64], index: int, length: int) -> NDArray[np.uint8]:
    """What the rows of an episode name: one video, or a picture each."""
    names = column.slice(int(first[index]), length).to_pylist()
    paths = [(folder / str(name)).resolve() for name in names]
    if outside := [name for name, path in zip(names, paths, strict=True) if not path.is_relative_to(folder.resolve())]:
        raise ValueError(f"{folder} refers to {outside[0]!r}, which is not in it")
    if paths[0].suffix == ".mp4":
        return _video(paths[0], length)
    return _pictures(paths)


def _video(path: Path, length: int) -> NDArray[np.uint8]:
    try:
        frames = read_video(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if len(frames) != length:
        raise ValueError(f"{path} has {len(frames)} frames, its episode {length} steps")
    return frames


def _pictures(paths: Sequence[Path]) -> NDArray[np.uint8]:
    pictures = [_picture(path) for path in paths]
    for path, picture in zip(paths, pictures, strict=True):
        if picture.shape != pictures[0].shape:
            raise ValueError(f"{path} is {picture.shape}, {paths[0]} {pictures[0].shape}; expected one size")
    return np.stack(pictures)


def _picture(path: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{path} is missing or no picture: {error}") from error
