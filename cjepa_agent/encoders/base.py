"""What all encoders of frames share: interfaces, and frames and places as numbers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONFIG, WEIGHTS = "encoder.json", "encoder.safetensors"  # of the folder of a trained encoder
POSITION_SCALES = 3  # wavelengths of the centroid's embedding: 4, 2 and 1 times half the frame
POSITION_DIM = 4 * POSITION_SCALES


class SlotOutput(NamedTuple):
    """What the encoder found in a frame.

    Attributes:
        slots: (B, S, D); the first ``POSITION_DIM`` numbers embed the centroid, the rest is appearance.
        centroid: (B, S, 2) attention centroid, (x, y) in [-1, 1].
        attention: (B, S, G, G) share of each grid position that each slot takes; sums to 1 over slots.
    """

    slots: Tensor
    centroid: Tensor
    attention: Tensor


def grid_coordinates(size: int) -> Tensor:
    """Cell centres of a ``size`` x ``size`` grid as (size * size, 2) (x, y) in [-1, 1], row by row."""
    line = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def fourier(coordinates: Tensor, scales: int) -> Tensor:
    """Sines and cosines (..., 4 * scales) of (..., 2) coordinates at frequencies pi/2, pi, 2 pi, ..."""
    frequencies = math.pi / 2 * 2.0 ** torch.arange(scales, device=coordinates.device, dtype=coordinates.dtype)
    phases = coordinates.unsqueeze(-1) * frequencies
    return torch.cat([phases.sin(), phases.cos()], dim=-1).flatten(-2)


def prepare_frames(frames: Tensor, size: int) -> Tensor:
    """Frames (B, H, W, 3) uint8 to (B, 3, size, size) float in [0, 1], resized if need be.

    Raises:
        ValueError: another shape or dtype.
    """
    if not FrameEncoder.accepts(frames.shape[1:], str(frames.dtype).removeprefix("torch.")):
        raise ValueError(f"frames must be uint8 (B, H, W, 3), got {frames.dtype} {tuple(frames.shape)}")
    pixels = frames.permute(0, 3, 1, 2).float() / 255
    if pixels.shape[-2:] != (size, size):
        pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return pixels


def at_points(maps: Tensor, points: Tensor) -> Tensor:
    """Values (B, C, P) at points (B, P, 2) in [-1, 1] of maps (B, C, H, W), bilinear."""
    return F.grid_sample(maps, points.unsqueeze(1), padding_mode="border", align_corners=False).squeeze(2)


class FrameEncoder(nn.Module):
    """What encoders of frames have in common.

    Attributes:
        observes: what is encoded, as observations and episode files call it; ``StateEncoder`` observes another thing.
        form: its shape and type, for messages.
        privileged: whether it is something that an agent cannot see.
        advice: how to get it, for messages.
    """

    observes, form, privileged = "pixels", "uint8 (H, W, 3)", False
    advice = "use obs_type='goal'"

    @staticmethod
    def accepts(shape: Sequence[int], dtype: str) -> bool:
        """Whether a frame of this shape and type (as NumPy names it) can be encoded."""
        return dtype == "uint8" and len(shape) == 3 and shape[2] == 3

    def load_weights(self) -> None:
        """Before training: take the published weights of what stays frozen, where there is such a part.

        Raises:
            ValueError: a package is missing, or the weights are of another kind or of other sizes.
            FileNotFoundError: neither the Hub nor the disk has them.
        """


class VideoEncoder(FrameEncoder, ABC):
    """Frames to slots that can be carried through a video; else with the interface of ``SlotEncoder``.

    Attributes:
        n_slots, slot_dim: S and D.
    """

    n_slots: int
    slot_dim: int

    @abstractmethod
    def read(self, frames: Tensor, initial: Tensor | None = None) -> Tensor:
        """Slots (B, S, D) of single frames (B, H, W, 3), uint8 of any size.

        Args:
            frames: each the first of a video.
            initial: slots (B, S, D) to go on from in place of the first frame's own start.

        Raises:
            ValueError: another shape or dtype.
        """

    @abstractmethod
    def track(self, frames: Tensor, noise: Tensor | None = None) -> Tensor:
        """Slots (B, T, S, D) of videos (B, T, H, W, 3) uint8; ``noise`` is standard normal, of the encoder's shape."""


class ColourDecoder(nn.Module):
    """Slots (B, S, D) at points (B, P, 2) in [-1, 1] to one colour per slot (B, S, 3) and masks (B, S, P).

    Attributes:
        reconstructs: whether it was trained to give back the encoder's frames; others only show where slots are.
    """

    reconstructs: ClassVar[bool] = True

    def colours_at(self, slots: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Colours (B, S, P, 3), about 0..1, and masks (B, S, P), which sum to 1 over slots.

        Of a slot with one colour everywhere they are (B, S, 1, 3).
        """
        colours, masks = self(slots, points)
        return colours.unsqueeze(2), masks

    def paint(self, slots: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Blended colours (B, P, 3), about 0..1, and masks (B, S, P), which sum to 1 over slots."""
        colours, masks = self(slots, points)
        return masks.transpose(1, 2) @ colours, masks


def centroid_of(slots: Tensor) -> Tensor:
    """Centroid (..., 2) in [-1, 1], read back from the position part of slots (..., D)."""
    longest = slots[..., :POSITION_DIM].unflatten(-1, (2, 2, POSITION_SCALES))[..., 0]
    return torch.atan2(longest[..., 0], longest[..., 1]) / (math.pi / 2)
