"""``python -m cjepa_agent.rollout``: continue the slots of videos with a predictor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from cjepa_agent.autoencoder import SlotAutoencoder
from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.clevrer_encoder import CLEVRERStateEncoder, read_scene
from cjepa_agent.latent import Latent
from cjepa_agent.paths import cache_folder
from cjepa_agent.tensors import digest
from cjepa_agent.video_slots import VideoSlots
from cjepa_agent.world_model import WorldModel
from configs.command import command

COPY = "copy"  # in place of a checkpoint
WITHOUT = "without_"  # folders of videos without an object begin like this and end with its slot
Removal = Literal["drop", "empty", "mask"]
Continue = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class RolloutConfig:
    """Continue the slots of videos: frames 128 to 160 of CLEVRER's, or as far as you like.

    Observed frames are copied as they are. With ``remove`` each video is predicted from its beginning, once without
    each object (``resimulated``): ``out`` then holds a folder ``without_<slot>`` for each.

    Attributes:
        checkpoint: predictor trained on slots of videos: a folder or Hub id; or ``copy``, which repeats the last frame.
        slots: folder of slots, written by ``python -m cjepa_agent.extract``, of the encoder that the predictor is for.
        out: folder for the longer slots; an unfinished rollout there is continued.
        frames: length of the result, observed frames included; CLEVRER's simulations go on to frame 180.
        remove: how an object is taken away: ``none`` takes none; ``drop`` leaves its slot out of the attention, and it
            stays 0; ``empty`` puts the empty slot of ``encoder=state`` in its place; ``mask`` hides it in all frames.
        batch: videos per call.
        device: ``cpu`` or ``cuda``.
    """

    checkpoint: str = field(default_factory=lambda: str(cache_folder() / "run" / "checkpoint"))
    slots: Path = field(default_factory=lambda: cache_folder() / "clevrer_slots")
    out: Path = field(default_factory=lambda: cache_folder() / "clevrer_rollout")
    frames: int = 160
    remove: Removal | Literal["none"] = "none"
    batch: int = 64
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")
        if self.checkpoint == COPY and self.remove != "none":
            raise ValueError(f"checkpoint=copy cannot tell what happens without an object; got remove={self.remove}")


def rollout(config: RolloutConfig) -> None:
    """Continue all videos, or all of them without each object."""
    source = VideoSlots(config.slots)
    if config.frames < source.frames:
        raise ValueError(f"frames={config.frames}, but {config.slots} has {source.frames} already")
    autoencoder = SlotAutoencoder.load(config.slots)
    identity = {"slots": source.identity, "observed": source.frames, "checkpoint": COPY}
    if config.checkpoint == COPY:
        missing = config.frames - source.frames
        _write(config, config.out, source, autoencoder, identity, lambda slots: _repeated(slots, missing))
        return
    model = video_model(config.checkpoint, config.slots).to(config.device)
    if config.remove == "empty" and not isinstance(model.encoder, CLEVRERStateEncoder):
        raise ValueError("only slots of encoder=state have an empty slot; use remove=drop or remove=mask")
    identity["checkpoint"] = digest(model.state_dict())
    if config.remove == "none":
        _write(config, config.out, source, autoencoder, identity, lambda slots: continued(model, slots, config.frames))
        return
    for slot in object_slots(model):
        own = {**identity, "remove": config.remove, "slot": slot}
        without = partial(_without, model, config.frames, slot, config.remove)
        _write(config, config.out / f"{WITHOUT}{slot}", source, autoencoder, own, without)


def video_model(checkpoint: str, slots: Path) -> WorldModel:
    """The model in a checkpoint, in evaluation mode, if it predicts the slots of videos in a folder.

    Raises:
        ValueError: it predicts what actions do, or slots of another encoder.
    """
    model = Checkpoint.from_pretrained(checkpoint).model
    if model.config.action_dim:
        raise ValueError(f"{checkpoint} predicts what actions do; this command takes predictors of videos")
    if not SlotAutoencoder.load(slots).is_of(model):
        raise ValueError(f"{checkpoint} was trained on slots of another encoder than those in {slots}")
    return model.eval()


def _write(
    config: RolloutConfig,
    out: Path,
    source: VideoSlots,
    autoencoder: SlotAutoencoder,
    identity: dict[str, Any],
    continuation: Continue,
) -> None:
    """Write the continuation of each video; a killed run starts again at the batch that it was at."""
    done = VideoSlots.finished(out, identity, source.scenes)
    autoencoder.copy(source.folder, out)

    def videos() -> Iterator[Tensor]:
        bar = tqdm(total=len(source.scenes), initial=done, unit="video", mininterval=2.0, desc=out.name)
        for first in range(done, len(source.scenes), config.batch):
            scenes = source.scenes[first : first + config.batch]
            slots = torch.stack([source.read(scene) for scene in scenes])
            yield from continuation(slots.to(config.device)).cpu()
            bar.update(len(scenes))

    shape = (config.frames, *source.array.shape[2:])
    VideoSlots.write(out, identity, source.scenes, shape, videos(), every=config.batch)


def _repeated(slots: Tensor, frames: int) -> Tensor:
    return torch.cat([slots, slots[:, -1:].expand(-1, frames, -1, -1)], dim=1)


def object_slots(model: WorldModel) -> range:
    """Slots that can hold an object: all where the encoder does not tell which one is the background."""
    count = model.config.encoder.n_slots
    return range(count - 1 if isinstance(model.encoder, CLEVRERStateEncoder) else count)


@torch.no_grad()
def continued(model: WorldModel, slots: Tensor, frames: int) -> Tensor:
    """Slots (B, frames, S, D): those given, then those that the model predicts.

    A model whose steps are f frames long runs f times, once on each f-th frame from offset o < f on: C-JEPA's released
    rollout, https://github.com/galilai-group/cjepa. Frame T + i is then the (i // f)-th of the run with offset i mod f.

    Args:
        model: predicts slots of videos.
        slots: raw, (B, T, S, D).
        frames: length of the result.

    Raises:
        ValueError: the video is shorter than the model's history.
    """
    step, needed, observed = model.config.action_block, _history_frames(model, slots), slots.shape[1]
    latent = _interleaved(model, slots[:, observed - needed :])
    predicted = model.forecast(latent, -(-(frames - observed) // step)).slots
    return torch.cat([slots, _merged(model, predicted)[:, : frames - observed]], dim=1)


@torch.no_grad()
def resimulated(
    model: WorldModel, slots: Tensor, frames: int, removed: int | None = None, how: Removal = "drop", keep: int = 2
) -> tuple[Tensor, Tensor]:
    """The video run again by the model from its beginning, with or without an object.

    An object that is not there yet cannot be foretold: each is shown as observed until it has been in view for as long
    as the model's history, and predicted from then on. NS-DR adds objects that enter likewise (arXiv 1910.01442).

    Args:
        model: predicts slots of videos.
        slots: raw, observed, (B, T, S, D).
        frames: length of the result, at least T.
        removed: a slot that is taken away.
        how: see ``RolloutConfig.remove``.
        keep: frames that each call of the predictor goes on by at most, in its own steps.

    Returns:
        Slots (B, frames, S, D), and which of them were predicted (B, frames, S), bool.

    Raises:
        ValueError: the video is shorter than the model's history.
    """
    step, needed, observed = model.config.action_block, _history_frames(model, slots), slots.shape[1]
    history, steps = needed // step, -(-frames // step)
    present = in_view(model, slots)
    if removed is not None and how in ("drop", "empty"):
        taken = torch.tensor([removed], device=slots.device)
        slots, present = slots.index_fill(2, taken, 0.0), present.index_fill(2, taken, False)
    slots = F.pad(slots, (0, 0, 0, 0, 0, steps * step - observed))
    known = F.pad(present.cummax(1).values.cumsum(1) <= needed, (0, 0, 0, steps * step - observed))
    others = [slot for slot in range(slots.shape[2]) if how != "drop" or slot != removed]
    latent = _interleaved(model, slots)
    shown = known.unflatten(1, (steps, step)).transpose(1, 2).flatten(0, 1)[:, :, others]
    latent = latent._replace(slots=latent.slots[:, :, others])
    begin, later = (latent.select((slice(None), part)) for part in (slice(0, history), slice(history, None)))
    hidden = None
    if removed is not None and how == "mask":
        hidden = F.one_hot(torch.tensor(removed), slots.shape[2]).bool().to(slots.device).expand_as(shown[:, :history])
    predicted = model.forecast(
        begin, steps - history, hidden, later, shown[:, history:], min(keep, model.predictor.future)
    )
    whole = latent.slots.new_zeros(*latent.slots.shape[:2], *slots.shape[2:])
    whole[:, :, others] = torch.cat([begin.slots, predicted.slots], dim=1)
    made = torch.where(known.unsqueeze(-1), slots, _merged(model, whole))[:, :frames]
    if removed is not None and how == "drop":
        made[:, :, removed] = 0.0
    return made, ~known[:, :frames]


def _history_frames(model: WorldModel, slots: Tensor) -> int:
    """Frames that a model's history spans; raises ValueError if the video (B, T, S, D) is shorter."""
    needed = model.config.predictor.history * model.config.action_block
    if slots.shape[1] < needed:
        raise ValueError(f"the model needs {needed} frames of history, the video has {slots.shape[1]}")
    return needed


def _interleaved(model: WorldModel, slots: Tensor) -> Latent:
    """Raw slots (B, T f, S, D) as B f videos of T frames, f apart: of each video in turn those from offset 0, 1, ..."""
    runs = slots.unflatten(1, (-1, model.config.action_block)).transpose(1, 2).flatten(0, 1)
    return model.latent(runs, runs.new_empty(*runs.shape[:2], 0))


def _merged(model: WorldModel, slots: Tensor) -> Tensor:
    """The inverse of ``_interleaved``: raw slots (B, T f, S, D) of latent ones (B f, T, S, D)."""
    raw: Tensor = model.processor.raw_slots(slots).unflatten(0, (-1, model.config.action_block))
    return raw.transpose(1, 2).flatten(1, 2)


def in_view(model: WorldModel, slots: Tensor) -> Tensor:
    """(..., S) bool: which of slots (..., S, D) hold something; all, where the encoder does not tell."""
    if not isinstance(model.encoder, CLEVRERStateEncoder):
        return torch.ones(slots.shape[:-1], dtype=torch.bool, device=slots.device)
    return F.pad(read_scene(slots).presence > 0.5, (0, 1), value=True)


def _without(model: WorldModel, frames: int, removed: int, how: Removal, slots: Tensor) -> Tensor:
    return resimulated(model, slots, frames, removed, how)[0]


main = command("rollout", RolloutConfig, rollout)

if __name__ == "__main__":
    main()
