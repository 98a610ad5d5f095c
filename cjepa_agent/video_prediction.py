"""Videos of slots as a predictor tells them: continued, run again from their beginning, or changed by a removal."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.data.video_slots import VideoSlots
from cjepa_agent.encoders.autoencoder import SlotAutoencoder
from cjepa_agent.encoders.clevrer_state import CLEVRERStateEncoder
from cjepa_agent.encoders.kinds import Encoder
from cjepa_agent.latent import Latent
from cjepa_agent.predictors.base import Predictor
from cjepa_agent.reading.slot_reader import SlotReader, exact_reader
from cjepa_agent.world_model import WorldModel

AHEAD = 10  # steps over which predictions of predictors that give one at a time are compared; C-JEPA gives as many
TOLERANCE = 0.003  # of differences between predictions of a slot, chosen on training videos
Removal = Literal["drop", "empty", "mask"]


class Downstream(NamedTuple):
    """What ``downstream`` tells of B videos.

    Attributes:
        slots: (B, frames, S, D), as observed where nothing is changed by the removal.
        predicted: (B, frames, S) bool, which of them are not observed but predicted.
        apart: (B, S) largest difference that the removal makes to a prediction of each slot: mean square over
            normalised numbers. What is removed has 0.
    """

    slots: Tensor
    predicted: Tensor
    apart: Tensor


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
    model: WorldModel,
    slots: Tensor,
    frames: int,
    removed: int | None = None,
    how: Removal = "drop",
    reader: SlotReader | None = None,
) -> tuple[Tensor, Tensor]:
    """The video run again by the model from its beginning, with or without an object.

    An object that is not there yet cannot be foretold: each is shown as observed until a call of the predictor sees it
    in all frames of its history, and predicted from then on. NS-DR adds objects that enter likewise (arXiv 1910.01442).

    Args:
        model: predicts slots of videos.
        slots: raw, observed, (B, T, S, D).
        frames: length of the result, at least T.
        removed: a slot that is taken away.
        how: see ``cjepa_agent.rollout.RolloutConfig.remove``.
        reader: tells what is in view; None for the exact one, or for all of slots of pixels.

    Returns:
        Slots (B, frames, S, D), and which of them were predicted (B, frames, S), bool.

    Raises:
        ValueError: the video is shorter than the model's history, or there is no such slot or way.
    """
    step, needed, observed = model.config.action_block, _history_frames(model, slots), slots.shape[1]
    history, steps = needed // step, -(-frames // step)
    present = in_view(model, slots, reader)
    if removed is not None:
        slots, present = _emptied(slots, present, removed, how)
    slots = F.pad(slots, (0, 0, 0, 0, 0, steps * step - observed))
    shown = ~_foretold(present, history, step, steps, model.keep)
    known = _in_order(shown, step)
    others = [slot for slot in range(slots.shape[2]) if how != "drop" or slot != removed]
    latent = _interleaved(model, slots)
    shown = shown[:, :, others]
    latent = latent._replace(slots=latent.slots[:, :, others])
    begin, later = (latent.select((slice(None), part)) for part in (slice(0, history), slice(history, None)))
    hidden = None
    if removed is not None and how == "mask":
        hidden = F.one_hot(torch.tensor(removed), slots.shape[2]).bool().to(slots.device).expand_as(shown[:, :history])
    predicted = model.forecast(begin, steps - history, hidden, later, shown[:, history:])
    whole = latent.slots.new_zeros(*latent.slots.shape[:2], *slots.shape[2:])
    whole[:, :, others] = torch.cat([begin.slots, predicted.slots], dim=1)
    made = torch.where(known.unsqueeze(-1), slots, _merged(model, whole))[:, :frames]
    if removed is not None:
        made[:, :, removed] = 0.0
    return made, ~known[:, :frames]


@torch.no_grad()
def downstream(
    model: WorldModel,
    slots: Tensor,
    frames: int,
    removed: int,
    how: Removal = "drop",
    tolerance: float = TOLERANCE,
    reader: SlotReader | None = None,
    every: int = 0,
    expected: Tensor | None = None,
) -> Downstream:
    """The observed video with what would go otherwise without an object predicted in its place.

    Going through the video, every ``every`` steps what comes next is predicted twice: from the video as observed, and
    from the video so far without the object. An object follows the observed video up to the first call in which the two
    predictions of it part, and its own predicted course from then on. So all that the observed video tells is kept: the
    abduction of Pearl's counterfactuals (Causality, 2009, section 7.1), which a run from the beginning
    (``resimulated``) does without. What is predicted is predicted anew when it is used up, and when something else
    parts.

    Args:
        model: predicts slots of videos.
        slots: raw, observed, (B, T, S, D).
        frames: length of the result, at least T.
        removed: a slot that is taken away.
        how: see ``cjepa_agent.rollout.RolloutConfig.remove``.
        tolerance: mean squared difference of normalised slots from which on two predictions have parted.
        reader: see ``resimulated``.
        every: see ``cjepa_agent.rollout.RolloutConfig``.
        expected: ``expectations`` of the same slots and ``every``, which are the same whatever is removed; made here
            without.

    Raises:
        ValueError: the video is shorter than the model's history, or there is no such slot, way or stride.
    """
    require_every(model, every)
    step, needed, observed = model.config.action_block, _history_frames(model, slots), slots.shape[1]
    history, steps, seen, kept = needed // step, -(-frames // step), observed // step, _kept(model)
    stride, compared = every or kept, _compared(model, every)
    present, taken = in_view(model, slots, reader), torch.tensor([removed], device=slots.device)
    if expected is None:
        expected = expectations(model, slots, every)
    slots, present = _emptied(slots, present, removed, how)
    changes = _foretold(present, history, step, steps, stride).index_fill(2, taken, False)
    others = torch.tensor([s for s in range(slots.shape[2]) if how != "drop" or s != removed], device=slots.device)
    path = _interleaved(model, F.pad(slots, (0, 0, 0, 0, 0, steps * step - observed))).slots
    made = _ended(present, step, steps)
    hidden = F.one_hot(taken, slots.shape[2]).bool().expand(len(path), history, -1) if how == "mask" else None
    apart = path.new_zeros(len(path), slots.shape[2])
    left = torch.zeros(len(path), dtype=torch.long, device=path.device)  # steps that are predicted ahead
    for call, begin in enumerate(range(history, steps, stride)):
        used_up, left = left < stride, left - stride
        if begin >= seen and not used_up.any():
            continue
        now, window = slice(begin, min(begin + kept, steps)), slice(begin - history, begin)
        without = _still(path[:, window].index_select(2, others))
        predicted = path.new_zeros(len(path), kept, *path.shape[2:])
        predicted = predicted.index_copy(2, others, model.forecast(without, kept, hidden).slots)
        if begin < seen:
            # Over all steps to the next call: after a collision the observed course tells of it by itself.
            difference = (predicted[:, :compared] - expected[:, :, call].flatten(0, 1)).square().mean(-1).amax(1)
            difference = difference * changes[:, begin]
            apart = torch.maximum(apart, difference)
            parted = changes[:, begin] & (difference > tolerance)
            used_up |= (parted & ~made[:, begin]).any(1)  # what was predicted did not know of it
            made[:, begin:] |= parted.unsqueeze(1)
        anew = made[:, now] & used_up[:, None, None]
        path[:, now] = torch.where(anew.unsqueeze(-1), predicted[:, : now.stop - begin], path[:, now])
        left = torch.where(used_up, kept - stride, left)
    result = _merged(model, path)[:, :frames]
    result[:, :observed] = torch.where(_in_order(made, step)[:, :observed].unsqueeze(-1), result[:, :observed], slots)
    result[:, :, removed] = 0.0
    return Downstream(result, _in_order(made, step)[:, :frames], apart.unflatten(0, (-1, step)).amax(1))


@torch.no_grad()
def expectations(model: WorldModel, slots: Tensor, every: int = 0) -> Tensor:
    """What the predictor expects of videos as observed, from call to call of ``downstream``.

    Args:
        model: predicts slots of videos.
        slots: raw, observed, (B, T, S, D).
        every: see ``cjepa_agent.rollout.RolloutConfig``.

    Returns:
        Latent slots (B, f, C, F, S, D) that C calls predict of F frames each, from each offset o < f on.

    Raises:
        ValueError: the video is shorter than the model's history.
    """
    step, compared = model.config.action_block, _compared(model, every)
    history, seen = _history_frames(model, slots) // step, slots.shape[1] // step
    observed = _interleaved(model, slots[:, : seen * step]).slots
    begins = range(history, seen, every or _kept(model))
    calls = [model.forecast(_still(observed[:, begin - history : begin]), compared).slots for begin in begins]
    if not calls:
        return slots.new_empty(len(slots), step, 0, compared, *slots.shape[2:])
    expected: Tensor = torch.stack(calls, dim=1).unflatten(0, (-1, step))
    return expected


def in_view(model: WorldModel, slots: Tensor, reader: SlotReader | None = None) -> Tensor:
    """(B, T, S) bool: which of slots (B, T, S, D) hold something that is there; all, where nothing tells."""
    reader = reader or exact_reader(model.encoder)
    if reader:
        return reader.in_view(slots)
    return torch.ones(slots.shape[:-1], dtype=torch.bool, device=slots.device)


def object_slots(model: WorldModel) -> range:
    """Slots that can hold an object: all where the encoder does not tell which one is the background."""
    count = model.config.encoder.n_slots
    return range(count - 1 if isinstance(model.encoder, CLEVRERStateEncoder) else count)


def video_model(checkpoint: str, slots: VideoSlots, keep: int = 0) -> WorldModel:
    """The model in a checkpoint, in evaluation mode, if it predicts these slots.

    Args:
        checkpoint: a folder, a Hub id, or a bundled one.
        slots: of videos.
        keep: frames of each call that it is to keep; 0 for all.

    Raises:
        ValueError: it predicts what actions do, or slots of another encoder, or these are not their encoder's, or it
            gives fewer frames per call.
    """
    model = Checkpoint.from_pretrained(checkpoint).model
    if model.config.action_dim:
        raise ValueError(f"{checkpoint} predicts what actions do; this command takes predictors of videos")
    autoencoder = SlotAutoencoder.load(slots.folder)
    autoencoder.require_slots(slots.array.shape[2:], slots.folder)
    if not autoencoder.is_of(model):
        raise ValueError(f"{checkpoint} was trained on slots of another encoder than those in {slots.folder}")
    if not 0 <= keep <= model.keep:
        raise ValueError(f"{checkpoint} gives {model.keep} frames per call, of which keep={keep} cannot be kept")
    model.keep = keep or model.keep
    return model.eval()


def require_every(model: WorldModel, every: int) -> None:
    """Raises ValueError where ``downstream`` cannot ask after ``every`` steps."""
    if not 0 <= every <= _kept(model):
        raise ValueError(f"every={every} must be 0 to {_kept(model)}, the steps of a call that are kept")


def require_removal(encoder: Encoder, predictor: Predictor, how: Removal) -> None:
    """Raise ValueError where an object cannot be taken away in this way."""
    ways = {
        "drop": predictor.orderless,
        "empty": isinstance(encoder, CLEVRERStateEncoder),
        "mask": predictor.masked,
    }
    if not ways[how]:
        why = {
            "drop": f"{type(predictor).__name__} tells slots apart, so that none can be left out",
            "empty": "only slots of encoder=state have an empty slot",
            "mask": f"nothing can be hidden from {type(predictor).__name__}",
        }
        possible = [name for name, can in ways.items() if can]
        raise ValueError(f"removal {how!r}: {why[how]}; give one of {possible}")


def _kept(model: WorldModel) -> int:
    """Steps that ``downstream`` keeps of a call, of predictors of one frame more: one tells little of a change."""
    return model.keep if model.keep > 1 else AHEAD


def _compared(model: WorldModel, every: int) -> int:
    """Steps over which predictions are compared: all that are kept, or to the next call and the one after it."""
    return min(every + 1, _kept(model)) if every else _kept(model)


def _emptied(slots: Tensor, present: Tensor, removed: int, how: Removal) -> tuple[Tensor, Tensor]:
    """Slots (B, T, S, D), and which (B, T, S) are in view, without the removed one; a hidden one stays in its place."""
    if not 0 <= removed < slots.shape[2] or how not in get_args(Removal):
        raise ValueError(
            f"what is taken away must be one of {slots.shape[2]} slots, by one of {get_args(Removal)}, got slot "
            f"{removed} by {how!r}"
        )
    if how == "mask":
        return slots, present
    taken = torch.tensor([removed], device=slots.device)
    return slots.index_fill(2, taken, 0.0), present.index_fill(2, taken, False)


def _still(slots: Tensor) -> Latent:
    """Latents of slots that nobody acts on."""
    return Latent(slots, slots.new_empty(*slots.shape[:2], 0))


def _foretold(present: Tensor, history: int, step: int, steps: int, future: int) -> Tensor:
    """(B f, steps, S) bool: what can be predicted, in the order of ``_by_offset``: all after the observed video.

    Before, only slots that the call which predicts a frame has seen in all frames of its history.

    Args:
        present: (B, T, S) what is in view in the observed video.
        history: frames that a call sees, ``step`` apart.
        step: f.
        steps: of the result.
        future: frames that a call predicts and that are kept.
    """
    beyond = (0, 0, 0, steps * step - present.shape[1])
    seen = _by_offset(F.pad(present.cummax(1).values.cumsum(1) > history * step, beyond), step, steps)
    begins = history + (torch.arange(steps, device=present.device) - history) // future * future
    return seen[:, begins.clamp(min=0)] | _ended(present, step, steps)


def _ended(present: Tensor, step: int, steps: int) -> Tensor:
    """(B f, steps, S) bool, in the order of ``_by_offset``: what comes after the observed video, see ``_foretold``."""
    beyond = (0, 0, 0, steps * step - present.shape[1])
    return _by_offset(F.pad(torch.zeros_like(present), beyond, value=True), step, steps)


def _by_offset(values: Tensor, step: int, steps: int) -> Tensor:
    """(B, T, ...) as (B f, steps, ...): of each video in turn the frames from offset 0, 1, ... on, f apart."""
    runs: Tensor = values[:, : steps * step].unflatten(1, (steps, step)).transpose(1, 2).flatten(0, 1)
    return runs


def _in_order(values: Tensor, step: int) -> Tensor:
    """The inverse of ``_by_offset``."""
    ordered: Tensor = values.unflatten(0, (-1, step)).transpose(1, 2).flatten(1, 2)
    return ordered


def _history_frames(model: WorldModel, slots: Tensor) -> int:
    """Frames that a model's history spans; raises ValueError if the video (B, T, S, D) is shorter."""
    needed = model.config.predictor.history * model.config.action_block
    if slots.shape[1] < needed:
        raise ValueError(f"the model needs {needed} frames of history, the video has {slots.shape[1]}")
    return needed


def _interleaved(model: WorldModel, slots: Tensor) -> Latent:
    """Latents (B f, T, S, D) of raw slots (B, T f, S, D), in the order of ``_by_offset``."""
    step = model.config.action_block
    runs = _by_offset(slots, step, slots.shape[1] // step)
    return model.latent(runs, runs.new_empty(*runs.shape[:2], 0))


def _merged(model: WorldModel, slots: Tensor) -> Tensor:
    """The inverse of ``_interleaved``: raw slots (B, T f, S, D) of latent ones (B f, T, S, D)."""
    return _in_order(model.processor.raw_slots(slots), model.config.action_block)
