"""What annotations tell of each slot, which slots each word names and each question asks about: beside the answers.

CLEVRER annotates its training videos (names of objects, when they are in view and move, and their collisions), and
gives the program of each training question. A model that must find this out from answers alone needs hundreds of epochs
(``docs/LOG.md``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cjepa_agent.data.video_slots import VideoSlots
from cjepa_agent.reading.slot_reader import NO_SLOT, SlotReader
from cjepa_agent.vqa.answerer import Logits
from cjepa_agent.vqa.causal_past import nodes, pair_ends
from cjepa_agent.vqa.data import NOTHING, Batch, Reading
from envs.clevrer.dataset import Dataset
from envs.clevrer.events import Event
from envs.clevrer.physics import VISIBLE_FRAMES
from envs.clevrer.questions.executor import ProgramError, trace
from envs.clevrer.questions.facts import Facts, Object, shown_collisions
from envs.clevrer.questions.programs import Program
from envs.clevrer.questions.vocabulary import ATTRIBUTES, QUESTION_VOCABULARY
from envs.clevrer.scene import SHAPES

NAMES = tuple(name for names in ATTRIBUTES.values() for name in names)
CONCEPTS = (*NAMES, "in view", "moving")
NO_NAME = -1
NO_MOMENT = -1


def _name(word: str) -> int:
    """The name that a word says, also in plural, possessive or before a comma."""
    forms = {name: name for name in NAMES} | {shape + end: shape for shape in SHAPES for end in ("s", "'s", ",")}
    return NAMES.index(forms[word]) if word in forms else NO_NAME


NAME_OF_WORD = torch.tensor([_name(word) for word in QUESTION_VOCABULARY])


class Grounding(NamedTuple):
    """Targets of V readings.

    Attributes:
        concepts: (V, C, S, 15) of ``CONCEPTS``; an object has its names while it is in view.
        collisions: (V, C, S, S), symmetric.
        told: (V, C) bool, whether annotations tell of a tubelet; not of frames that are predicted.
        names: (V, S, 13) of the object in each slot, whether it is in view or not.
    """

    concepts: Tensor
    collisions: Tensor
    told: Tensor
    names: Tensor


class Referents(NamedTuple):
    """Targets of D descriptive questions.

    Attributes:
        moment: (D,) the tubelet of what is last referred to in time, or ``NO_MOMENT``.
        nodes: (D, N) what is counted, or has an attribute that is asked for, by ``causal_past.nodes``.
        told: (D,) bool, whether a program tells of it.
    """

    moment: Tensor
    nodes: Tensor
    told: Tensor


class _Scene(NamedTuple):
    """What the annotation of a video tells.

    All facts, the slot that holds each object, names (S, 13), in view and moving (128, S), and (frame, slot, slot) of
    collisions.
    """

    facts: Facts
    holders: list[int]
    names: NDArray[np.float32]
    in_view: NDArray[np.bool_]
    moving: NDArray[np.bool_]
    collisions: list[tuple[int, int, int]]


class Annotations:
    """Annotations of videos by slot. Each is read once.

    Args:
        data: the data set with annotations of the videos.
        slots: of these videos, of an encoder that puts objects in slots.
        reader: of these slots.
    """

    def __init__(self, data: Dataset, slots: VideoSlots, reader: SlotReader) -> None:
        self.data, self.slots, self.reader = data, slots, reader
        self._scenes: dict[int, _Scene] = {}

    def of(self, readings: Sequence[Reading], tubelet: int, order: Tensor) -> Grounding:
        """Targets of some readings.

        Args:
            readings: V of them.
            tubelet: frames that one target is about: a concept holds if it does in the middle one, and a collision
                belongs to the tubelet in which it happens.
            order: (V, S), which slot is put in each place; targets are on its device.

        Raises:
            FileNotFoundError: a scene has no annotation.
        """
        made = [self._reading(reading, tubelet) for reading in readings]
        found = Grounding(*(torch.stack(parts).to(order.device) for parts in zip(*made, strict=True)))
        return Grounding(
            _in_order(found.concepts, order, 2),
            _in_order(found.collisions, order, 2, 3),
            found.told,
            _in_order(found.names, order, 1),
        )

    def referents(self, asked: Batch, tubelet: int, order: Tensor) -> Referents:
        """What the programs of descriptive questions find; arguments and errors as of ``of``."""
        slots, owners = order.shape[1], asked.owner[asked.descriptive]
        moment, told = (torch.full((len(owners),), value) for value in (NO_MOMENT, False))
        pairs = torch.zeros(len(owners), slots, slots)
        for row, (program, owner) in enumerate(zip(asked.programs, owners.tolist(), strict=True)):
            reading = asked.readings[owner]
            if program is None or (found := self._found(reading.scene, program)) is None:
                continue
            told[row] = True
            held, frame = found
            for group in held:
                pairs[row, group[0], group[-1]] = pairs[row, group[-1], group[0]] = 1
            if frame is not None:
                place = (frame - reading.frames.start) // (tubelet * reading.frames.step)
                moment[row] = min(max(place, 0), len(reading.frames) // tubelet - 1)
        first, second = nodes(slots)
        ordered = _in_order(pairs.to(order.device), order[owners], 1, 2)
        return Referents(moment.to(order.device), ordered[:, first, second], told.to(order.device))

    def _found(self, scene: int, program: Program) -> tuple[list[list[int]], int | None] | None:
        """Slots, one or two each, of what a program finds before its last token, and the last frame it comes by.

        None of a program that has no result, as those few released ones that do not fit their annotation, or whose
        result has no slot.
        """
        known = self._scene(scene)
        try:
            steps = [step.value for step in trace(known.facts, program)]
        except ProgramError:
            return None
        value = steps[-2]
        items = [value] if isinstance(value, Object) else value
        held = [
            [known.holders[id] for id in sorted({item.id} if isinstance(item, Object) else item.objects)]
            for item in items
        ]
        if any(not group or NO_SLOT in group for group in held):
            return None
        frames = [step.frame if isinstance(step, Event) else step for step in steps if isinstance(step, (Event, int))]
        return held, frames[-1] if frames else None

    def _reading(self, reading: Reading, tubelet: int) -> Grounding:
        scene, frames = self._scene(reading.scene), reading.frames
        count, span = len(frames) // tubelet, tubelet * frames.step
        told = np.arange(1, count + 1) * span + frames.start <= VISIBLE_FRAMES
        names = scene.names.copy()
        if reading.removed != NOTHING:
            told[:], names[reading.removed] = False, 0
        middle = np.minimum(np.array(frames)[tubelet // 2 :: tubelet], VISIBLE_FRAMES - 1)
        in_view = scene.in_view[middle]
        concepts = np.concatenate(
            [names * in_view[..., None], np.stack([in_view, scene.moving[middle]], axis=-1)], axis=-1, dtype=np.float32
        )
        collisions = np.zeros((count, *in_view.shape[1:] * 2), np.float32)
        for frame, one, other in scene.collisions:
            place = (frame - frames.start) // span
            if 0 <= place < count:
                collisions[place, [one, other], [other, one]] = 1
        return Grounding(*(torch.from_numpy(array) for array in (concepts, collisions, told, names)))

    def _scene(self, scene: int) -> _Scene:
        if scene not in self._scenes:
            self._scenes[scene] = self._annotation(scene)
        return self._scenes[scene]

    def _annotation(self, scene: int) -> _Scene:
        trajectory = self.data.trajectory(scene)
        facts = Facts.of(trajectory)
        holders = self.reader.holders_in(self.slots, scene, trajectory).tolist()
        n_slots = self.slots.array.shape[2]
        names = np.zeros((n_slots, len(NAMES)), np.float32)
        in_view, moving = (np.zeros((VISIBLE_FRAMES, n_slots), bool) for _ in range(2))
        for item in facts.objects:
            if (slot := holders[item.id]) != NO_SLOT:
                names[slot, [NAMES.index(name) for name in item.attributes.values()]] = 1
                in_view[:, slot] = facts.visible[item.id]
                moving[:, slot] = facts.moving[item.id] & facts.visible[item.id]
        pairs = [(item.frame, *(holders[id] for id in item.ids)) for item in shown_collisions(trajectory)]
        seen = [pair for pair in pairs if pair[0] < VISIBLE_FRAMES and NO_SLOT not in pair[1:]]
        return _Scene(facts, holders, names, in_view, moving, seen)


def _in_order(values: Tensor, order: Tensor, *axes: int) -> Tensor:
    """Values (V, ...) with the slots along some axes in the order (V, S)."""
    for axis in axes:
        shape = [1] * values.ndim
        shape[0], shape[axis] = order.shape
        values = values.take_along_dim(order.view(shape), axis)
    return values


def mentions(words: Tensor, names: Tensor) -> tuple[Tensor, Tensor]:
    """Which slots words name.

    Names that follow each other, as in "the red rubber cube", name the objects that have all of them.

    Args:
        words: (I, L) numbers of words.
        names: (I, S, 13) of the object in each slot.

    Returns:
        (I, L, S) whether a word names the object of a slot, and (I, L) whether a word is a name.
    """
    name = NAME_OF_WORD.to(words.device)[words]
    is_name = name != NO_NAME
    begins = is_name & ~F.pad(is_name, (1, 0))[:, :-1]
    phrase = begins.cumsum(1) * is_name
    said = F.one_hot(name.clamp(min=0), len(NAMES)).to(names.dtype) * is_name[..., None]
    index = phrase[..., None].expand_as(said)
    whole = torch.zeros_like(F.pad(said, (0, 0, 0, 1))).scatter_add_(1, index, said).gather(1, index)
    has_all = whole @ names.transpose(1, 2) >= whole.sum(-1, keepdim=True) - 0.5
    return has_all & is_name[..., None], is_name


def holding(asked: Batch) -> Tensor:
    """(I,) float: whether what a choice says is so; of a question with "not" the wrong choices are."""
    negated = (asked.words == QUESTION_VOCABULARY["not"]).any(1)
    return (asked.target.bool() ^ negated).float()


def grounding_losses(logits: Logits, asked: Batch, grounding: Grounding) -> dict[str, Tensor]:
    """Binary cross-entropies of concepts, collisions, mentioned objects, and of what choices say.

    Args:
        logits: of a model that perceives.
        asked: what it was asked, with answers.
        grounding: targets.
    """
    if logits.perceived is None or logits.mentioned is None or logits.holds is None:
        raise ValueError("this model does not tell what it perceives")
    told = grounding.told
    one, other = pair_ends(grounding.names.shape[1])
    collisions, happened = (
        values[told][:, one, other] for values in (logits.perceived.collisions, grounding.collisions)
    )
    named, is_name = mentions(asked.words, grounding.names[asked.owner])
    choice = ~asked.descriptive
    return {
        "concepts": _cross_entropy(logits.perceived.concepts[told], grounding.concepts[told]),
        "collisions": _cross_entropy(collisions, happened),
        "mentions": _cross_entropy(logits.mentioned[is_name], named[is_name].float()),
        "holds": _cross_entropy(logits.holds[choice], holding(asked)[choice]),
    }


def referent_losses(logits: Logits, referents: Referents) -> dict[str, Tensor]:
    """Cross-entropies of moments, and of the set that an answer is of, per question.

    Args:
        logits: of a model that tells what is asked about.
        referents: targets.
    """
    if logits.asked is None:
        raise ValueError("this model does not tell what is asked about")
    moment, told = logits.asked.moment.float(), referents.told
    timed = referents.moment != NO_MOMENT
    total = F.cross_entropy(moment, referents.moment, ignore_index=NO_MOMENT, reduction="sum")
    found = F.binary_cross_entropy_with_logits(
        logits.asked.referents[told].float(), referents.nodes[told], reduction="sum"
    )
    return {"moments": total / timed.sum().clamp(min=1), "referents": found / told.sum().clamp(min=1)}


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over all, zero of none."""
    total = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="sum")
    return total / max(1, target.numel())
