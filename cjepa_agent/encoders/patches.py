"""Patch tokens of frames, which DINO-WM (arXiv 2411.04983) predicts and plans with.

A network turns each patch of a frame into a token, which takes the place of a slot. It is small and learned from frames
by reconstruction, or it has published weights and stays frozen while only the decoder is learned, as in DINO-WM; the
world model never changes it. Unlike slots, tokens stay where they are: none is an object.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from cjepa_agent.encoders.base import CONFIG, WEIGHTS, FrameEncoder, at_points, prepare_frames
from cjepa_agent.encoders.dinov2 import SMALL, SMALL_WITH_REGISTERS, Backbone, DINOv2, pretrained
from cjepa_agent.files import read_json
from cjepa_agent.tensors import check_tensors, read_tensors
from configs.kinds import of_kind


@dataclass(frozen=True)
class PatchTokenConfig(ABC):
    """What all patch encoders and their decoder have in common.

    Attributes:
        kind: name of the architecture.
        slot_dim: D, channels of a token.
        image_size: side of the square input frames, px, a multiple of ``patch``; others are resized, but not in
            training.
        patch: side of a patch, px.
        decoder_width: channels of the decoder.
        weights: where the encoder's weights come from, which then stay frozen; read by ``stage=encoder`` alone. Empty
            to learn all.
    """

    kind: str
    slot_dim: int
    image_size: int
    patch: int
    decoder_width: int
    weights: str

    def __post_init__(self) -> None:
        if min(self.slot_dim, self.image_size, self.patch, self.decoder_width) < 1:
            raise ValueError(f"encoder sizes must be positive, got {self}")
        if self.image_size % self.patch:
            raise ValueError(f"encoder.image_size {self.image_size} is not a multiple of encoder.patch {self.patch}")

    @property
    def grid(self) -> int:
        """Patches along a side of a frame."""
        return self.image_size // self.patch

    @property
    def n_slots(self) -> int:
        """S, patches of a frame."""
        return self.grid**2

    @abstractmethod
    def backbone(self) -> Backbone:
        """The network that makes tokens, with random weights."""

    @abstractmethod
    def pretrained(self) -> Backbone:
        """A network with the weights that ``weights`` names.

        Raises:
            ValueError: a package is missing, or the weights are of another kind.
            FileNotFoundError: neither the Hub nor the disk has them.
        """

    def build(self) -> tuple[PatchEncoder, PatchDecoder]:
        """Encoder and decoder with random weights."""
        return PatchEncoder(self), PatchDecoder(self)


@dataclass(frozen=True)
class PatchConfig(PatchTokenConfig):
    """A small vision transformer of DINOv2's architecture, learned from the frames by reconstruction.

    Attributes:
        kind: ``patches``.
        depth: blocks of the encoder.
        heads: its attention heads.
        positions: patches along a side that its position embeddings were learned for; null for those of a frame.
        registers: tokens of no place beside the patches', as in DINOv2 with registers; they are not predicted.
        weights: DINOv2's, a Hub id or folder, or the folder of a trained ``patches`` encoder, which stay frozen; read
            by ``stage=encoder`` alone. Empty to learn all.
    """

    kind: str = "patches"
    slot_dim: int = 64
    image_size: int = 64
    patch: int = 8
    decoder_width: int = 128
    weights: str = ""
    depth: int = 3
    heads: int = 4
    positions: int | None = None
    registers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.depth, self.heads, 1 if self.positions is None else self.positions, 1 + self.registers) < 1:
            raise ValueError(f"encoder sizes must be positive, got {self}")
        if self.slot_dim % self.heads:
            raise ValueError(f"encoder.slot_dim {self.slot_dim} is not a multiple of encoder.heads {self.heads}")

    def backbone(self) -> DINOv2:
        """See ``PatchTokenConfig``."""
        positions = self.positions or self.grid
        return DINOv2(self.slot_dim, self.depth, self.heads, self.patch, positions, registers=self.registers)

    def pretrained(self) -> DINOv2:
        """See ``PatchTokenConfig``."""
        return pretrained_backbone(self.weights)


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
    decoder_width: int = 256
    weights: str = SMALL
    depth: int = 12
    heads: int = 6
    positions: int | None = 37


@dataclass(frozen=True)
class DINOv2RegistersConfig(DINOv2PatchConfig):
    """DINO-WM-Reg: the same tokens of DINOv2 with registers.

    Attributes:
        kind: ``dinov2_reg``.
    """

    kind: str = "dinov2_reg"
    weights: str = SMALL_WITH_REGISTERS
    registers: int = 4


def pretrained_backbone(weights: str) -> DINOv2:
    """A DINOv2 from the Hub or a folder, see ``dinov2.pretrained``, or that of an encoder folder of patches.

    Raises:
        ValueError: ``transformers`` is needed and not installed, or the weights are of another kind.
        FileNotFoundError: neither the Hub nor the disk has them.
    """
    folder = Path(weights)
    if not (folder / CONFIG).is_file():
        return pretrained(weights)
    kinds = {kind.kind: kind for kind in (PatchConfig, DINOv2PatchConfig, DINOv2RegistersConfig)}
    try:
        config = of_kind("encoder", kinds, read_json(folder / CONFIG))
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} is no configuration of an encoder of patches: {error}") from error
    network, prefix = config.backbone(), "encoder.backbone."
    tensors = read_tensors(folder / WEIGHTS)
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    check_tensors(folder / WEIGHTS, tensors, network.state_dict())
    network.load_state_dict(tensors, strict=True)
    return network.eval()


class PatchEncoding(NamedTuple):
    """Tokens (B, S, D), row by row of the frame."""

    slots: Tensor


class PatchEncoder(FrameEncoder):
    """Frames to patch tokens.

    Args:
        config: architecture.
    """

    def __init__(self, config: PatchTokenConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = config.backbone()

    def load_weights(self) -> None:
        """See ``FrameEncoder``; nothing is loaded where all is to be learned."""
        if self.config.weights:
            self.backbone.freeze_as(self.config.pretrained(), self.config.weights)

    def read(self, frames: Tensor) -> Tensor:
        """Tokens (B, S, D) of frames (B, H, W, 3), uint8 of any size; raises ValueError for another shape or dtype."""
        tokens: Tensor = self(prepare_frames(frames, self.config.image_size)).slots
        return tokens

    def forward(self, frames: Tensor) -> PatchEncoding:
        """Encode frames (B, 3, H, W), float in [0, 1]."""
        return PatchEncoding(self.backbone(self.backbone.normalised(frames)))


class PatchDecoder(nn.Module):
    """Patch tokens to pixels, each patch from its own and its neighbours' tokens.

    Args:
        config: architecture.

    Attributes:
        reconstructs: see ``ColourDecoder``.
    """

    reconstructs: ClassVar[bool] = True

    def __init__(self, config: PatchTokenConfig) -> None:
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
