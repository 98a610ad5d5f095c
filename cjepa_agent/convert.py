"""``python -m cjepa_agent.convert SOURCE OUT``: the authors' files to those of this package, and slots back."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from cjepa_agent.authors import Part, released_predictor, slot_autoencoder, split
from cjepa_agent.autoencoder import RECIPE, SlotAutoencoder
from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.data import SPLITS, EpisodeFile, write_episodes
from cjepa_agent.files import new_folder, read_json, write_json
from cjepa_agent.pickles import read_pickle, write_pickle
from cjepa_agent.released_predictor import ReleasedPredictor
from cjepa_agent.state_dicts import Weights, weights_of
from cjepa_agent.world_model import WorldModel, WorldModelConfig
from configs.command import command
from planners import ActionPrior

KEY = re.compile(r"(?:video_(\d+)|(\d+)_pixels)\.mp4")
FOREIGN_SPLITS = ("train", "val", "test")  # what the authors call SPLITS
META = ("action", "proprio", "state")  # columns of pusht_expert_<column>_meta.pkl
# Mean and deviation of DINO-WM's Push-T training set (datasets/pusht_dset.py), which pusht_expert_train is.
ACTION_MEAN, ACTION_STD = (-0.0087, 0.0068), (0.2019, 0.2002)
PROPRIO_MEAN = (236.6155, 264.5674, -2.93032027, 2.54307914)
PROPRIO_STD = (101.1202, 87.0112, 74.84556075, 74.14009094)
ACTION_WIDTH = 2
Arrays = Mapping[str, Mapping[str, NDArray[Any]]]


@dataclass(frozen=True)
class ConvertConfig:
    """Reads a file of C-JEPA's authors, of VideoSAUR or StoSAVi, says what it is, and writes it as a folder.

    SOURCE may be: weights (a state dict, a checkpoint with ``state_dict``, a Lightning checkpoint or a pickled module)
    of a C-JEPA predictor, of VideoSAUR, of StoSAVi or of a whole Push-T world model; slots or rollouts
    ``{split: {"0_pixels.mp4" or "video_00000.mp4": (T, S, D)}}``; ``pusht_expert_*_meta.pkl``; or a slots folder of
    this package, which is written back as such a pickle. No code in any file is executed.

    Attributes:
        source: file, or slots folder; the first word without a key.
        out: folder to write, which must not exist yet (a .pkl file for a slots folder); the second word.
        encoder: folder of a converted encoder: with a predictor it makes a whole checkpoint, with slots it is kept
            beside them for training.
        data: episode file (HDF5) that normalisation of a checkpoint is fitted on (else it is DINO-WM's published one),
            or that a slots folder without video names belongs to.
        n_slots: object slots; 0 where the file tells, or 4 for a predictor with action nodes and 7 for one without.
        heads: attention heads of a predictor, which its weights do not tell.
        history: frames of history of a predictor; 0 where the rows of its time embedding tell (4: 3 + 1, 16: 6 + 10).
    """

    source: str = ""
    out: str = ""
    encoder: str = ""
    data: str = ""
    n_slots: int = 0
    heads: int = 16
    history: int = 0


def convert(config: ConvertConfig) -> str:
    """Convert and say what was found and written.

    Raises:
        FileNotFoundError: no such source.
        FileExistsError: something is at ``out`` already.
        ValueError: the source is truncated, malicious, of an unknown kind or not of the expected sizes.
    """
    if not config.source or not config.out:
        raise ValueError("give what to convert and where to: python -m cjepa_agent.convert SOURCE OUT")
    source, out = Path(config.source).expanduser(), Path(config.out).expanduser()
    if out.exists():
        raise FileExistsError(f"{out} exists already; choose another place or delete it")
    if (source / "slots.json").is_file():
        return _slots_to_pickle(source, out, config.data)
    if source.is_dir():
        raise ValueError(
            f"{source} is a folder without slots.json; expected a file, or a slots folder. Datasets of "
            f"stable-worldmodel in Arrow and videos: export them as HDF5 there, which all commands read with data="
        )
    if source.is_file() and h5py.is_hdf5(source):
        episodes = EpisodeFile(source)
        return (
            f"{source}: a dataset of {len(episodes)} episodes that all commands read with data={source}; nothing to do"
        )
    value = read_pickle(source, objects=True)
    arrays = _as_arrays(value)
    if arrays is None:
        return _weights(weights_of(value, source), source, out, config)
    dimensions = {array.ndim for part in arrays.values() for array in part.values()}
    if dimensions == {3}:
        return _slots_from_pickle(arrays, source, out, config)
    if dimensions == {2}:
        return _episodes_from_meta(source, out)
    raise ValueError(
        f"{source} holds arrays of {sorted(dimensions)} dimensions; expected slots (T, S, D) or rows (T, width)"
    )


def _as_arrays(value: Any) -> Arrays | None:
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
        numbers = {}
        for key in arrays.get(name, {}):
            match = KEY.fullmatch(str(key))
            if match is None:
                raise ValueError(f"{path} has the key {key!r}; expected '0_pixels.mp4' or 'video_00000.mp4'")
            numbers[key] = int(match[1] or match[2])
        videos += [(name, key) for key in sorted(numbers, key=numbers.__getitem__)]
    return videos


def _slots_from_pickle(arrays: Arrays, source: Path, out: Path, config: ConvertConfig) -> str:
    videos = _videos(arrays, source)
    shapes = {arrays[part][key].shape[1:] for part, key in videos}
    if len(shapes) != 1:
        raise ValueError(f"{source} holds slots of different shapes {sorted(shapes)}; expected one number and width")
    lengths = [len(arrays[part][key]) for part, key in videos]
    shape = (sum(lengths), *shapes.pop())
    encoder = SlotAutoencoder.load(Path(config.encoder)) if config.encoder else None
    if encoder is not None and (encoder.config.n_slots, encoder.config.slot_dim) != shape[1:]:
        raise ValueError(f"{source} holds slots {shape[1:]}, the encoder {config.encoder} makes other ones")
    with new_folder(out) as folder:
        slots = np.lib.format.open_memmap(folder / "slots.npy", mode="w+", dtype=np.float32, shape=shape)
        row = 0
        for (part, key), length in zip(videos, lengths, strict=True):
            block = arrays[part][key]
            if not np.isfinite(block).all():
                raise ValueError(f"{source}: the slots of {key} in {part} have NaN or infinite values")
            slots[row : row + length] = block
            row += length
        slots.flush()
        names = [[part, key, length] for (part, key), length in zip(videos, lengths, strict=True)]
        meta = {"dataset": source.name, "frames": row, "encoder": config.encoder and "converted", "stride": 1}
        write_json(folder / "slots.json", {**meta, "episodes": len(videos), "videos": names})
        if encoder is not None:
            encoder.save(folder)
            write_json(folder / RECIPE, read_json(Path(config.encoder) / RECIPE))
    return f"{source}: slots of {len(videos)} videos, {shape[1]} x {shape[2]}\nwritten: {out} (slots folder)"


def _slots_to_pickle(source: Path, out: Path, data: str) -> str:
    meta = read_json(source / "slots.json")
    if int(meta["stride"]) != 1:
        raise ValueError(f"{source} has slots of every {meta['stride']}th frame only; the pickle has those of all")
    slots = np.load(source / "slots.npy", mmap_mode="r")
    videos = meta.get("videos") or _videos_of(data, int(meta["episodes"]), source)
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


def _videos_of(data: str, count: int, source: Path) -> list[list[Any]]:
    """[split, key, frames] of the first episodes of a file; keys are counted anew in each split, as in Push-T's."""
    if not data:
        raise ValueError(f"{source} does not name its videos; give the episode file it was extracted from with data=")
    episodes = EpisodeFile(data)
    seen = [0] * len(SPLITS)
    videos: list[list[Any]] = []
    for part, length in zip(episodes.split[:count].tolist(), episodes.lengths[:count].tolist(), strict=True):
        videos.append([FOREIGN_SPLITS[part], f"{seen[part]}_pixels.mp4", length])
        seen[part] += 1
    return videos


def _episodes_from_meta(source: Path, out: Path) -> str:
    """``pusht_expert_*_meta.pkl`` that lie side by side, as one episode file in the order of converted slots."""
    match = re.fullmatch(r"(.*)_(action|proprio|state)_meta\.pkl", source.name)
    if match is None:
        raise ValueError(f"{source} holds rows of numbers; expected the name <dataset>_(action|proprio|state)_meta.pkl")
    paths = {column: source.with_name(f"{match[1]}_{column}_meta.pkl") for column in META}
    missing = [path.name for column, path in paths.items() if column != "state" and not path.is_file()]
    if missing:
        raise FileNotFoundError(f"beside {source} there must be {missing}")
    columns = {column: _as_arrays(read_pickle(path)) for column, path in paths.items() if path.is_file()}
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


def _weights(weights: Weights, source: Path, out: Path, config: ConvertConfig) -> str:
    parts = split(source, weights.tensors)
    found = f"{source}: {weights.wrapping} with {' and '.join(parts)}"
    recipe = {"source": source.name, "wrapping": weights.wrapping}
    encoder = _encoder(parts, config, recipe)
    if "predictor" not in parts:
        if encoder is None:
            raise ValueError(f"{source} holds nothing to convert")
        with new_folder(out) as folder:
            encoder.save(folder)
            write_json(folder / RECIPE, recipe)
        return f"{found}\nwritten: {out} (encoder folder, for extract encoder={out})"
    n_slots = config.n_slots or (encoder.config.n_slots if encoder else _usual_slots(parts["predictor"]))
    predictor = released_predictor(parts["predictor"], n_slots, config.heads, config.history or None)
    if encoder is not None and predictor.nodes:
        checkpoint = _checkpoint(predictor, encoder, config.data, recipe)
        with new_folder(out) as folder:
            checkpoint.save_pretrained(folder)
        return f"{found}\nwritten: {out} (checkpoint folder, for evaluate weights={out})"
    with new_folder(out) as folder:
        predictor.save(folder, recipe)
    advice = "; with encoder= it becomes a whole checkpoint" if predictor.nodes else ""
    return f"{found}\nwritten: {out} (predictor folder, for ReleasedPredictor.load{advice})"


def _usual_slots(part: Part) -> int:
    return 4 if "action_encoder.weight" in part.tensors else 7


def _encoder(parts: Mapping[str, Part], config: ConvertConfig, recipe: dict[str, Any]) -> SlotAutoencoder | None:
    """The encoder in the file, or that of ``encoder=``."""
    for kind in ("videosaur", "stosavi"):
        if kind in parts:
            n_slots = config.n_slots or (_usual_slots(parts["predictor"]) if "predictor" in parts else None)
            encoder, has_decoder = slot_autoencoder(kind, parts[kind], n_slots)
            if not has_decoder:
                recipe["decoder"] = "random, since the file has none: drawings of slots mean nothing"
            return encoder
    return SlotAutoencoder.load(Path(config.encoder)) if config.encoder else None


def _checkpoint(
    predictor: ReleasedPredictor, encoder: SlotAutoencoder, data: str, recipe: dict[str, Any]
) -> Checkpoint:
    """A whole Push-T world model of the authors' networks."""
    if encoder.config.n_slots != predictor.n_slots or encoder.config.slot_dim != predictor.config.width:
        raise ValueError(
            f"the encoder makes {encoder.config.n_slots} slots of {encoder.config.slot_dim} numbers, the predictor "
            f"takes {predictor.n_slots} of {predictor.config.width}"
        )
    if predictor.action_dim % ACTION_WIDTH or predictor.proprio_dim != len(PROPRIO_MEAN):
        raise ValueError(
            f"the predictor takes blocks of {predictor.action_dim} and proprioception of {predictor.proprio_dim} "
            f"numbers; expected a multiple of {ACTION_WIDTH} and {len(PROPRIO_MEAN)}, as of Push-T"
        )
    block = predictor.action_dim // ACTION_WIDTH
    model = WorldModel(
        WorldModelConfig(encoder.config, predictor.config, predictor.proprio_dim, ACTION_WIDTH, block)
    ).eval()
    model.encoder.load_state_dict(encoder.encoder.state_dict())
    model.decoder.load_state_dict(encoder.decoder.state_dict())
    model.predictor.load_state_dict(predictor.state_dict())
    action, proprio = _normalisation(data)
    recipe["normalisation"] = Path(data).name if data else "DINO-WM's published means and deviations"
    mean, std = (torch.tensor(values, dtype=torch.float32).repeat(block) for values in action)
    for buffer, values in (("action_mean", mean), ("action_std", std)):
        getattr(model.processor, buffer).copy_(values)
    for buffer, values in zip(("proprio_mean", "proprio_std"), proprio, strict=True):
        getattr(model.processor, buffer).copy_(torch.tensor(values, dtype=torch.float32))
    # The authors' search is not bounded; the environment is, at five deviations from the mean.
    bound = torch.ones(predictor.action_dim)
    return Checkpoint(model, ActionPrior.standard(-bound, bound, mean=mean, std=std), recipe)


def _normalisation(data: str) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """(mean, deviation) of actions and of proprioception; those of ``data`` over all rows, as the authors have them."""
    if not data:
        return (ACTION_MEAN, ACTION_STD), (PROPRIO_MEAN, PROPRIO_STD)
    episodes = EpisodeFile(data)
    action, proprio = (episodes.read_all(column).astype(np.float64) for column in ("action", "proprio"))
    return (action.mean(0), action.std(0)), (proprio.mean(0), proprio.std(0))


def _convert(config: ConvertConfig) -> None:
    print(convert(config))


run = command("convert", ConvertConfig, _convert)


def main() -> None:
    """The command; its first two words without a key are SOURCE and OUT."""
    words = [word for word in sys.argv[1:] if not word.startswith("-") and "=" not in word]
    rest = [word for word in sys.argv[1:] if word not in words]
    # Either may be given by its key, so that there are fewer words than names. As JSON strings, because Hydra gives a
    # meaning to many characters that paths have.
    keys = ("source", "out")[: len(words)]
    named = [f"{key}={json.dumps(word)}" for key, word in zip(keys, words[:2], strict=True)]
    sys.argv = [sys.argv[0], *named, *words[2:], *rest]
    run()


if __name__ == "__main__":
    main()
