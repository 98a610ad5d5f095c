"""What the slots of CLEVRER videos say of objects, and which slot holds which object.

Slots of the true state are read exactly, and slot i holds the object with id i. Slots of pixels are read by an MLP,
from one slot to whether it holds an object in view, where on the floor that stands and what it is. Of places it tells
what least squares leave over: those need fewer objects to hold for new ones. All is fitted on training scenes alone,
for which it must be known which slot holds which object. A slot keeps its object over a video, so this is one
assignment per video, found twice:

1. In some scenes and frames, by the overlap of the decoder's masks with the objects, drawn as discs. Masks tell where
   a slot looks before anything is fitted; and as intersection over union with the background counts, too, the slot of
   the background, whose mask reaches everywhere, is not taken for an object's.
2. In more scenes and frames, by where the MLP fitted on the first assignment sees each slot's object. Where masks
   erred in a few videos, the MLP follows the rest. It is then fitted again.

While an object of a video has no slot, any of those that are left may hold it, so that they are not fitted on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cjepa_agent.data.video_slots import VideoSlots
from cjepa_agent.encoders.autoencoder import SlotAutoencoder
from cjepa_agent.encoders.base import ColourDecoder, grid_coordinates
from cjepa_agent.encoders.clevrer_state import (
    HALF_WIDTH,
    MIDDLE,
    STATE,
    CLEVRERStateDecoder,
    CLEVRERStateEncoder,
    SceneReading,
    read_scene,
    scene_states,
)
from cjepa_agent.encoders.kinds import Encoder
from cjepa_agent.matching import best_assignment
from cjepa_agent.reading.readout import fit_linear, fit_mlp
from cjepa_agent.tensors import digest
from cjepa_agent.world_model import WorldModel
from envs.clevrer.dataset import Dataset, split_of
from envs.clevrer.physics import VISIBLE_FRAMES, Trajectory
from envs.clevrer.scene import COLOURS, MATERIALS, MAX_OBJECTS, SHAPES
from envs.clevrer.shapes import RADIUS

NO_SLOT = -1  # of an object that none holds
SCENES, FRAMES = 500, slice(0, VISIBLE_FRAMES, 4)  # that a reader is fitted on
PAINTED_SCENES, PAINTED_FRAMES, GRID = 64, slice(0, None, 4), 64  # of these, those whose masks are drawn
LEAST_IOU = 0.2  # of the masks of a slot and an object that it holds
CUTOFF = 4 * RADIUS  # distance from which on a slot's place has nothing to do with an object's
LEAST_CLOSENESS = 0.5  # 1 where a slot is always at the object's place, 0 where it is ``CUTOFF`` away, or empty
# Chosen on training scenes: fitted on 80 of 100 with slots of the bundled encoder, the median error in the other 20 was
# 0.29 radii, 0.32 with 1 and 0.37 with 10 (``docs/LOG.md``). No other threshold here has been tuned.
WEIGHT_DECAY = 3.0
OUTPUTS = (1, 2, len(SHAPES), len(COLOURS), len(MATERIALS))  # presence, correction of the place, names


class SlotReader(ABC):
    """Reads slots, and tells which of them holds an object.

    Attributes:
        identity: a digest of what was fitted, None where nothing was.
    """

    identity: str | None = None

    @abstractmethod
    def read(self, slots: Tensor) -> SceneReading:
        """What slots (..., S, D), encoded or predicted, say of objects: per slot (..., N), N <= S that can hold one."""

    @abstractmethod
    def holders(self, slots: Tensor, states: NDArray[np.float32]) -> Tensor:
        """The slot (6,) that holds each object of a video, by id; ``NO_SLOT`` where none does.

        Args:
            slots: observed, (T, S, D).
            states: true ones in these frames, (T, 6, 7), see ``cjepa_agent.encoders.clevrer_state.STATE``.
        """

    def holders_in(self, slots: VideoSlots, scene: int, trajectory: Trajectory) -> Tensor:
        """As ``holders``, of the observed frames of a scene."""
        observed = slots.read(scene, slice(0, VISIBLE_FRAMES))
        return self.holders(observed, scene_states(trajectory, VISIBLE_FRAMES))

    @abstractmethod
    def in_view(self, slots: Tensor) -> Tensor:
        """(B, T, S) bool, which of the slots (B, T, S, D) of videos hold something that is there."""


class StateReader(SlotReader):
    """Of the slots of ``CLEVRERStateEncoder``."""

    def read(self, slots: Tensor) -> SceneReading:
        """See ``read_scene``."""
        return read_scene(slots)

    def holders(self, slots: Tensor, states: NDArray[np.float32]) -> Tensor:
        """The ids themselves."""
        return torch.arange(MAX_OBJECTS)

    def in_view(self, slots: Tensor) -> Tensor:
        """Slots that are not empty; the background is always there."""
        return F.pad(read_scene(slots).presence > 0.5, (0, 1), value=True)


class FittedReader(SlotReader):
    """Of slots of pixels, fitted on videos whose objects are known.

    Angles are not read, and NaN.

    Args:
        videos: slots (T, S, D) of each.
        states: true ones (T, 6, 7) of each.
        holders: (6,) of each, see ``SlotReader.holders``.
        generator: of the training.

    Raises:
        ValueError: no slot holds an object.
    """

    def __init__(
        self,
        videos: Sequence[Tensor],
        states: Sequence[NDArray[np.float32]],
        holders: Sequence[Tensor],
        generator: torch.Generator,
    ) -> None:
        if not any(bool((held != NO_SLOT).any()) for held in holders):
            raise ValueError(
                f"no slot holds an object in any of {len(videos)} training scenes: the masks of the encoder's decoder "
                "and the annotated objects do not overlap; train the encoder longer, or give the annotations that "
                "belong to the slots"
            )
        pairs = [_pairs(*video) for video in zip(videos, states, holders, strict=True)]
        inputs, targets = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        self._mean, self._std = inputs.mean(0), inputs.std(0).clamp(min=1e-6)
        inputs, place = (inputs - self._mean) / self._std, (targets[:, 1:3] - targets.new_tensor(MIDDLE)) / HALF_WIDTH
        present = targets[:, 0] > 0
        self._linear = fit_linear(inputs[present], place[present])
        targets = torch.cat([targets[:, :1], place - self._linear(inputs), targets[:, 3:]], dim=1)
        self._mlp = fit_mlp(inputs, targets, generator, sum(OUTPUTS), _loss, WEIGHT_DECAY)
        fitted = {"mean": self._mean, "std": self._std, "weight": self._linear.weight, "bias": self._linear.bias}
        self.identity = digest({**fitted, **self._mlp.state_dict()})

    @torch.no_grad()
    def read(self, slots: Tensor) -> SceneReading:
        """See ``SlotReader``; of all S slots."""
        inputs = (slots.cpu() - self._mean) / self._std
        presence, correction, *names = self._mlp(inputs).to(slots.device).split(OUTPUTS, dim=-1)
        place = self._linear(inputs).to(slots.device) + correction
        return SceneReading(
            place * HALF_WIDTH + place.new_tensor(MIDDLE),
            presence.squeeze(-1).sigmoid(),
            torch.full_like(presence.squeeze(-1), torch.nan),
            *(name.argmax(-1) for name in names),
        )

    def holders(self, slots: Tensor, states: NDArray[np.float32]) -> Tensor:
        """See ``SlotReader``."""
        reading, truth = self.read(slots), torch.from_numpy(states).to(slots.device)
        there, place = truth[..., 0] > 0, truth[..., 1:3]
        distance = (reading.position.unsqueeze(2) - place.unsqueeze(1)).norm(dim=-1)
        together = (reading.presence > 0.5).unsqueeze(2) & there.unsqueeze(1)
        closeness = ((1 - distance / CUTOFF).clamp(min=0) * together).sum(0) / there.sum(0).clamp(min=1)
        return _assigned(closeness, LEAST_CLOSENESS)

    def in_view(self, slots: Tensor) -> Tensor:
        """See ``SlotReader``; a slot that never holds an object is the background's, or spare, and always there."""
        present = self.read(slots).presence > 0.5
        return present | ~present.any(dim=-2, keepdim=True)


def slot_reader(model: SlotAutoencoder | WorldModel, slots: VideoSlots, data: Dataset, seed: int = 0) -> SlotReader:
    """The reader of a folder's slots.

    Args:
        model: with the encoder and decoder of the slots.
        slots: whose first 128 frames are observed, of training scenes, too, unless they are of the true state.
        data: the data set with the annotations of these.
        seed: of the fit.

    Raises:
        FileNotFoundError: a training scene has no annotation.
        ValueError: the encoder knows no objects, there is no training scene, or no slot holds an object.
    """
    if exact := exact_reader(model.encoder):
        return exact
    if not isinstance(model.decoder, ColourDecoder):
        raise ValueError(
            f"{slots.folder} holds patches, none of which is an object; extract slots of an object encoder"
        )
    scenes = [scene for scene in slots.scenes if split_of(scene) == "train"][:SCENES]
    if not scenes:
        raise ValueError(
            f"{slots.folder} has no scene of the training split, on which reading objects from slots of pixels is "
            "fitted; extract the slots of the whole data set"
        )
    videos = [slots.read(scene, FRAMES) for scene in scenes]
    states = [scene_states(data.trajectory(scene), VISIBLE_FRAMES)[FRAMES] for scene in scenes]
    decoder, device = model.decoder, next((p.device for p in model.decoder.parameters()), torch.device("cpu"))
    painted, generator = slice(0, PAINTED_SCENES), torch.Generator().manual_seed(seed)
    held = [
        _held_by_masks(decoder, video[PAINTED_FRAMES].to(device), true[PAINTED_FRAMES])
        for video, true in zip(videos[painted], states[painted], strict=True)
    ]
    first = FittedReader(videos[painted], states[painted], held, generator)
    held = [first.holders(video, true) for video, true in zip(videos, states, strict=True)]
    return FittedReader(videos, states, held, generator)


def exact_reader(encoder: Encoder) -> SlotReader | None:
    """The reader of an encoder's slots that needs no fit, None where there is none."""
    return StateReader() if isinstance(encoder, CLEVRERStateEncoder) else None


def by_object(values: Tensor, holders: Tensor, dim: int, fill: float) -> Tensor:
    """What there is for each slot along a dimension as what there is for each object.

    Args:
        values: N along ``dim``.
        holders: (6,), see ``SlotReader.holders``.
        dim: becomes 6 long.
        fill: where an object has no slot.
    """
    missing = torch.full_like(values.narrow(dim, 0, 1), fill)
    rows = (holders % (values.shape[dim] + 1)).to(values.device)  # NO_SLOT is the row after the last
    return torch.cat([values, missing], dim=dim).index_select(dim, rows)


def objects_of(reading: SceneReading, holders: Tensor) -> SceneReading:
    """A reading (T, N) of the slots of one video as that of its objects (T, 6).

    An object without a slot is never present, and its position is NaN.
    """
    return SceneReading(
        by_object(reading.position, holders, -2, torch.nan),
        *(by_object(part, holders, -1, 0) for part in reading[1:]),
    )


def _held_by_masks(decoder: ColourDecoder, slots: Tensor, states: NDArray[np.float32]) -> Tensor:
    """Holders (6,) by masks of slots (T, S, D) and objects in states (T, 6, 7)."""
    points = grid_coordinates(GRID).to(slots).expand(len(slots), -1, -1)
    drawn = CLEVRERStateEncoder().read(torch.from_numpy(states)).to(slots)
    with torch.no_grad():
        masks = [one.paint(given, points)[1] for one, given in ((decoder, slots), (CLEVRERStateDecoder(), drawn))]
    found, true = (F.one_hot(mask.argmax(1), mask.shape[1]).flatten(0, 1).double() for mask in masks)
    shared = found.T @ true
    union = found.sum(0).unsqueeze(1) + true.sum(0) - shared
    return _assigned(shared / union.clamp(min=1), LEAST_IOU)[:MAX_OBJECTS]


def _assigned(likeness: Tensor, least: float) -> Tensor:
    """For each of the columns of likenesses (S, O) its row in the best assignment, ``NO_SLOT`` below ``least``."""
    rows, columns = likeness.shape
    size = max(rows, columns)
    square = F.pad(likeness, (0, size - columns, 0, size - rows))
    chosen = best_assignment(-square)[:columns]
    reached = square.gather(0, chosen.unsqueeze(0)).squeeze(0)
    return chosen.where(reached >= least, chosen.new_tensor(NO_SLOT)).cpu()


def _pairs(slots: Tensor, states: NDArray[np.float32], holders: Tensor) -> tuple[Tensor, Tensor]:
    """Slots (M, D) of a video (T, S, D), and the states (M, 7) of what they hold; 0 for slots that hold nothing."""
    objects = torch.full((slots.shape[1],), MAX_OBJECTS)
    ids = (holders != NO_SLOT).nonzero().squeeze(1)
    objects[holders[ids]] = ids
    unknown = bool((states[..., 0].any(axis=0) & (holders.numpy() == NO_SLOT)).any())
    known = objects < MAX_OBJECTS if unknown else torch.full_like(objects, True, dtype=torch.bool)
    true = F.pad(torch.from_numpy(states), (0, 0, 0, 1))[:, objects]
    return slots[:, known].flatten(0, 1), true[:, known].flatten(0, 1)


def _loss(made: Tensor, states: Tensor) -> Tensor:
    """Of what the MLP gives, (M, sum(OUTPUTS)), for objects in states (M, 7), places by what is left over."""
    presence, correction, *names = made.split(OUTPUTS, dim=-1)
    inside, radii = states[:, 0], HALF_WIDTH / RADIUS
    away = F.smooth_l1_loss(correction * radii, states[:, 1:3] * radii, reduction="none").sum(1)
    unlike = [
        F.cross_entropy(name, states[:, STATE.index(key)].long(), reduction="none")
        for key, name in zip(("shape", "colour", "material"), names, strict=True)
    ]
    present = F.binary_cross_entropy_with_logits(presence.squeeze(1), inside)
    return present + ((away + sum(unlike)) * inside).mean()
