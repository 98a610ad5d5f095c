"""Which history cells of which objects are hidden while training (C-JEPA section 3, appendix E.3)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

MaskKind = Literal["object", "token", "tube", "fixed"]
RELEASED_SEED = 42  # of the one mask that the released code ever draws


@dataclass(frozen=True)
class MaskConfig:
    """How history is masked.

    Attributes:
        count: number of objects hidden per sample, 0..S; at most so many when ``upto``.
        kind: ``object`` hides whole objects after their first frame; ``token`` hides as many cells, drawn one by
            one; ``tube`` hides whole objects with their first frame, so that no identity anchor stays, but nothing of
            a history of one frame, as no kind does; ``fixed`` is ``object`` with the same objects in every sample,
            those that the authors' released code hides: it makes its generator anew, with seed 42, on every call.
        upto: draw the number of hidden objects uniformly from 0..count for each sample (appendix E.3).
        history_weight: of recovering what is hidden, in the loss; 1 in the paper.
        future_weight: of the future of objects that are hidden throughout, likewise. Where they went cannot be told;
            what this weight changes is in ``docs/masking.md``.
    """

    count: int = 1
    kind: MaskKind = "object"
    upto: bool = False
    history_weight: float = 1.0
    future_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"mask.count must be 0 or more, got {self.count}")
        if self.kind not in get_args(MaskKind):
            raise ValueError(f"mask.kind must be one of {list(get_args(MaskKind))}, got {self.kind!r}")
        if not (self.history_weight >= 0 and self.future_weight >= 0):
            raise ValueError(f"mask.history_weight and mask.future_weight must be 0 or more, got {self}")


def sample_mask(config: MaskConfig, batch: int, frames: int, slots: int, generator: torch.Generator) -> Tensor:
    """Draw hidden cells.

    Args:
        config: what to hide.
        batch: B.
        frames: T, history frames.
        slots: S.
        generator: advances with every call, so that samples and steps differ.

    Returns:
        (B, T, S) bool, True where a history cell is hidden.

    Raises:
        ValueError: more objects to hide than there are slots.
    """
    if config.count > slots:
        raise ValueError(f"mask.count is {config.count}, but the model has {slots} slots")
    device = generator.device
    if config.kind == "token":
        scores = torch.rand(batch, frames, slots, generator=generator, device=device)
        scores[:, 0] = -1.0
        ranks = scores.flatten(1).argsort(dim=1, descending=True).argsort(dim=1).view_as(scores)
        return ranks < _counts(config, batch, generator)[:, None, None] * (frames - 1)
    if config.kind == "fixed":
        order = torch.tensor(_released_order(slots), device=device).argsort().expand(batch, -1)
    else:
        order = torch.rand(batch, slots, generator=generator, device=device).argsort(dim=1).argsort(dim=1)
    objects = order < _counts(config, batch, generator)[:, None]
    if config.kind == "tube" and frames > 1:
        return objects.unsqueeze(1).repeat(1, frames, 1)
    return hide_objects(objects, frames)


def hide_objects(objects: Tensor, frames: int) -> Tensor:
    """Cells (B, T, S) that hide some objects (B, S) in all frames but the first, which is their identity anchor."""
    hidden = objects.unsqueeze(1).repeat(1, frames, 1)
    hidden[:, 0] = False
    return hidden


@cache
def _released_order(slots: int) -> tuple[int, ...]:
    """Slots in the order in which the released code hides them."""
    # A numpy.random.Generator of the same seed would hide others, and to hide the same is what kind=fixed is for.
    released = np.random.RandomState(RELEASED_SEED)  # NumPy's frozen legacy generator, which the released code has
    return tuple(released.permutation(slots).tolist())


def _counts(config: MaskConfig, batch: int, generator: torch.Generator) -> Tensor:
    if not config.upto:
        return torch.full((batch,), config.count, device=generator.device)
    return torch.randint(0, config.count + 1, (batch,), generator=generator, device=generator.device)
