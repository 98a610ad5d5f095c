"""Patch tokens of frames, which DINO-WM (arXiv 2411.04983) predicts and plans with.

A vision transformer of DINOv2's architecture turns each patch into a token, which takes the place of a slot. It is
small and learned from frames by reconstruction, or it has Meta's weights and stays frozen while only the decoder is
learned, as in DINO-WM; the world model never changes it. Unlike slots, tokens stay where they are: none is an object.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cjepa_agent.dinov2 import SMALL, DINOv2, normalised, pretrained
from cjepa_agent.encoder import FrameEncoder, at_points, prepare_frames
from cjepa_agent.tensors import check_tensors


@dataclass(frozen=True)
class PatchConfig:
    """Architecture of the patch encoder and its decoder.

    Attributes:
        kind: ``patches``.
        slot_dim: D, channels of a token.
        image_size: side of the square input frames, px, a multiple of ``patch``; frames of other sizes are resized.
        patch: side of a patch, px.
        depth: blocks of the encoder.
        heads: its attention heads.
        positions: patches along a side that its position embeddings were learned for; null for those of a frame.
        decoder_width: channels of the decoder.
        weights: DINOv2's, which stay frozen: a Hub id or folder, read by ``stage=encoder`` alone; empty to learn all.
    """

    kind: str = "patches"
    slot_dim: int = 64
    image_size: int = 64
    patch: int = 8
    depth: int = 3
    heads: int = 4
    positions: int | None = None
    decoder_width: int = 128
    weights: str = ""

    def __post_init__(self) -> None:
        sizes = (self.slot_dim, self.image_size, self.patch, self.depth, self.heads, self.decoder_width)
        if min(*sizes, 1 if self.positions is None else self.positions) < 1:
            raise ValueError(f"encoder sizes must be positive, got {self}")
        if self.image_size % self.patch:
            raise ValueError(f"encoder.image_size {self.image_size} is not a multiple of encoder.patch {self.patch}")
        if self.slot_dim % self.heads:
            raise ValueError(f"encoder.slot_dim {self.slot_dim} is not a multiple of encoder.heads {self.heads}")

    @property
    def grid(self) -> int:
        """Patches along a side of a frame."""
        return self.image_size // self.patch

    @property
    def n_slots(self) -> int:
        """S, patches of a frame."""
        return self.grid**2

    def build(self) -> tuple[PatchEncoder, PatchDecoder]:
        """Encoder and decoder with random weights."""
        return PatchEncoder(self), PatchDecoder(self)


@dataclass(frozen=True)
class DINOv2PatchConfig(PatchConfig):
    """DINO-WM's own: 14 x 14 tokens of DINOv2, frozen; only the decoder is learned. Frames of 196 px suit it best.

    Attributes:
        kind: ``dinov2``.
    """

    kind: str = "dinov2"
    slot_dim: int = 384
    image_size: int = 196
    patch: int = 14
    depth: int = 12
    heads: int = 6
    positions: int | None = 37
    decoder_width: int = 256
    weights: str = SMALL


class PatchEncoding(NamedTuple):
    """Tokens (B, S, D), row by row of the frame."""

    slots: Tensor


class PatchEncoder(FrameEncoder):
    """Frames to patch tokens.

    Args:
        config: architecture.
    """

    def __init__(self, config: PatchConfig) -> None:
        super().__init__()
        self.image_size, self.weights = config.image_size, config.weights
        self.backbone = DINOv2(
            config.slot_dim, config.depth, config.heads, config.patch, config.positions or config.grid
        )

    def load_weights(self) -> None:
        """Take DINOv2's weights and train no more.

        Raises:
            ValueError: ``transformers`` is not installed, or the weights are of other sizes.
            FileNotFoundError: neither the Hub nor the disk has them.
        """
        tensors = pretrained(self.weights).state_dict()
        check_tensors(Path(self.weights), tensors, self.backbone.state_dict())
        self.backbone.load_state_dict(tensors, strict=True)
        self.requires_grad_(False)

    def read(self, frames: Tensor) -> Tensor:
        """Tokens (B, S, D) of frames (B, H, W, 3), uint8 of any size; raises ValueError for another shape or dtype."""
        tokens: Tensor = self(prepare_frames(frames, self.image_size)).slots
        return tokens

    def forward(self, frames: Tensor) -> PatchEncoding:
        """Encode frames (B, 3, H, W), float in [0, 1]."""
        return PatchEncoding(self.backbone(normalised(frames)))


class PatchDecoder(nn.Module):
    """Patch tokens to pixels, each patch from its own and its neighbours' tokens.

    Args:
        config: architecture.
    """

    def __init__(self, config: PatchConfig) -> None:
        super().__init__()
        self.grid, width = config.grid, config.decoder_width
        self.layers = nn.Sequential(
            nn.Conv2d(config.slot_dim, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, 3 * config.patch**2, 1),
            nn.PixelShuffle(config.patch),
        )

    def forward(self, slots: Tensor, points: Tensor) -> Tensor:
        """Colours (B, P, 3), about 0..1, at points (B, P, 2) in [-1, 1] of tokens (B, S, D)."""
        frames = self.layers(slots.transpose(1, 2).unflatten(2, (self.grid, self.grid))).float() + 0.5
        return at_points(frames, points).transpose(1, 2)

    def paint(self, slots: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """The same colours, and masks (B, S, P): 1 where a point lies in the patch, else 0."""
        column, row = ((points + 1) / 2 * self.grid).long().clamp(0, self.grid - 1).unbind(-1)
        patch = torch.arange(self.grid**2, device=points.device).unsqueeze(-1)
        return self(slots, points), (patch == (row * self.grid + column).unsqueeze(1)).float()
