"""``python -m cjepa_agent.rollout``: continue the slots of videos with a predictor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from tqdm import tqdm

from cjepa_agent.data.episodes import SPLITS, require_splits
from cjepa_agent.data.video_slots import SlotsWriter, VideoSlots
from cjepa_agent.encoders.autoencoder import SlotAutoencoder
from cjepa_agent.paths import cache_folder
from cjepa_agent.provenance import changed_settings
from cjepa_agent.reading.slot_reader import SlotReader, exact_reader, slot_reader
from cjepa_agent.tensors import digest, require_device
from cjepa_agent.video_prediction import (
    Removal,
    continued,
    downstream,
    expectations,
    object_slots,
    require_every,
    require_removal,
    resimulated,
    video_model,
)
from cjepa_agent.world_model import WorldModel
from configs.command import command
from envs.clevrer.dataset import Dataset, split_of

COPY = "copy"  # in place of a checkpoint
WITHOUT = "without_"  # folders of videos without an object begin like this and end with its slot
Continue = Callable[[Tensor], Iterable[Tensor]]  # of observed slots (B, T, S, D), for each folder in turn


@dataclass(frozen=True)
class RolloutConfig:
    """Continue the slots of videos: frames 128 to 160 of CLEVRER's, or as far as you like.

    Observed frames are copied as they are. With ``remove`` each video is predicted from its beginning, once without
    each object (``cjepa_agent.video_prediction``): ``out`` then holds a folder ``without_<slot>`` for each slot that
    can hold one. Of slots of pixels that is every slot, and which object each holds differs from video to video.

    Attributes:
        checkpoint: predictor trained on slots of videos: a folder, a Hub id, or the bundled ``clevrer`` or
            ``clevrer-unmasked``, for slots of ``encoder=clevrer``, or ``clevrer-state``, for those of
            ``encoder=state``; or ``copy``, which repeats the last frame.
        slots: folder of slots, written by ``python -m cjepa_agent.extract``, of the encoder that the predictor is for.
        out: folder for the longer slots; an unfinished rollout there is continued.
        frames: length of the result, observed frames included; CLEVRER's simulations go on to frame 180.
        remove: how an object is taken away from the predictor: ``none`` takes none; ``drop`` leaves its slot out of the
            attention; ``empty`` puts the empty slot of ``encoder=state`` in its place; ``mask`` hides it in all frames.
            Its slot is 0 in what is written.
        data: with ``remove`` and slots of pixels, the CLEVRER data set on whose training annotations it is learned to
            tell when an object is in view (``cjepa_agent.reading.slot_reader``); without it, all slots count as in view
            from the first frame, and objects that enter later must be foretold.
        downstream: with ``remove``, keep what is observed of whatever the removal does not change, in place of running
            each video from its beginning.
        keep: frames of each call of the predictor that are kept, the next call starting after them; 0 for all.
        every: steps of the predictor from which to which ``downstream`` asks what the removal changes; 0 for as many as
            are kept. With fewer a collision is told from nearer before it, at more calls.
        splits: of the data set, whose videos are continued.
        limit: videos of each of these splits, from the first; 0 for all.
        batch: videos per call.
        device: ``cpu`` or ``cuda``.
    """

    checkpoint: str = field(default_factory=lambda: str(cache_folder() / "run" / "checkpoint"))
    slots: Path = field(default_factory=lambda: cache_folder() / "clevrer_slots")
    out: Path = field(default_factory=lambda: cache_folder() / "clevrer_rollout")
    frames: int = 160
    remove: Removal | Literal["none"] = "none"
    data: Path | None = None
    downstream: bool = False
    keep: int = 0
    every: int = 0
    splits: tuple[str, ...] = SPLITS
    limit: int = 0
    batch: int = 64
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")
        if self.limit < 0:
            raise ValueError(f"limit must be 0 or more, got {self.limit}")
        require_splits(self.splits)
        if self.checkpoint == COPY and self.remove != "none":
            raise ValueError(f"checkpoint=copy cannot tell what happens without an object; got remove={self.remove}")
        if self.downstream and self.remove == "none":
            raise ValueError("downstream=true asks what a removal changes; give remove=drop, empty or mask")
        if self.every and not self.downstream:
            raise ValueError(f"every is of downstream=true, got every={self.every} without")
        if self.checkpoint == COPY and self.keep:
            raise ValueError(f"checkpoint=copy calls no predictor whose frames could be kept; got keep={self.keep}")

    def scenes(self, source: VideoSlots) -> list[int]:
        """Those of the slots that are continued; raises ValueError if there are none."""
        by_split = ([scene for scene in source.scenes if split_of(scene) == split] for split in self.splits)
        chosen = [scene for own in by_split for scene in own[: self.limit or None]]
        if not chosen:
            raise ValueError(f"{source.folder} has slots of no video of {list(self.splits)}")
        return sorted(chosen)


def rollout(config: RolloutConfig) -> None:
    """Continue all videos, or all of them without each object."""
    require_device(config.device)
    source = VideoSlots(config.slots)
    if "observed" in source.identity:
        raise ValueError(f"{config.slots} holds videos that were continued already; give the slots that extract wrote")
    if config.frames < source.frames:
        raise ValueError(f"frames={config.frames}, but {config.slots} has {source.frames} already")
    autoencoder = SlotAutoencoder.load(config.slots)
    identity = {"slots": source.identity, "observed": source.frames, "checkpoint": COPY}
    if config.checkpoint == COPY:
        missing = config.frames - source.frames
        _write(config, source, autoencoder, {config.out: identity}, lambda slots: [_repeated(slots, missing)])
        return
    model = video_model(config.checkpoint, source, config.keep).to(config.device)
    identity["checkpoint"] = digest(model.state_dict(), changed_settings(model.config))
    if model.keep != model.predictor.future:
        identity["keep"] = model.keep
    if config.remove == "none":
        outs = {config.out: identity}
        _write(config, source, autoencoder, outs, lambda slots: [continued(model, slots, config.frames)])
        return
    require_removal(model.encoder, model.predictor, config.remove)
    reader = slot_reader(model, source, Dataset(config.data)) if config.data else exact_reader(model.encoder)
    if reader and reader.identity:
        identity["reader"] = reader.identity
    require_every(model, config.every)
    identity.update(remove=config.remove, downstream=config.downstream)
    if config.every:
        identity["every"] = config.every
    outs = {config.out / f"{WITHOUT}{slot}": {**identity, "slot": slot} for slot in object_slots(model)}
    _write(config, source, autoencoder, outs, partial(_without, config, model, reader))


def _write(
    config: RolloutConfig,
    source: VideoSlots,
    autoencoder: SlotAutoencoder,
    outs: Mapping[Path, Mapping[str, Any]],
    continuation: Continue,
) -> None:
    """Write what becomes of each video to each folder; a killed run starts again at the batch that it was at."""
    chosen = config.scenes(source)
    shape = (config.frames, *source.array.shape[2:])
    writers = [SlotsWriter(out, identity, chosen, shape, source.array.dtype) for out, identity in outs.items()]
    for out in outs:
        autoencoder.copy(source.folder, out)
    done = min(writer.done for writer in writers)
    with tqdm(total=len(chosen), initial=done, unit="video", mininterval=2.0, desc=config.out.name) as bar:
        for first in range(done, len(chosen), config.batch):
            scenes = chosen[first : first + config.batch]
            slots = torch.stack([source.read(scene) for scene in scenes]).to(config.device)
            for writer, made in zip(writers, continuation(slots), strict=True):
                writer.append(made[writer.done - first :].cpu())
            bar.update(len(scenes))


def _repeated(slots: Tensor, frames: int) -> Tensor:
    return torch.cat([slots, slots[:, -1:].expand(-1, frames, -1, -1)], dim=1)


def _without(config: RolloutConfig, model: WorldModel, reader: SlotReader | None, slots: Tensor) -> Iterator[Tensor]:
    """Videos (B, frames, S, D) without what each slot holds, slot by slot."""
    how = cast(Removal, config.remove)
    every = config.every
    expected = expectations(model, slots, every) if config.downstream else None
    for slot in object_slots(model):
        if config.downstream:
            yield downstream(
                model, slots, config.frames, slot, how, reader=reader, every=every, expected=expected
            ).slots
        else:
            yield resimulated(model, slots, config.frames, slot, how, reader)[0]


main = command("rollout", RolloutConfig, rollout)

if __name__ == "__main__":
    main()
