"""``python -m cjepa_agent.extract``: frozen slots of a dataset to disk, resumable."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from cjepa_agent.autoencoder import CONFIG, RECIPE, WEIGHTS, SlotAutoencoder
from cjepa_agent.data import EpisodeFile
from cjepa_agent.encoder import SlotEncoder
from cjepa_agent.files import read_json, write_json
from cjepa_agent.paths import cache_folder
from cjepa_agent.world_model import prepare_frames
from configs.command import command


@dataclass(frozen=True)
class ExtractConfig:
    """Encode every frame of a dataset with a trained encoder.

    Attributes:
        data: episode file, HDF5.
        encoder: folder of a trained encoder.
        out: folder for the slots; an unfinished extraction there is continued.
        episodes: how many episodes, from the first; 0 for all.
        stride: encode only every ``stride``-th frame of an episode, from its first on. With the action block (5)
            training windows start at these frames only: a fifth of the time buys the same number of episodes.
        batch: frames per call.
    """

    data: Path = field(default_factory=lambda: cache_folder() / "pusht.h5")
    encoder: Path = field(default_factory=lambda: cache_folder() / "encoder")
    out: Path = field(default_factory=lambda: cache_folder() / "pusht_slots")
    episodes: int = 0
    stride: int = 1
    batch: int = 16


def extract(config: ExtractConfig) -> None:
    """Encode episodes one after another; ``slots.json`` counts the finished ones."""
    data = EpisodeFile(config.data)
    autoencoder = SlotAutoencoder.load(config.encoder)
    wanted = config.episodes or len(data)
    if not 0 < wanted <= len(data):
        raise ValueError(f"episodes={config.episodes}, but {config.data} has {len(data)}")
    if config.stride < 1:
        raise ValueError(f"stride must be at least 1, got {config.stride}")
    config.out.mkdir(parents=True, exist_ok=True)
    meta_path = config.out / "slots.json"
    rows = int(data.lengths.sum())
    identity = {
        "dataset": config.data.name,
        "frames": rows,
        "encoder": _digest(config.encoder),
        "stride": config.stride,
    }
    done = 0
    if meta_path.is_file():
        meta = read_json(meta_path)
        if {key: meta.get(key) for key in identity} != identity:
            raise ValueError(f"{config.out} holds slots of another dataset or encoder ({meta}); choose another out=")
        done = int(meta["episodes"])
    for name in (CONFIG, WEIGHTS, RECIPE):
        shutil.copyfile(config.encoder / name, config.out / name)
    shape = (rows, autoencoder.config.n_slots, autoencoder.config.slot_dim)
    mode = "r+" if done else "w+"
    slots = np.lib.format.open_memmap(config.out / "slots.npy", mode=mode, dtype=np.float16, shape=shape)
    for episode in tqdm(range(done, wanted), initial=done, total=wanted, unit="episode", mininterval=2.0):
        start, length = int(data.offsets[episode]), int(data.lengths[episode])
        frames = data.read("pixels", episode)[:: config.stride]
        slots[start : start + length : config.stride] = encode(autoencoder.encoder, frames, config.batch)
        if (episode + 1) % 100 == 0 or episode + 1 == wanted:
            slots.flush()
            write_json(meta_path, {**identity, "episodes": episode + 1})


@torch.no_grad()
def encode(encoder: SlotEncoder, frames: NDArray[np.uint8], batch: int) -> NDArray[np.float32]:
    """Raw slots (M, S, D) float32 of frames (M, H, W, 3) uint8."""
    pixels = prepare_frames(torch.from_numpy(frames), encoder.image_size)
    slots: NDArray[np.float32] = torch.cat([encoder(part).slots for part in pixels.split(batch)]).numpy()
    return slots


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


main = command("extract", ExtractConfig, extract)

if __name__ == "__main__":
    main()
