"""The privileged encoder: Push-T's true state to slots by a fixed map. For debugging and upper bounds only.

Nothing here is learned. Slots have the layout of ``SlotEncoder``'s, so that whatever comes after them is the same;
what changes in a score when it plans from these slots is what is lost between pixels and slots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cjepa_agent.encoders.base import POSITION_DIM, POSITION_SCALES, ColourDecoder, centroid_of, fourier

STATE_DIM = 7  # agent x, y, block x, y [px], block angle [rad], agent vx, vy [px/s]
SLOTS = ("background", "goal", "block", "agent")  # the renderer's order, from back to front
HARMONICS = 3  # cosine and sine of 1, 2 and 3 times the angle
FEATURES = 2 * HARMONICS + len(SLOTS)
HALF_ARENA = 256.0  # px
GOAL_POSE = (256.0, 256.0, math.pi / 4)  # of the drawn green goal, unless an environment is told another
COLOURS = ((255, 255, 255), (144, 238, 144), (119, 136, 153), (65, 105, 225))  # as the renderer draws the slots
AGENT_RADIUS = 15.0  # px
T_BOXES = ((0.0, 15.0, 60.0, 15.0), (0.0, 75.0, 15.0, 45.0))  # centre x, y and half width, height, px, body frame
SHARPNESS = 0.5  # of drawn outlines, 1/px


class StateEncoding(NamedTuple):
    """Slots (B, S, D) and their centroids (B, S, 2), (x, y) in [-1, 1]."""

    slots: Tensor
    centroid: Tensor


def appearance_basis(width: int, features: int = FEATURES) -> Tensor:
    """``features`` orthonormal rows of ``width`` numbers.

    Cosines, not random numbers: those differ between releases of PyTorch, and a checkpoint relies on these.
    """
    frequency, place = torch.arange(1, features + 1), torch.arange(width, dtype=torch.float64) + 0.5
    return (math.sqrt(2 / width) * (math.pi / width * torch.outer(frequency, place)).cos()).float()


def angle_of(slots: Tensor) -> Tensor:
    """Angle (...) [rad, -pi..pi] read back from the appearance part of slots (..., D)."""
    basis = appearance_basis(slots.shape[-1] - POSITION_DIM).to(slots)
    cos, sin = (slots[..., POSITION_DIM:] @ basis[:2].T).unbind(-1)
    return torch.atan2(sin, cos)


class StateEncoder(nn.Module):
    """True states to slots, see the module; the counterpart of ``SlotEncoder``.

    The first ``POSITION_DIM`` numbers of a slot embed its centroid. The appearance is a rotation of the slot's
    one-hot index and, for block and goal, the cosines and sines of multiples of the angle.

    Args:
        n_slots: S, must be that of ``SLOTS``.
        slot_dim: D, width of a slot.

    Raises:
        ValueError: sizes that do not fit.
    """

    observes, form, privileged = "state", f"({STATE_DIM},)", True
    advice = (
        "this checkpoint is privileged: it plans from the simulator's true state, not from pixels; "
        "call predict({**observation, **info})"
    )

    def __init__(self, n_slots: int = len(SLOTS), slot_dim: int = 128) -> None:
        super().__init__()
        if n_slots != len(SLOTS) or slot_dim <= POSITION_DIM + FEATURES:
            raise ValueError(
                f"encoder.kind=state needs encoder.n_slots={len(SLOTS)} and encoder.slot_dim above "
                f"{POSITION_DIM + FEATURES}, got {n_slots} and {slot_dim}"
            )
        self.n_slots, self.slot_dim = n_slots, slot_dim
        self.basis: Tensor
        self.register_buffer("basis", appearance_basis(slot_dim - POSITION_DIM), persistent=False)

    @staticmethod
    def accepts(shape: Sequence[int], dtype: str) -> bool:
        """Whether a state of this shape and type (as NumPy names it) can be encoded."""
        return tuple(shape) == (STATE_DIM,) and dtype.startswith(("float", "int"))

    def read(self, states: Tensor) -> Tensor:
        """Slots (B, S, D) of states (B, 7); raises ValueError for another shape."""
        if not self.accepts(states.shape[1:], str(states.dtype).removeprefix("torch.")):
            raise ValueError(f"states must be (B, {STATE_DIM}), got {states.dtype} {tuple(states.shape)}")
        slots: Tensor = self(states.float()).slots
        return slots

    def forward(self, states: Tensor) -> StateEncoding:
        """Encode states (B, 7), float."""
        centre, goal = states.new_full((len(states), 2), HALF_ARENA), states.new_tensor(GOAL_POSE)
        place = torch.stack([centre, goal[:2].expand_as(centre), states[:, 2:4], states[:, :2]], dim=1)
        centroid = place / HALF_ARENA - 1
        angle = torch.stack([goal[2].expand(len(states)), states[:, 4]], dim=1)  # of goal and block
        phases = angle.unsqueeze(-1) * torch.arange(1, HARMONICS + 1).to(angle)
        turns = torch.stack([phases.cos(), phases.sin()], dim=-1).flatten(-2)
        index = torch.eye(self.n_slots).to(turns).expand(len(states), -1, -1)
        features = torch.cat([nn.functional.pad(turns, (0, 0, 1, 1)), index], dim=-1)
        slots = torch.cat([fourier(centroid, POSITION_SCALES), features @ self.basis], dim=-1)
        return StateEncoding(slots, centroid)


class StateDecoder(ColourDecoder):
    """Draws what the slots of ``StateEncoder`` mean; the counterpart of ``SlotDecoder``, without weights."""

    reconstructs = False

    def forward(self, slots: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Decode slots (B, S, D) at points (B, P, 2); returns colours (B, S, 3) and masks (B, S, P)."""
        relative = HALF_ARENA * (points.unsqueeze(1) - centroid_of(slots).unsqueeze(2))
        angle = angle_of(slots)[:, 1:3, None]
        depth = torch.cat([_inside_t(relative[:, 1:3], angle), AGENT_RADIUS - relative[:, 3:].norm(dim=-1)], dim=1)
        opacity = nn.functional.pad((SHARPNESS * depth).sigmoid(), (0, 0, 1, 0), value=1.0)
        hidden = nn.functional.pad((1 - opacity[:, 1:]).flip(1).cumprod(1).flip(1), (0, 0, 0, 1), value=1.0)
        colours = slots.new_tensor(COLOURS) / 255
        return colours.expand(len(slots), -1, -1), opacity * hidden


def _inside_t(relative: Tensor, angle: Tensor) -> Tensor:
    """How far (..., P) [px] points (..., P, 2) relative to a T at ``angle`` (..., 1) lie inside it."""
    x, y = relative.unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    own = torch.stack([x * cos + y * sin, y * cos - x * sin], dim=-1).unsqueeze(-2)
    centre, half = relative.new_tensor(T_BOXES).split(2, dim=-1)
    inside: Tensor = (half - (own - centre).abs()).amin(-1).amax(-1)
    return inside
