"""VideoSAUR (Zadaianchuk et al. 2023) as C-JEPA uses it: slots of frozen DINOv2 features, carried through a video."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cjepa_agent.encoders.base import ColourDecoder, VideoEncoder, at_points, prepare_frames
from cjepa_agent.encoders.dinov2 import SMALL, DINOv2
from cjepa_agent.encoders.patches import pretrained_backbone

ATTENTION_EPS = 1e-8
HEADS = 4  # of the transition and of the decoder


@dataclass(frozen=True)
class VideoSAURConfig:
    """VideoSAUR on frozen DINOv2; the defaults are those of the released Push-T encoder (7 slots for CLEVRER).

    Attributes:
        kind: ``videosaur``.
        n_slots: S.
        slot_dim: D.
        image_size: side of the square input frames, px, a multiple of ``patch``; others are resized, but not in
            training.
        patch: side of a patch, px.
        width, depth, heads: channels, blocks and attention heads of DINOv2.
        positions: patches along a side that DINOv2's position embeddings were learned for.
        final_norm: features after DINOv2's last LayerNorm (C-JEPA), or before it (the original VideoSAUR).
        iterations: rounds of slot attention; the first frame of a video has one more.
        decoder_width: hidden units of the decoder's renderer.
        outputs: numbers that the decoder predicts per patch; null for those that are trained, the features of a patch
            and how similar it is to each patch of the next frame.
        weights: DINOv2's, a Hub id or folder; or the folder of a trained ``patches`` encoder; read by
            ``stage=encoder`` alone, and frozen. Empty for random features, which show that the rest works.
        seed: of the noise that slots start from. The authors draw it anew for every video, without a seed.
    """

    kind: str = "videosaur"
    n_slots: int = 4
    slot_dim: int = 128
    image_size: int = 196
    patch: int = 14
    width: int = 384
    depth: int = 12
    heads: int = 6
    positions: int = 37
    final_norm: bool = True
    iterations: int = 2
    decoder_width: int = 1024
    outputs: int | None = None
    weights: str = SMALL
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = (self.n_slots, self.slot_dim, self.image_size, self.patch, self.width, self.depth, self.heads)
        if min(*sizes, self.positions, self.iterations, self.decoder_width) < 1:
            raise ValueError(f"encoder sizes must be positive, got {self}")
        if self.image_size % self.patch or self.width % self.heads or self.slot_dim % HEADS:
            raise ValueError(f"encoder sizes do not divide, got {self}")

    @property
    def grid(self) -> int:
        """Patches along a side of a frame."""
        return self.image_size // self.patch

    @property
    def trained_outputs(self) -> int:
        """Numbers per patch that the training objective needs: features, and similarities to all patches."""
        return self.width + self.grid**2

    def build(self) -> tuple[VideoSAUREncoder, SlotMixer]:
        """Encoder and decoder with random weights."""
        return VideoSAUREncoder(self), SlotMixer(self)


@dataclass(frozen=True)
class SmallVideoSAURConfig(VideoSAURConfig):
    """VideoSAUR with ``encoder=patches`` in place of DINOv2: set ``encoder.weights`` to the folder of a trained one.

    Attributes:
        kind: ``videosaur_small``.
    """

    kind: str = "videosaur_small"
    image_size: int = 64
    patch: int = 8
    width: int = 64
    depth: int = 3
    heads: int = 4
    positions: int = 8
    decoder_width: int = 256
    weights: str = ""


class _Attention(nn.Module):
    """Multi-head attention; logits are multiplied by the root of a head's width, where others divide by it.

    That is how VideoSAUR computes it (``q / scale`` with ``scale = d ** -0.5``), and its weights were trained so.
    """

    def __init__(self, width: int, cross: bool) -> None:
        super().__init__()
        if cross:
            self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        else:
            self.qkv = nn.Linear(width, 3 * width)
        self.cross, self.scale = cross, math.sqrt(width // HEADS)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        parts = (self.q(x), *self.kv(memory).chunk(2, -1)) if self.cross else self.qkv(x).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        projected: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return projected


class _Block(nn.Module):
    """Pre-norm transformer block over itself, or over a memory instead."""

    def __init__(self, width: int, cross: bool) -> None:
        super().__init__()
        self.self_attn = _Attention(width, cross)
        self.linear1, self.linear2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        normed = self.norm1(x)
        x = x + self.self_attn(normed, normed if memory is None else memory)
        hidden: Tensor = self.linear2(self.linear1(self.norm2(x)).relu())
        return x + hidden


class _SlotAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.gru = nn.GRUCell(width, width)
        self.norm_features, self.norm_slots = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, slots: Tensor, features: Tensor, iterations: int) -> Tensor:
        """Slots (B, S, D) after some rounds over features (B, patches, D)."""
        features = self.norm_features(features)
        keys, values = self.to_k(features), self.to_v(features)
        for _ in range(iterations):
            normed = self.norm_slots(slots)
            logits = self.to_q(normed) @ keys.transpose(1, 2) * keys.shape[-1] ** -0.5
            weights = logits.softmax(dim=1) + ATTENTION_EPS
            updates = weights / weights.sum(-1, keepdim=True) @ values
            # The normed slots are the memory, too, not the slots themselves.
            slots = self.gru(updates.flatten(0, 1), normed.flatten(0, 1)).view_as(slots)
        return slots


class VideoSAUREncoder(VideoEncoder):
    """Frames to slots.

    Slots of a video's first frame start from learned noise, those of later frames from a transition of the last.

    Args:
        config: architecture.
    """

    def __init__(self, config: VideoSAURConfig) -> None:
        super().__init__()
        self.config, self.n_slots, self.slot_dim = config, config.n_slots, config.slot_dim
        width, dim = config.width, config.slot_dim
        self.backbone = DINOv2(width, config.depth, config.heads, config.patch, config.positions, config.final_norm)
        self.backbone.requires_grad_(False)
        self.output_transform = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, dim)
        )
        self.mean = nn.Parameter(torch.zeros(1, 1, dim))
        self.log_std = nn.Parameter(torch.full((1, 1, dim), math.log(dim**-0.5)))
        self.corrector = _SlotAttention(dim)
        self.transition = _Block(dim, cross=False)
        self.noise: Tensor
        noise = torch.randn(config.n_slots, dim, generator=torch.Generator().manual_seed(config.seed))
        self.register_buffer("noise", noise, persistent=False)

    def load_weights(self) -> None:
        """See ``FrameEncoder``; without ``weights`` the backbone stays random."""
        if self.config.weights:
            self.backbone.freeze_as(pretrained_backbone(self.config.weights), self.config.weights)

    def read(self, frames: Tensor, initial: Tensor | None = None) -> Tensor:
        """See ``VideoEncoder``; ``initial`` counts as the slots of the frame before."""
        if initial is None:
            return self.carry([self.features(frames)], self.initial(self.noise).expand(len(frames), -1, -1))[:, 0]
        slots: Tensor = self.corrector(self.transition(initial), self.features(frames), self.config.iterations)
        return slots

    def track(self, frames: Tensor, noise: Tensor | None = None) -> Tensor:
        """Slots of videos, see ``VideoEncoder``; ``noise`` (B, S, D) is standard normal."""
        start = self.initial(self.noise if noise is None else noise)
        return self.carry(map(self.features, frames.unbind(1)), start.expand(len(frames), -1, -1))

    def carry(self, features: Iterable[Tensor], start: Tensor) -> Tensor:
        """Slots (B, T, S, D) of features (B, patches, D) of T frames, each from those of the frame before.

        Args:
            features: of one frame after another.
            start: (B, S, D), what the first frame's slots are found from.
        """
        path: list[Tensor] = []
        for frame in features:
            slots = self.transition(path[-1]) if path else start
            path.append(self.corrector(slots, frame, self.config.iterations + (not path)))
        return torch.stack(path, dim=1)

    def initial(self, noise: Tensor) -> Tensor:
        """Slots (..., S, D) to start from, of standard normal noise (..., S, D)."""
        return self.mean[0] + noise * self.log_std[0].exp()

    def features(self, frames: Tensor) -> Tensor:
        """Features (B, patches, D) of frames (B, H, W, 3) uint8."""
        pixels = self.backbone.normalised(prepare_frames(frames, self.config.image_size))
        features: Tensor = self.output_transform(self.backbone(pixels))
        return features


class SlotMixer(ColourDecoder):
    """Slots to DINOv2 features (Sajjadi et al. 2022); here it serves to draw where a slot is.

    Args:
        config: architecture.
    """

    reconstructs = False

    def __init__(self, config: VideoSAURConfig) -> None:
        super().__init__()
        dim, hidden = config.slot_dim, config.decoder_width
        self.grid = config.grid
        self.allocator = nn.ModuleList(_Block(dim, cross=True) for _ in range(3))
        self.to_q, self.to_k = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.norm_q, self.norm_k, self.norm_memory = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.renderer = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
        )
        self.output_transform = nn.Linear(hidden, config.outputs or config.trained_outputs)
        self.pos_emb = nn.Parameter(torch.randn(1, config.grid**2, dim) * dim**-0.5)

    def mix(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions (B, patches, outputs) and masks (B, S, patches), summing to 1 over slots, of slots (B, S, D)."""
        place, memory = self.pos_emb.expand(len(slots), -1, -1), self.norm_memory(slots)
        queries = place
        for block in self.allocator:
            queries = block(queries, memory)
        logits = self.to_q(self.norm_q(queries)) @ self.to_k(self.norm_k(slots)).transpose(1, 2)
        weights = (logits * slots.shape[-1] ** -0.5).softmax(-1)
        return self.output_transform(self.renderer(weights @ slots + place)), weights.transpose(1, 2)

    def forward(self, slots: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Decode slots (B, S, D) at points (B, P, 2) in [-1, 1].

        Returns:
            Colours (B, S, 3), one hue per slot since features have none, and masks (B, S, P).
        """
        masks = self.mix(slots)[1].unflatten(-1, (self.grid, self.grid))
        n_slots = slots.shape[1]
        hues = slots.new_tensor([colorsys.hsv_to_rgb(slot / n_slots, 0.75, 0.95) for slot in range(n_slots)])
        return hues.expand(len(slots), -1, -1), at_points(masks, points)
