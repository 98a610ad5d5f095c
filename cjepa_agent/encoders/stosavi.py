"""StoSAVi (Wu et al. 2023, SlotFormer): slot attention over a CNN from sampled slots, carried through a video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cjepa_agent.encoders.base import ColourDecoder, VideoEncoder, at_points, prepare_frames

ATTENTION_EPS = 1e-6
GROWTH = 8  # how much larger the decoder makes the grid that slots are broadcast to


@dataclass(frozen=True)
class StoSAViConfig:
    """StoSAVi (SAVi in C-JEPA's tables); the defaults are those of the released CLEVRER encoder.

    Attributes:
        kind: ``stosavi``.
        n_slots: S.
        slot_dim: D.
        width: channels of encoder and decoder CNN.
        iterations: rounds of slot attention per frame.
        image_size: side of the square input frames, px, a multiple of 8; others are resized, but not in training.
    """

    kind: str = "stosavi"
    n_slots: int = 7
    slot_dim: int = 128
    width: int = 64
    iterations: int = 2
    image_size: int = 64

    def __post_init__(self) -> None:
        if min(self.n_slots, self.slot_dim, self.width, self.iterations, self.image_size) < 1:
            raise ValueError(f"encoder sizes must be positive, got {self}")
        if self.image_size % GROWTH:
            raise ValueError(f"encoder.image_size must be a multiple of {GROWTH} for stosavi, got {self.image_size}")

    def build(self) -> tuple[StoSAViEncoder, BroadcastDecoder]:
        """Encoder and decoder with random weights."""
        return StoSAViEncoder(self), BroadcastDecoder(self)


@dataclass(frozen=True)
class SAViConfig(StoSAViConfig):
    """StoSAVi for Push-T, small enough to train on a CPU.

    Attributes:
        kind: ``savi``.
    """

    kind: str = "savi"
    n_slots: int = 4
    width: int = 16


class _Position(nn.Module):
    """Adds a linear map of (y, x, 1 - y, 1 - x) to a grid of features."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        line = torch.linspace(0, 1, size)
        place = torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1)
        self.grid: Tensor
        self.register_buffer("grid", torch.cat([place, 1 - place], dim=-1).unsqueeze(0), persistent=False)
        self.dense = nn.Linear(4, width)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, width, size, size) with their positions."""
        place: Tensor = self.dense(self.grid)
        return features + place.permute(0, 3, 1, 2)


class _SlotAttention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm_inputs = nn.LayerNorm(dim)
        self.project_q = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim, bias=False))
        self.project_k, self.project_v = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.gru = nn.GRUCell(dim, dim)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))

    def forward(self, slots: Tensor, features: Tensor, iterations: int) -> Tensor:
        """Slots (B, S, D) after some rounds over features (B, positions, D)."""
        features = self.norm_inputs(features)
        keys, values = self.project_k(features), self.project_v(features)
        for _ in range(iterations):
            logits = self.project_q(slots) @ keys.transpose(1, 2) * keys.shape[-1] ** -0.5
            weights = logits.softmax(dim=1) + ATTENTION_EPS
            updates = weights / weights.sum(-1, keepdim=True) @ values
            slots = self.gru(updates.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
            slots = slots + self.mlp(slots)
        return slots


class _Transition(nn.Module):
    """An MLP with a residual from its normed input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))

    def forward(self, slots: Tensor) -> Tensor:
        normed = self.ln(slots)
        moved: Tensor = normed + self.mlp(normed)
        return moved


class CarriedSlots(NamedTuple):
    """What the encoder found in videos, and how sure it was of where attention starts.

    Attributes:
        slots: (B, T, S, D).
        log_variance: (B, T, S, D) of the kernels, the slots that attention starts from.
    """

    slots: Tensor
    log_variance: Tensor


class StoSAViEncoder(VideoEncoder):
    """Frames to slots.

    The authors draw the slots that attention starts from, in evaluation too; here they are the mean of that
    distribution unless noise is given, so that the same frame has the same slots.

    Args:
        config: architecture.
    """

    def __init__(self, config: StoSAViConfig) -> None:
        super().__init__()
        self.config, self.n_slots, self.slot_dim = config, config.n_slots, config.slot_dim
        width, dim = config.width, config.slot_dim
        convolutions: list[nn.Module] = []
        for layer in range(4):
            convolution = nn.Conv2d(width if layer else 3, width, 5, padding=2)
            convolutions.append(nn.Sequential(convolution, nn.ReLU()) if layer < 3 else nn.Sequential(convolution))
        self.encoder = nn.Sequential(*convolutions)
        self.encoder_pos_embedding = _Position(width, config.image_size)
        self.encoder_out_layer = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, dim), nn.ReLU(), nn.Linear(dim, dim)
        )
        self.init_latents = nn.Parameter(torch.randn(1, config.n_slots, dim))
        self.kernel_dist_layer = nn.Sequential(nn.Linear(dim, 2 * dim))
        self.slot_attention = _SlotAttention(dim)
        self.predictor = _Transition(dim)

    def read(self, frames: Tensor, initial: Tensor | None = None) -> Tensor:
        """See ``VideoEncoder``; ``initial`` counts as the slots of the frame before."""
        pixels = prepare_frames(frames, self.config.image_size)
        return self.carry(pixels.unsqueeze(1), initial=initial).slots[:, 0]

    def track(self, frames: Tensor, noise: Tensor | None = None) -> Tensor:
        """Slots of videos, see ``VideoEncoder``; ``noise`` (B, T, S, D) is standard normal, None means 0."""
        return self.carry(torch.stack([prepare_frames(video, self.config.image_size) for video in frames]), noise).slots

    def carry(self, videos: Tensor, noise: Tensor | None = None, initial: Tensor | None = None) -> CarriedSlots:
        """Slots of each frame, from those of the frame before it.

        Args:
            videos: (B, T, 3, H, W) in [0, 1], of the configured size.
            noise: (B, T, S, D), standard normal, of which kernels are made; None for their mean.
            initial: (B, S, D) slots of the frame before the first; None at the beginning of a video.
        """
        slots, path = initial, []
        for time, frames in enumerate(videos.unbind(1)):
            latents = self.init_latents.expand(len(frames), -1, -1) if slots is None else self.predictor(slots)
            mean, log_variance = self.kernel_dist_layer(latents).chunk(2, dim=-1)
            kernels = mean if noise is None else mean + noise[:, time] * (0.5 * log_variance).exp()
            slots = self.slot_attention(kernels, self.features(frames), self.config.iterations)
            path.append((slots, log_variance))
        return CarriedSlots(*(torch.stack(parts, dim=1) for parts in zip(*path, strict=True)))

    def features(self, frames: Tensor) -> Tensor:
        """Features (B, positions, D) of frames (B, 3, H, W) in [0, 1]."""
        grid = self.encoder_pos_embedding(self.encoder(2 * frames - 1))
        features: Tensor = self.encoder_out_layer(grid.flatten(2).transpose(1, 2))
        return features


class BroadcastDecoder(ColourDecoder):
    """Slots to pixels: each is broadcast to a grid and drawn by itself, with an opacity.

    Args:
        config: architecture.
    """

    def __init__(self, config: StoSAViConfig) -> None:
        super().__init__()
        dim, width, self.broadcast = config.slot_dim, config.width, config.image_size // GROWTH
        layers: list[nn.Module] = []
        for layer, stride in enumerate((2, 2, 2, 1)):
            convolution = nn.ConvTranspose2d(width if layer else dim, width, 5, stride, 2, stride - 1)
            layers.append(nn.Sequential(convolution, nn.ReLU()))
        self.decoder = nn.Sequential(*layers, nn.Conv2d(width, 4, 1))
        self.decoder_pos_embedding = _Position(dim, self.broadcast)

    def draw(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Colours (B, S, 3, H, W) in -1..1 and masks (B, S, H, W), summing to 1 over slots, of slots (B, S, D)."""
        grid = slots.flatten(0, 1)[:, :, None, None].expand(-1, -1, self.broadcast, self.broadcast)
        drawn = self.decoder(self.decoder_pos_embedding(grid)).unflatten(0, slots.shape[:2])
        return drawn[:, :, :3], drawn[:, :, 3].softmax(dim=1)

    def blend(self, slots: Tensor) -> Tensor:
        """Frames (B, 3, H, W) in -1..1, the colours of slots (B, S, D) by their masks."""
        colours, masks = self.draw(slots)
        return (colours * masks.unsqueeze(2)).sum(1)

    def forward(self, slots: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Decode slots (B, S, D) at points (B, P, 2) in [-1, 1].

        Returns:
            Colours (B, S, 3), about 0..1, the mean of each slot over its mask; masks (B, S, P).
        """
        colours, masks = self.draw(slots)
        shares = masks / masks.sum((2, 3), keepdim=True)
        return (colours * shares.unsqueeze(2)).sum((3, 4)) / 2 + 0.5, at_points(masks, points)

    def paint(self, slots: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """See ``ColourDecoder``; colours are those drawn at each point, not the means of slots."""
        colours, masks = self.draw(slots)
        frames = (colours * masks.unsqueeze(2)).sum(1) / 2 + 0.5
        return at_points(frames, points).transpose(1, 2), at_points(masks, points)
