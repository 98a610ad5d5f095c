"""The authors' pickles of slots, rollouts and rows of numbers, ``{split: {"0_pixels.mp4": array}}``, and slots back."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cjepa_agent.data.episodes import SPLITS, EpisodeFile, write_episodes
from cjepa_agent.data.slot_data import SlotData
from cjepa_agent.data.video_slots import VideoSlots, as_stored
from cjepa_agent.encoders.autoencoder import RECIPE, SlotAutoencoder
from cjepa_agent.encoders.given_slots import GivenSlotsConfig
from cjepa_agent.extract import load_encoder
from cjepa_agent.files import load_array, new_folder, read_json, write_json
from cjepa_agent.interop.pickles import read_pickle
from envs.clevrer.dataset import FIRST, SCENES, split_of
from envs.clevrer.physics import VISIBLE_FRAMES
from envs.files import atomic

PROTOCOL = 4  # what Python 3.8 to 3.13 write
KEY = re.compile(r"(?:video_\d+|\d+_pixels)\.mp4")
NAMES = {"video": "video_{:05d}.mp4", "pixels": "{}_pixels.mp4"}
FOREIGN_SPLITS = ("train", "val", "test")  # what the authors call SPLITS
PART = dict(zip(FIRST, FOREIGN_SPLITS, strict=True))
META = ("action", "proprio", "state")  # columns of pusht_expert_<column>_meta.pkl
Arrays = Mapping[str, Mapping[str, NDArray[Any]]]
Video = tuple[str, str, int]  # split, key, frames


def as_arrays(value: Any) -> Arrays | None:
    """``value`` if it has the form ``{split: {key: array}}``, else None."""
    if not isinstance(value, dict) or not value or not all(isinstance(part, dict) for part in value.values()):
        return None
    leaves = [leaf for part in value.values() for leaf in part.values()]
    return value if leaves and all(isinstance(leaf, np.ndarray) for leaf in leaves) else None


def _videos(arrays: Arrays, path: Path) -> list[tuple[str, str]]:
    """(split, key) of all videos, split by split in the order of their numbers."""
    unknown = sorted(set(arrays) - set(FOREIGN_SPLITS))
    if unknown:
        raise ValueError(f"{path} has the parts {unknown}; expected some of {list(FOREIGN_SPLITS)}")
    videos = []
    for name in FOREIGN_SPLITS:
        keys = arrays.get(name, {})
        if wrong := [key for key in keys if not KEY.fullmatch(str(key))]:
            raise ValueError(f"{path} has the key {wrong[0]!r}; expected '0_pixels.mp4' or 'video_00000.mp4'")
        videos += [(name, key) for key in sorted(keys, key=_number)]
    return videos


def slots_from_pickle(arrays: Arrays, source: Path, out: Path, encoder: str) -> str:
    """Slots of videos as a slots folder, and what to say of it; ``encoder``, if there is one, is kept beside them."""
    videos = [(part, key, len(arrays[part][key])) for part, key in _videos(arrays, source)]
    sizes, lengths = {arrays[part][key].shape[1:] for part, key, _ in videos}, {length for *_, length in videos}
    if len(sizes) != 1:
        raise ValueError(f"{source} holds slots of different shapes {sorted(sizes)}; expected one number and width")
    if 0 in lengths:
        raise ValueError(f"{source} must hold frames of each video, got videos without frames")
    types = {arrays[part][key].dtype for part, key, _ in videos}
    if wrong := sorted(str(dtype) for dtype in types if dtype.kind != "f"):
        raise ValueError(f"{source} holds slots of type {wrong}; expected floating-point numbers")
    size = n_slots, slot_dim = sizes.pop()
    frames = videos[0][2]
    autoencoder, recipe = SlotAutoencoder(GivenSlotsConfig(n_slots, slot_dim)).eval(), {"slots": source.name}
    if encoder:
        autoencoder, recipe = load_encoder(Path(encoder))
    if (autoencoder.config.n_slots, autoencoder.config.slot_dim) != size:
        raise ValueError(f"{source} holds slots {size}, the encoder {encoder} makes other ones")

    def blocks() -> Iterator[NDArray[Any]]:
        for part, key, length in videos:
            name = f"{key} in {part} of {source}"
            yield as_stored(arrays[part][key], (length, *size), np.dtype(np.float32), name)

    scenes = _clevrer_scenes(videos) if len(lengths) == 1 else None
    with new_folder(out) as folder:
        if scenes is None:
            _write_rows(folder, source, videos, size, blocks())
        else:
            naming = "video" if videos[0][1].startswith("video") else "pixels"
            made_by = autoencoder.digest() if encoder else source.name
            identity: dict[str, Any] = {"dataset": source.name, "encoder": made_by, "names": naming}
            identity["content"] = _sha256(blocks())  # other pickles may have this name, too
            if frames > VISIBLE_FRAMES:
                identity = {"slots": identity, "observed": VISIBLE_FRAMES, "checkpoint": source.name}
            tensors = map(torch.from_numpy, blocks())
            VideoSlots.write(folder, identity, scenes, (frames, n_slots, slot_dim), tensors, len(scenes), np.float32)
        autoencoder.save(folder)
        write_json(folder / RECIPE, recipe)
    kind = "videos" if scenes is None else f"CLEVRER videos of {frames} frames"
    missing = "" if encoder else ", without an encoder"
    return f"{source}: slots of {len(videos)} {kind}, {n_slots} x {slot_dim}\nwritten: {out} (slots folder{missing})"


def _sha256(blocks: Iterable[NDArray[Any]]) -> str:
    found = hashlib.sha256()
    for block in blocks:
        found.update(block.tobytes())
    return found.hexdigest()


def _write_rows(
    folder: Path, source: Path, videos: list[Video], size: tuple[int, ...], blocks: Iterator[NDArray[Any]]
) -> None:
    """Slots of episodes of any length, one after another."""
    rows = sum(length for *_, length in videos)
    slots = np.lib.format.open_memmap(folder / "slots.npy", mode="w+", dtype=np.float32, shape=(rows, *size))
    row = 0
    for block in blocks:
        slots[row : row + len(block)] = block
        row += len(block)
    slots.flush()
    meta = {"dataset": source.name, "frames": rows, "stride": 1, "episodes": len(videos), "videos": videos}
    write_json(folder / "slots.json", meta)


def _clevrer_scenes(videos: list[Video]) -> list[int] | None:
    """The scene of each video, if all are numbered as in CLEVRER, where the number tells the split."""
    scenes = [_number(key) for _, key, _ in videos]
    fits = all(
        scene < SCENES and part == PART[split_of(scene)] for (part, *_), scene in zip(videos, scenes, strict=True)
    )
    return scenes if fits and len(set(scenes)) == len(scenes) else None


def _number(key: str) -> int:
    return int(re.findall(r"\d+", key)[0])


def slots_to_pickle(source: Path, out: Path, data: str) -> str:
    """A slots folder as the authors' pickle, and what to say of it; ``data`` is its episode file, if it names none."""
    meta = read_json(source / "slots.json")
    if "scenes" in meta:
        slots, videos = _rows_of_videos(VideoSlots(source))
    else:
        slots = load_array(source / "slots.npy")
        videos = meta.get("videos") or _videos_of(data, source)
        if int(meta["stride"]) != 1:
            raise ValueError(f"{source} has slots of every {meta['stride']}th frame only; the pickle has those of all")
    ends = np.cumsum([length for _, _, length in videos])
    if len(ends) == 0 or ends[-1] > len(slots):
        raise ValueError(f"{source} holds slots of {len(slots)} frames, its videos have {ends[-1:].tolist()}")

    def items(part: str) -> Iterator[tuple[str, NDArray[np.float32]]]:
        for (name, key, length), end in zip(videos, ends, strict=True):
            if name == part:
                yield key, np.array(slots[end - length : end], dtype=np.float32)

    present = [part for part in FOREIGN_SPLITS if any(name == part for name, _, _ in videos)]
    write_pickle(out, {part: items(part) for part in present})
    return f"{source}: slots of {len(videos)} videos\nwritten: {out} (pickle of {', '.join(present)})"


def _rows_of_videos(slots: VideoSlots) -> tuple[NDArray[Any], list[Video]]:
    """Slots of CLEVRER videos one after another, and the videos; keys are as they once came."""
    origin: Mapping[str, Any] = slots.identity
    while "slots" in origin:  # a rollout tells what it continues
        origin = origin["slots"]
    key = NAMES[origin.get("names", "pixels")]
    videos = [(PART[split_of(scene)], key.format(scene), slots.frames) for scene in slots.scenes]
    return slots.array.reshape(-1, *slots.array.shape[2:]), videos


def _videos_of(data: str, source: Path) -> list[Video]:
    """The episodes of a file that a folder has slots of; keys are counted anew in each split, as in Push-T's."""
    if not data:
        raise ValueError(f"{source} does not name its videos; give the episode file it was extracted from with data=")
    stored = SlotData(EpisodeFile(data), source)
    episodes, count = stored.episodes, int(stored.meta["episodes"])
    seen = [0] * len(SPLITS)
    videos: list[Video] = []
    for part, length in zip(episodes.split[:count].tolist(), episodes.lengths[:count].tolist(), strict=True):
        videos.append((FOREIGN_SPLITS[part], NAMES["pixels"].format(seen[part]), length))
        seen[part] += 1
    return videos


def episodes_from_meta(source: Path, out: Path) -> str:
    """``pusht_expert_*_meta.pkl`` that lie side by side, as one episode file in the order of converted slots."""
    match = re.fullmatch(r"(.*)_(action|proprio|state)_meta\.pkl", source.name)
    if match is None:
        raise ValueError(f"{source} holds rows of numbers; expected the name <dataset>_(action|proprio|state)_meta.pkl")
    paths = {column: source.with_name(f"{match[1]}_{column}_meta.pkl") for column in META}
    missing = [path.name for column, path in paths.items() if column != "state" and not path.is_file()]
    if missing:
        raise FileNotFoundError(f"beside {source} there must be {missing}")
    columns = {column: as_arrays(read_pickle(path)) for column, path in paths.items() if path.is_file()}
    tables = {column: table for column, table in columns.items() if table is not None}
    if len(tables) < len(columns):
        raise ValueError(f"{sorted(set(columns) - set(tables))} beside {source} are not {{split: {{key: array}}}}")
    videos = _videos(tables["action"], source)
    for column, table in tables.items():
        if sorted(videos) != sorted(_videos(table, paths[column])):
            raise ValueError(f"{paths[column]} has other videos than {paths['action']}")

    def episodes() -> Iterator[dict[str, NDArray[Any]]]:
        for part, key in videos:
            rows = {column: np.asarray(table[part][key]) for column, table in tables.items()}
            yield {**rows, "split": np.full(len(rows["action"]), FOREIGN_SPLITS.index(part), np.int8)}

    with new_folder(out) as folder:
        write_episodes(folder / "episodes.h5", episodes(), {"source": source.name})
    return f"{source}: {', '.join(tables)} of {len(videos)} episodes\nwritten: {out / 'episodes.h5'}"


@dataclass(frozen=True)
class _Streamed:
    """Pickles as a dict whose items are made one after another."""

    items: Iterable[tuple[str, Any]]

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (), None, None, iter(self.items)


def write_pickle(path: Path, splits: Mapping[str, Iterable[tuple[str, NDArray[Any]]]]) -> None:
    """Write ``{split: {key: array}}`` for ``pickle.load``; one array at a time is in memory.

    The file appears only when it is complete.
    """
    with atomic(path) as temporary, temporary.open("wb") as file:
        pickler = pickle.Pickler(file, PROTOCOL)
        pickler.fast = True  # or it would remember, and so keep, every array
        pickler.dump(_Streamed((split, _Streamed(items)) for split, items in splits.items()))
