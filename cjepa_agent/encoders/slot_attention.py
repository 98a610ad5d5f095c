"""The object-centric encoder: a frame in, ``S`` slots of ``D`` numbers out.

``SlotEncoder`` belongs to the SAVi family (Kipf et al. 2022): slot attention (Locatello et al. 2020) from learned
initial slots over a small CNN, trained from pixels alone. What makes it bind on frames that are mostly empty:

- features are standardised across positions before keys and values, and keys are local;
- slots see, and are decoded in, coordinates relative to their attention centroid (the translation part of
  Invariant Slot Attention, Biza et al. 2023); the centroid itself is the first part of the slot vector;
- in training, attention and decoded masks must both explain sampled pixels as a mixture of one colour per slot
  (``cjepa_agent.training.encoder_stage``).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cjepa_agent.encoders.base import (
    POSITION_DIM,
    POSITION_SCALES,
    ColourDecoder,
    FrameEncoder,
    SlotOutput,
    centroid_of,
    fourier,
    grid_coordinates,
    prepare_frames,
)

MOMENT_DIRECTIONS, MOMENT_SCALES = 8, 4


def _moment_frequencies() -> Tensor:
    """Plane waves (2, MOMENT_DIRECTIONS * MOMENT_SCALES) in which a mask's shape is measured."""
    angle = torch.arange(MOMENT_DIRECTIONS) * math.pi / MOMENT_DIRECTIONS
    direction = torch.stack([angle.cos(), angle.sin()])
    scale = math.pi * 2.0 ** torch.arange(MOMENT_SCALES)
    return (direction.unsqueeze(-1) * scale).reshape(2, -1)


def standardised(features: Tensor) -> Tensor:
    """Features (B, C, G, G) as (B, G * G, C), each channel with mean 0 and deviation 1 over positions.

    Over positions, not channels: nearly all positions are background, and only the difference from it tells objects
    apart.
    """
    features = features.flatten(2).transpose(1, 2).float()
    return (features - features.mean(1, keepdim=True)) / (features.std(1, keepdim=True) + 1e-3)


class FeatureGrid(nn.Module):
    """CNN from frames (B, 3, H, W) to features on a grid of half the frame's side.

    ``local`` features (colour and a small receptive field) become keys: slots compete for positions by what is seen
    just there, which keeps masks sharp and small things apart. ``wide`` features become values.

    Args:
        width: channels.
        standardise: see ``standardised``; needed where the background is not known.
    """

    def __init__(self, width: int, standardise: bool = True) -> None:
        super().__init__()
        self.standardise, half = standardise, width // 2
        self.fine = nn.Conv2d(3, half, 5, stride=2, padding=2)
        self.coarse = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(half, width, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.merge = nn.Conv2d(half + width, width, 1)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Local (B, G * G, 3 + width / 2) and wide (B, G * G, width) features."""
        frames = frames.contiguous(memory_format=torch.channels_last)  # half again as fast on a CPU
        fine = self.fine(frames)
        coarse = F.interpolate(self.coarse(fine), scale_factor=2.0, mode="bilinear", align_corners=False)
        wide = self.merge(torch.cat([fine, coarse], dim=1).relu())
        local = torch.cat([F.avg_pool2d(frames, 2), fine], dim=1)
        if self.standardise:
            return standardised(local), standardised(wide)
        return local.flatten(2).transpose(1, 2), wide.flatten(2).transpose(1, 2)


class SlotEncoder(FrameEncoder):
    """Frames to slots; deterministic, one role per slot because each slot starts from its own learned vector.

    Args:
        n_slots: S.
        slot_dim: D, width of a slot.
        image_size: side of the square input frames, px.
        width: channels of the CNN and of the attention.
        iterations: rounds of slot attention.
    """

    def __init__(
        self, n_slots: int = 4, slot_dim: int = 128, image_size: int = 64, width: int = 64, iterations: int = 2
    ) -> None:
        super().__init__()
        self.n_slots, self.slot_dim, self.image_size = n_slots, slot_dim, image_size
        self.iterations, self.grid = iterations, image_size // 2
        self.features = FeatureGrid(width)
        self.initial = nn.Parameter(torch.empty(n_slots, width))
        nn.init.orthogonal_(self.initial, gain=math.sqrt(width) / 2)
        self.norm_slots = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(3 + width // 2, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.shape = nn.Linear(2 * MOMENT_DIRECTIONS * MOMENT_SCALES, width)
        self.update = nn.GRUCell(width, width)
        self.refine = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )
        self.appearance = nn.Linear(width, slot_dim - POSITION_DIM)
        self.coordinates: Tensor
        self.waves: Tensor
        self.plane_waves: Tensor
        coordinates, waves = grid_coordinates(self.grid), _moment_frequencies()
        self.register_buffer("coordinates", coordinates, persistent=False)
        self.register_buffer("waves", waves, persistent=False)
        phases = coordinates @ waves
        self.register_buffer("plane_waves", torch.cat([phases.cos(), phases.sin()], dim=-1), persistent=False)

    def read(self, frames: Tensor) -> Tensor:
        """Slots (B, S, D) of frames (B, H, W, 3), uint8 of any size; raises ValueError for another shape or dtype."""
        slots: Tensor = self(prepare_frames(frames, self.image_size)).slots
        return slots

    def forward(self, frames: Tensor) -> SlotOutput:
        """Encode frames (B, 3, H, W), float in [0, 1]."""
        local, wide = self.features(frames - 0.5)
        # A centroid in bfloat16 would be a pixel off, so grouping always runs in full precision.
        with torch.autocast(frames.device.type, enabled=False):
            keys, values = self.key(local), self.value(wide)
            slots = self.initial.expand(len(frames), -1, -1)
            for _ in range(self.iterations):
                slots, centroid, attention = self._attend(slots, keys, values)
            vector = torch.cat([fourier(centroid, POSITION_SCALES), self.appearance(slots)], dim=-1)
        return SlotOutput(vector, centroid, attention.unflatten(-1, (self.grid, self.grid)))

    def _attend(self, slots: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One round of slot attention: new slots (B, S, width), centroids (B, S, 2), attention (B, S, G * G)."""
        queries = self.query(self.norm_slots(slots))
        attention = torch.softmax(queries @ keys.transpose(1, 2) / math.sqrt(keys.shape[-1]), dim=1)
        weights = attention / (attention.sum(-1, keepdim=True) + 1e-6)
        centroid = weights @ self.coordinates
        reads = weights @ values + self.shape(self._moments(weights, centroid))
        width = slots.shape[-1]
        slots = self.update(reads.reshape(-1, width), slots.reshape(-1, width)).view_as(slots)
        return slots + self.refine(slots), centroid, attention

    def _moments(self, weights: Tensor, centroid: Tensor) -> Tensor:
        """Fourier moments of each slot's attention about its centroid: its shape, whatever its place."""
        cos, sin = (weights @ self.plane_waves).chunk(2, dim=-1)
        phase = centroid @ self.waves
        c, s = phase.cos(), phase.sin()
        return torch.cat([cos * c + sin * s, sin * c - cos * s], dim=-1)


class SlotDecoder(ColourDecoder):
    """Slots to pixels, used to train the encoder and to draw what a latent means.

    One coordinate MLP, shared by the slots, maps a position relative to the slot's centroid to an opacity;
    opacities compete by softmax over slots. A slot has one colour everywhere: with a colour per position the block's
    slot learns to paint the small agent too, and the agent never gets a slot of its own.
    """

    def __init__(self, slot_dim: int = 128, width: int = 96, scales: int = 6) -> None:
        super().__init__()
        self.scales, appearance = scales, slot_dim - POSITION_DIM
        self.place = nn.Linear(4 * scales + 2, width)
        self.shift = nn.Linear(appearance, width)
        self.hidden = nn.Linear(width, width)
        self.gate = nn.Linear(appearance, width)
        self.mix = nn.Linear(width, width)
        self.opacity = nn.Linear(width, 1)
        self.colour = nn.Linear(appearance, 3)

    def forward(self, slots: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Decode at points.

        Args:
            slots: (B, S, D).
            points: (B, P, 2) coordinates in [-1, 1].

        Returns:
            Slot colours (B, S, 3), about 0..1, and masks (B, S, P) that sum to 1 over slots.
        """
        centroid = centroid_of(slots)
        relative = points.unsqueeze(1) - centroid.unsqueeze(2)
        appearance = slots[..., POSITION_DIM:].unsqueeze(2)
        hidden = self.place(torch.cat([relative, fourier(relative, self.scales)], dim=-1)) + self.shift(appearance)
        hidden = self.hidden(hidden.relu()) * (1 + self.gate(appearance))
        masks = self.opacity(self.mix(hidden.relu()).relu()).squeeze(-1).float().softmax(dim=1)
        return self.colour(slots[..., POSITION_DIM:]).float() + 0.5, masks
