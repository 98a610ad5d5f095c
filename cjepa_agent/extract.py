"""``python -m cjepa_agent.extract``: frozen slots of a dataset to disk, resumable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.data.clevrer_slots import ObservedScenes, encode, extract_scenes
from cjepa_agent.data.episodes import SPLITS, EpisodeFile
from cjepa_agent.data.slot_data import content
from cjepa_agent.data.video_slots import as_stored
from cjepa_agent.encoders.autoencoder import RECIPE, SlotAutoencoder
from cjepa_agent.encoders.base import CONFIG
from cjepa_agent.encoders.clevrer_state import SLOTS as CLEVRER_SLOTS
from cjepa_agent.encoders.kinds import EncoderConfig
from cjepa_agent.files import load_array, read_json, write_json
from cjepa_agent.paths import cache_folder
from cjepa_agent.tensors import require_device
from configs.command import command

STATE = Path("state")  # in place of the folder of a trained encoder


@dataclass(frozen=True)
class ExtractConfig:
    """Encode every frame of a dataset with a trained encoder.

    Attributes:
        data: episode file, HDF5; or folder of a CLEVRER data set, of which the 128 frames of each video are encoded.
        encoder: folder of a trained encoder; a checkpoint whose encoder is taken (folder, Hub id or bundled name:
            ``pusht`` or, for pictures of CLEVRER, ``clevrer``); or ``state``: slots from the true state by a fixed map,
            privileged, for debugging and upper bounds.
        out: folder for the slots; an unfinished extraction there is continued.
        episodes: how many episodes, from the first, or videos of each split; 0 for all.
        stride: encode only every ``stride``-th frame of an episode, from its first on. With the action block (5)
            training windows start at these frames only: a fifth of the time buys the same number of episodes.
        batch: frames per call of an encoder of single frames, videos of CLEVRER per call of one that carries slots
            through them.
        splits: of a CLEVRER data set, whose videos are encoded.
        device: ``cpu`` or ``cuda``.

    Raises:
        ValueError: a number is out of range.
    """

    data: Path = field(default_factory=lambda: cache_folder() / "pusht.h5")
    encoder: Path = field(default_factory=lambda: cache_folder() / "encoder")
    out: Path = field(default_factory=lambda: cache_folder() / "pusht_slots")
    episodes: int = 0
    stride: int = 1
    batch: int = 16
    splits: tuple[str, ...] = SPLITS
    device: str = "cpu"

    def __post_init__(self) -> None:
        if min(self.stride, self.batch) < 1 or self.episodes < 0:
            raise ValueError(f"stride and batch must be at least 1 and episodes 0 or more, got {self}")


def extract(config: ExtractConfig) -> None:
    """Encode episodes one after another; ``slots.json`` counts the finished ones."""
    require_device(config.device)
    if not config.data.is_dir():
        if config.splits != SPLITS:
            raise ValueError(f"splits chooses videos of a CLEVRER data set, and {config.data} is none")
        with encoder_folder(config.encoder, EncoderConfig(kind="state")) as folder:
            _extract(config, folder)
        return
    if config.stride != 1:
        raise ValueError(f"all frames of a video are encoded; got stride={config.stride}")
    with encoder_folder(config.encoder, EncoderConfig(kind="clevrer_state", n_slots=CLEVRER_SLOTS)) as folder:
        autoencoder = SlotAutoencoder.load(folder)
        source = ObservedScenes(config.data, autoencoder.encoder.observes, config.episodes, config.splits)
        extract_scenes(source, autoencoder.to(config.device), config.out, config.batch)
        autoencoder.copy(folder, config.out)


@contextmanager
def encoder_folder(encoder: Path, state: EncoderConfig) -> Iterator[Path]:
    """The folder of ``encoder``, which is made for a checkpoint or ``state`` and lasts as long as the context."""
    if (encoder / CONFIG).is_file():
        if not (encoder / RECIPE).is_file():
            raise FileNotFoundError(f"{encoder} has no {RECIPE}, which tells how the encoder was made; copy it there")
        yield encoder
        return
    with TemporaryDirectory() as name:
        folder = Path(name)
        if encoder == STATE:
            SlotAutoencoder(state).save(folder)
            write_json(folder / RECIPE, {"privileged": "slots from the true state by a fixed map"})
        else:
            try:
                autoencoder, recipe = load_encoder(encoder)
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"no encoder: {error}; train one with `python -m cjepa_agent.train stage=encoder trainer=encoder`, "
                    f"or take a bundled one with encoder=pusht or encoder=clevrer"
                ) from error
            autoencoder.save(folder)
            write_json(folder / RECIPE, recipe)
        yield folder


def load_encoder(encoder: Path) -> tuple[SlotAutoencoder, Any]:
    """The encoder in a folder of its own or in a checkpoint, and its recipe; raises as these do."""
    if (encoder / CONFIG).is_file():
        return SlotAutoencoder.load(encoder), read_json(encoder / RECIPE)
    checkpoint = Checkpoint.from_pretrained(str(encoder))
    return SlotAutoencoder.of(checkpoint.model), checkpoint.training.get("encoder", {})


def _extract(config: ExtractConfig, folder: Path) -> None:
    data = EpisodeFile(config.data)
    autoencoder = SlotAutoencoder.load(folder)
    wanted = config.episodes or len(data)
    if wanted > len(data):
        raise ValueError(f"episodes={config.episodes}, but {config.data} has {len(data)}")
    if autoencoder.encoder.observes not in data.columns:
        raise ValueError(
            f"{config.data} has no column {autoencoder.encoder.observes!r}, which encoder={config.encoder} reads, only "
            f"{sorted(data.columns)}"
        )
    autoencoder.to(config.device)
    config.out.mkdir(parents=True, exist_ok=True)
    meta_path = config.out / "slots.json"
    rows = int(data.lengths.sum())
    identity = {
        "dataset": config.data.name,
        "frames": rows,
        "content": content(*(torch.from_numpy(data.read_all(name)) for name in ("action", "proprio"))),
        "encoder": autoencoder.digest(),
        "stride": config.stride,
    }
    done = 0
    if meta_path.is_file():
        meta = read_json(meta_path)
        if not isinstance(meta, dict):
            raise ValueError(f"{meta_path} does not tell what the slots are of; delete its folder and make it again")
        found = {"content": identity["content"], **meta}  # older folders have none
        if {key: found.get(key) for key in identity} != identity or "episodes" not in found:
            raise ValueError(f"{config.out} holds slots of another dataset or encoder ({meta}); choose another out=")
        done = int(meta["episodes"])
    autoencoder.copy(folder, config.out)
    shape = (rows, autoencoder.config.n_slots, autoencoder.config.slot_dim)
    path = config.out / "slots.npy"
    # Opened to be written, a truncated array would be filled up with zeros.
    if done and ((there := load_array(path)).shape, there.dtype) != (shape, np.float16):
        raise ValueError(
            f"{path} is {there.dtype} {there.shape}, expected float16 {shape}; delete its folder and make it again"
        )
    slots = np.lib.format.open_memmap(path, mode="r+" if done else "w+", dtype=np.float16, shape=shape)
    for episode in tqdm(range(done, wanted), initial=done, total=wanted, unit="episode", mininterval=2.0):
        start, length = int(data.offsets[episode]), int(data.lengths[episode])
        observed = data.read(autoencoder.encoder.observes, episode)[:: config.stride]
        made = encode(autoencoder.encoder, observed, config.batch)
        stored = as_stored(made, (len(observed), *shape[1:]), slots.dtype, f"episode {episode}")
        slots[start : start + length : config.stride] = stored
        if (episode + 1) % 100 == 0 or episode + 1 == wanted:
            slots.flush()
            write_json(meta_path, {**identity, "episodes": episode + 1})


main = command("extract", ExtractConfig, extract)

if __name__ == "__main__":
    main()
