"""Slots of the scenes of a CLEVRER data set, as ``python -m cjepa_agent.extract`` writes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from cjepa_agent.data.episodes import CLEVRER_FRAMES, SPLITS, EpisodeFile, require_splits
from cjepa_agent.data.video_slots import VideoSlots
from cjepa_agent.encoders.autoencoder import SlotAutoencoder
from cjepa_agent.encoders.base import VideoEncoder
from cjepa_agent.encoders.clevrer_state import scene_states
from cjepa_agent.encoders.kinds import Encoder
from cjepa_agent.files import read_json, write_json
from envs.clevrer.dataset import Dataset
from envs.clevrer.physics import VISIBLE_FRAMES

RECORD = "scenes.json"  # which scenes can be read, so that a continued run need not try again


class ObservedScenes:
    """What an encoder observes of the scenes of a data set: their true states, or their pictures.

    Pictures are those of ``frames.h5``, on which encoders are trained, if the data set has it, else those of the
    videos, which have lost a little.

    Args:
        folder: the data set.
        observes: of the encoder, ``state`` or ``pixels``.
        limit: scenes of each split, from the first; 0 for all.
        splits: whose scenes they are.

    Attributes:
        scenes: indices of those that have a file, readable or not, ascending.

    Raises:
        FileNotFoundError: no data set there.
        ValueError: it has nothing of the kind, or there is no such split.
    """

    def __init__(self, folder: Path, observes: str, limit: int, splits: Sequence[str] = SPLITS) -> None:
        require_splits(splits)
        self.dataset = Dataset(folder)
        self.kind = "annotation" if observes == "state" else "video"
        chosen = [split for split in SPLITS if split in splits]
        self.scenes = [scene for split in chosen for scene in self.dataset.scenes(self.kind, split)[: limit or None]]
        if not self.scenes:
            raise ValueError(f"{folder} has no {self.kind} of any scene of {chosen}, which this encoder observes")
        frames = folder / CLEVRER_FRAMES
        self._frames = EpisodeFile(frames) if self.kind == "video" and frames.is_file() else None
        self._episodes: dict[int, int] = {}
        if self._frames:
            indices = self._frames.read_all("scene")[self._frames.offsets]
            self._episodes = {int(scene): episode for episode, scene in enumerate(indices)}

    def read(self, scene: int, start: int = 0, stop: int = VISIBLE_FRAMES) -> NDArray[Any]:
        """States (frames, 6, 7) float32 or pictures (frames, H, W, 3) uint8 of the frames ``start:stop``, of 128.

        Raises:
            OSError: the scene's file is missing or broken.
            ValueError: likewise.
        """
        if self.kind == "annotation":
            return scene_states(self.dataset.trajectory(scene), VISIBLE_FRAMES)[start:stop]
        if self._frames and scene in self._episodes:
            return self._frames.read("pixels", self._episodes[scene], start, stop)
        return self.dataset.video(scene)[start:stop]

    def digest(self) -> str:
        """SHA-256 of names and sizes of the files that are read."""
        paths = [self.dataset.path(self.kind, scene) for scene in self.scenes]
        paths += [self._frames.path] if self._frames else []
        lines = [f"{path.relative_to(self.dataset.folder)} {path.stat().st_size}" for path in paths]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def extract_scenes(source: ObservedScenes, autoencoder: SlotAutoencoder, out: Path, batch: int) -> None:
    """Write the slots of all these scenes to one folder of ``VideoSlots``; a killed run is continued.

    Scenes that cannot be read are reported, listed in ``scenes.json`` and left out.

    Args:
        source: the scenes, as the encoder observes them.
        autoencoder: its encoder makes the slots.
        out: the folder.
        batch: frames per call of the encoder, or videos per call of one that carries slots through them.

    Raises:
        ValueError: the folder holds slots of something else, or no scene can be read.
    """
    identity = {"dataset": source.digest(), "encoder": autoencoder.digest()}
    scenes = _readable_scenes(source, identity, out)
    shape = (VISIBLE_FRAMES, autoencoder.config.n_slots, autoencoder.config.slot_dim)
    done = VideoSlots.finished(out, identity, scenes, shape)
    bar = tqdm(scenes[done:], initial=done, total=len(scenes), unit="video", mininterval=2.0)
    observed = (source.read(scene) for scene in bar)
    VideoSlots.write(out, identity, scenes, shape, _encoded(autoencoder.encoder, observed, batch))


def _encoded(encoder: Encoder, observed: Iterator[NDArray[Any]], batch: int) -> Iterator[Tensor]:
    """Slots of videos of one length, as ``encode`` makes them, but ``batch`` videos at a time where it can be."""
    if not isinstance(encoder, VideoEncoder):
        yield from (encode(encoder, video, batch) for video in observed)
        return
    while videos := list(islice(observed, batch)):
        yield from _tracked(encoder, np.stack(videos))


@torch.no_grad()
def encode(encoder: Encoder, observed: NDArray[Any], batch: int) -> Tensor:
    """Raw slots (M, S, D) float32 of an episode: frames (M, H, W, 3) uint8 or states (M, ...)."""
    if isinstance(encoder, VideoEncoder):
        return _tracked(encoder, observed[None])[0]
    held = next(chain(encoder.parameters(), encoder.buffers()), torch.empty(0))
    scenes = torch.from_numpy(np.ascontiguousarray(observed)).to(held.device)
    return torch.cat([encoder.read(part) for part in scenes.split(batch)]).cpu()


@torch.no_grad()
def _tracked(encoder: VideoEncoder, videos: NDArray[np.uint8]) -> Tensor:
    return encoder.track(torch.from_numpy(np.ascontiguousarray(videos)).to(next(encoder.parameters()).device)).cpu()


def _readable_scenes(source: ObservedScenes, identity: dict[str, str], out: Path) -> list[int]:
    record = out / RECORD
    if record.is_file():
        known = read_json(record)
        if known["identity"] != identity:
            raise ValueError(f"{out} holds slots made of {known['identity']}; choose another out=")
        return [int(scene) for scene in known["scenes"]]
    VideoSlots.finished(out, identity, source.scenes)  # refuses a folder with slots of another kind
    broken: dict[int, str] = {}
    for scene in tqdm(source.scenes, desc="checking", unit="video", mininterval=2.0):
        try:
            source.read(scene)
        except (OSError, ValueError) as error:
            broken[scene] = str(error)
            tqdm.write(f"left out: {error}")
    scenes = [scene for scene in source.scenes if scene not in broken]
    if not scenes:
        raise ValueError(f"none of the {len(broken)} scenes of {source.dataset.folder} can be read")
    write_json(record, {"identity": identity, "scenes": scenes, "left_out": broken})
    return scenes
