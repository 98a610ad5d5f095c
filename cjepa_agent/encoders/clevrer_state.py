"""The privileged encoder of CLEVRER scenes: true trajectories to slots by a fixed map, and back.

For debugging and upper bounds only; nothing here is learned. Slot i is the object with id i for the whole video, and
the last slot the background. Slots have the layout of ``SlotEncoder``'s: a place, then appearance. Where the camera
sees no object, or the scene has none with this id, the slot is empty: all numbers are 0. What a predictor cannot see
in one frame, velocity and spin, is in none of the numbers: they follow from two frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cjepa_agent.encoders.base import POSITION_DIM, POSITION_SCALES, ColourDecoder, fourier
from cjepa_agent.encoders.state import StateEncoding, appearance_basis
from envs.clevrer.camera import FOCAL, HEIGHT, REFERENCE, WIDTH
from envs.clevrer.physics import Trajectory
from envs.clevrer.render import FLOOR, PALETTE
from envs.clevrer.scene import COLOURS, MATERIALS, MAX_OBJECTS, SHAPES
from envs.clevrer.shapes import RADIUS

STATE = ("inside", "x", "y", "angle", "shape", "colour", "material")  # of an object; the last three are indices
MIDDLE, HALF_WIDTH = (-2.0, 0.0), 5.0  # of the floor that the camera sees, in world units
SYMMETRY = 4  # a cube looks the same after a quarter turn; spheres and cylinders look the same always
FINER = 2  # wavelengths, half and a quarter of the shortest of POSITION_SCALES, in which motion between frames shows
# Appearance: object, background, place in FINER wavelengths, cosine and sine of SYMMETRY times a cube's angle, and
# one-hot names.
PARTS = {
    "object": 1,
    "background": 1,
    "place": 4 * FINER,
    "turn": 2,
    "shape": len(SHAPES),
    "colour": len(COLOURS),
    "material": len(MATERIALS),
}
FEATURES = sum(PARTS.values())
SLOTS = MAX_OBJECTS + 1
SHARPNESS = 1.0  # of drawn outlines, 1/px


def scene_states(trajectory: Trajectory, frames: int) -> NDArray[np.float32]:
    """The first ``frames`` frames of a trajectory as (frames, 6, 7): numbers as in ``STATE``, 0 for ids not there.

    Raises:
        ValueError: the trajectory is shorter.
    """
    if len(trajectory.inside) < frames:
        raise ValueError(f"the trajectory has {len(trajectory.inside)} frames, asked for are {frames}")
    states = np.zeros((frames, MAX_OBJECTS, len(STATE)), np.float32)
    for column, item in enumerate(trajectory.objects):
        own = states[:, item.id]
        own[:, 0] = trajectory.inside[:frames, column]
        own[:, 1:3] = trajectory.location[:frames, column, :2]
        own[:, 3] = trajectory.orientation[:frames, column, 2]
        own[:, 4:] = SHAPES.index(item.shape), COLOURS.index(item.colour), MATERIALS.index(item.material)
    return states


class CLEVRERStateEncoder(nn.Module):
    """States of scenes to slots, see the module; the counterpart of ``SlotEncoder``.

    The first ``POSITION_DIM`` numbers of an object's slot embed where it stands on the floor, as those of
    ``SlotEncoder``. The rest is a rotation of ``PARTS``.

    Args:
        n_slots: S, must be ``SLOTS``.
        slot_dim: D, width of a slot.

    Raises:
        ValueError: sizes that do not fit.
    """

    observes, form, privileged = "state", f"({MAX_OBJECTS}, {len(STATE)})", True
    advice = "this checkpoint is privileged: its slots are made of true trajectories, not of pixels"

    def __init__(self, n_slots: int = SLOTS, slot_dim: int = 128) -> None:
        super().__init__()
        if n_slots != SLOTS or slot_dim <= POSITION_DIM + FEATURES:
            raise ValueError(
                f"encoder.kind=clevrer_state needs encoder.n_slots={SLOTS} and encoder.slot_dim above "
                f"{POSITION_DIM + FEATURES}, got {n_slots} and {slot_dim}"
            )
        self.n_slots, self.slot_dim = n_slots, slot_dim
        self.basis: Tensor
        self.register_buffer("basis", appearance_basis(slot_dim - POSITION_DIM, FEATURES), persistent=False)

    @staticmethod
    def accepts(shape: Sequence[int], dtype: str) -> bool:
        """Whether a state of this shape and type (as NumPy names it) can be encoded."""
        return tuple(shape) == (MAX_OBJECTS, len(STATE)) and dtype.startswith("float")

    def read(self, states: Tensor) -> Tensor:
        """Slots (B, S, D) of states (B, 6, 7); raises ValueError for another shape."""
        if not self.accepts(states.shape[1:], str(states.dtype).removeprefix("torch.")):
            raise ValueError(f"states must be float (B, {self.form[1:]}, got {states.dtype} {tuple(states.shape)}")
        slots: Tensor = self(states.float()).slots
        return slots

    def forward(self, states: Tensor) -> StateEncoding:
        """Encode states (B, 6, 7), float; the background's centroid is the middle."""
        inside, place, angle, names = states.split([1, 2, 1, 3], dim=-1)
        shape, colour, material = (
            nn.functional.one_hot(index.long(), count).to(states)
            for index, count in zip(names.unbind(-1), (len(SHAPES), len(COLOURS), len(MATERIALS)), strict=True)
        )
        phase = SYMMETRY * angle
        turn = torch.cat([phase.cos(), phase.sin()], dim=-1) * shape[..., SHAPES.index("cube"), None]
        centroid = (place - place.new_tensor(MIDDLE)) / HALF_WIDTH * inside
        waves = fourier(centroid, POSITION_SCALES + FINER).unflatten(-1, (2, 2, -1)) * inside[..., None, None]
        coarse, fine = (part.flatten(-3) for part in waves.split([POSITION_SCALES, FINER], dim=-1))
        features = torch.cat([inside, torch.zeros_like(inside), fine, turn, shape, colour, material], dim=-1) * inside
        background = features.new_zeros(len(features), 1, FEATURES)
        background[..., 1] = 1.0
        centroid, embedded = (nn.functional.pad(part, (0, 0, 0, 1)) for part in (centroid, coarse))
        slots = torch.cat([embedded, torch.cat([features, background], dim=1) @ self.basis], dim=-1)
        return StateEncoding(slots, centroid)


class SceneReading(NamedTuple):
    """What slots (..., S, D) of ``CLEVRERStateEncoder``, or predictions of such, say of the objects.

    Attributes:
        position: (..., 6, 2) x, y on the floor, in world units; means nothing where nothing is present.
        presence: (..., 6) 1 for an object, 0 for an empty slot; predictions lie between, and above a half count.
        angle: (..., 6) of a cube [rad, -pi/4..pi/4].
        shape, colour, material: (..., 6) most likely index in ``SHAPES``, ``COLOURS``, ``MATERIALS``.
    """

    position: Tensor
    presence: Tensor
    angle: Tensor
    shape: Tensor
    colour: Tensor
    material: Tensor


def read_scene(slots: Tensor) -> SceneReading:
    """The inverse of ``CLEVRERStateEncoder`` on slots (..., S, D)."""
    objects = slots[..., :MAX_OBJECTS, :]
    basis = appearance_basis(slots.shape[-1] - POSITION_DIM, FEATURES).to(slots)
    parts = (objects[..., POSITION_DIM:] @ basis.T).split(list(PARTS.values()), dim=-1)
    presence, _, fine, turn, shape, colour, material = parts
    coarse = objects[..., :POSITION_DIM].unflatten(-1, (2, 2, POSITION_SCALES))
    waves = torch.cat([coarse, fine.unflatten(-1, (2, 2, FINER))], dim=-1)
    return SceneReading(
        _position(waves) * HALF_WIDTH + slots.new_tensor(MIDDLE),
        presence.squeeze(-1),
        torch.atan2(turn[..., 1], turn[..., 0]) / SYMMETRY,
        shape.argmax(-1),
        colour.argmax(-1),
        material.argmax(-1),
    )


def true_scene(trajectory: Trajectory, frames: int) -> SceneReading:
    """What the slots of the first ``frames`` frames of a trajectory say; raises ValueError if it is shorter."""
    return read_scene(CLEVRERStateEncoder().read(torch.from_numpy(scene_states(trajectory, frames))))


def _position(waves: Tensor) -> Tensor:
    """Coordinates (..., 2) of ``fourier``'s embedding (..., 2, 2, scales), sines first.

    The longest wave tells where about, shorter ones how exactly.
    """
    sines, cosines = waves.unbind(-2)
    phases = torch.atan2(sines, cosines)
    place = phases[..., 0] / (math.pi / 2)
    for scale in range(1, waves.shape[-1]):
        frequency = math.pi / 2 * 2**scale
        beyond = phases[..., scale] - frequency * place
        place = place + torch.atan2(beyond.sin(), beyond.cos()) / frequency
    return place


class CLEVRERStateDecoder(ColourDecoder):
    """Draws what the slots of ``CLEVRERStateEncoder`` mean, objects as discs; without weights."""

    reconstructs = False

    def forward(self, slots: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Decode slots (B, S, D) at points (B, P, 2); returns colours (B, S, 3) and masks (B, S, P)."""
        scene = read_scene(slots)
        camera = slots.new_tensor(REFERENCE.matrix)
        place = nn.functional.pad(scene.position, (0, 1), value=RADIUS)
        projected = place @ camera[:, :3].T + camera[:, 3]
        depth = projected[..., 2:].clamp(min=RADIUS)
        pixels = slots.new_tensor((WIDTH, HEIGHT))
        distance = (((points.unsqueeze(1) + 1) / 2 * pixels) - (projected[..., :2] / depth).unsqueeze(2)).norm(dim=-1)
        opacity = (SHARPNESS * (FOCAL * RADIUS / depth - distance)).sigmoid() * (scene.presence > 0.5).unsqueeze(-1)
        nearer = depth.transpose(1, 2) < depth  # (B, i, j): j hides i
        masks = opacity * (1 - nearer.unsqueeze(-1) * opacity.unsqueeze(1)).prod(2)
        colours = slots.new_tensor([PALETTE[name] for name in COLOURS])[scene.colour]
        floor = slots.new_full((len(slots), 1, 3), FLOOR)
        floor_mask = (1 - masks.sum(1, keepdim=True)).clamp(min=0)
        return torch.cat([colours, floor], dim=1) / 255, torch.cat([masks, floor_mask], dim=1)
