"""``stage=encoder``: slots, or tokens of patches, from frames alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from cjepa_agent.autoencoder import SlotAutoencoder
from cjepa_agent.data import EpisodeFile
from cjepa_agent.encoder import SlotOutput, at_points, grid_coordinates, prepare_frames
from cjepa_agent.losses import mean_square
from cjepa_agent.patches import PatchConfig, PatchEncoder
from cjepa_agent.world_model import PRIVILEGED, EncoderConfig

BLOB = 9  # px, window over which "stands out" is evened out
FAINT = 0.4  # summed colour difference (0..3) below which a pixel does not stand out, such as the thin walls


@dataclass(frozen=True)
class SlotTrainingConfig:
    """How slots are learned, and patches: these need neither ``sigma`` nor ``tie``.

    Attributes:
        points: pixels decoded per frame.
        uniform: how many of them are drawn uniformly; the others where something stands out from the background.
        sigma: standard deviation of a pixel's colour about its slot's colour, colours in 0..1.
        tie: weight of the squared difference between attention and decoded masks.
        episodes: training episodes held in memory, 0 for all.
    """

    points: int = 384
    uniform: int = 128
    sigma: float = 0.1
    tie: float = 0.05
    episodes: int = 2000

    def __post_init__(self) -> None:
        if not 0 < self.uniform <= self.points:
            raise ValueError(f"slots.uniform must be in 1..points, got {self.uniform} of {self.points}")


def draw_points(frames: Tensor, config: SlotTrainingConfig, generator: torch.Generator) -> Tensor:
    """Pixel indices (B, points) to decode.

    A pixel stands out by its difference from the frame's median colour. Pixels are drawn in proportion to that,
    divided by its average around them: each thing that stands out gets about the same share, however small it is.

    Args:
        frames: (B, 3, H, W).
        config: how many.
        generator: source of randomness.
    """
    background = frames.flatten(2).median(2).values[:, :, None, None]
    contrast = ((frames - background).abs().sum(1, keepdim=True) - FAINT).clamp(min=0)
    weight = (contrast / (F.avg_pool2d(contrast, BLOB, 1, BLOB // 2) + 0.02)).flatten(1)
    share = config.uniform / config.points
    weight = (1 - share) * weight / weight.sum(1, keepdim=True).clamp(min=1e-6) + share / weight.shape[1]
    return torch.multinomial(weight, config.points, replacement=True, generator=generator)


def mixture_nll(pixels: Tensor, colours: Tensor, masks: Tensor, sigma: float) -> Tensor:
    """Negative log-likelihood of pixels under a mixture of slots, times sigma squared (about half a squared error).

    A mixture, not a blend: each pixel must be explained by one slot, which is what keeps a slot from painting grey
    as a blend of white and blue.

    Args:
        pixels: (B, P, 3).
        colours: (B, S, 3).
        masks: (B, S, P) mixing weights.
        sigma: standard deviation of a colour.
    """
    distance = (pixels.unsqueeze(1) - colours.unsqueeze(2)).square().sum(-1) / (2 * sigma**2)
    return -(sigma**2) * torch.logsumexp((masks + 1e-6).log() - distance, dim=1).mean()


class EncoderStage:
    """Explains sampled pixels as a mixture of slots, by decoded masks and by attention; or reconstructs patches.

    Args:
        data: episodes with ``pixels``.
        config: architecture.
        slots: how to train.
        seed: of the initial weights.

    Raises:
        ValueError: nothing to train, or the frames do not fit.
    """

    def __init__(
        self, data: EpisodeFile, config: EncoderConfig | PatchConfig, slots: SlotTrainingConfig, seed: int
    ) -> None:
        if config.kind in PRIVILEGED:
            raise ValueError(
                f"encoder.kind={config.kind} is a fixed map with nothing to train; "
                f"make its slots with `python -m cjepa_agent.extract encoder={config.kind}`"
            )
        self.config, self.slots = config, slots
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = SlotAutoencoder(config)
        if isinstance(self.model.encoder, PatchEncoder) and self.model.encoder.weights:
            self.model.encoder.load_weights()
        self.frames = _read_frames(data, data.episodes("train")[: slots.episodes or None], config.image_size)
        self.held_out = _read_frames(data, data.episodes("validation")[:20], config.image_size)
        self.points = grid_coordinates(config.image_size)

    @property
    def hidden_matrices(self) -> list[nn.Parameter]:
        """None: few of its weights are matrices between hidden layers."""
        return []

    def loss(
        self, model: nn.Module, step: int, batch: int, rows: slice, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The error of sampled pixels."""
        picks = torch.randint(len(self.frames), (batch,), generator=generator)
        frames = self._frames(self.frames[picks.numpy()])
        index = draw_points(frames, self.slots, generator)[rows]
        frames, points = frames[rows], self.points[index]
        encoding, decoded = model(frames, points)
        target = frames.flatten(2).transpose(1, 2).take_along_dim(index.unsqueeze(-1), 1)
        if isinstance(self.config, PatchConfig):
            return {"total": mean_square(decoded - target)}
        return self._mixture(encoding, decoded, points, target)

    def _mixture(
        self, encoding: SlotOutput, decoded: tuple[Tensor, Tensor], points: Tensor, target: Tensor
    ) -> dict[str, Tensor]:
        """Likelihood of pixels (B, P, 3) under the decoded masks and under the attention, which are tied."""
        slots, (colours, masks) = self.slots, decoded
        attention = at_points(encoding.attention, points)
        terms = {
            "decoded": mixture_nll(target, colours, masks, slots.sigma),
            "attended": mixture_nll(target, colours, attention, slots.sigma),
            "tie": (attention - masks).square().mean(),
        }
        total = terms["decoded"] + terms["attended"] + slots.tie * terms["tie"]
        return {"total": total, **terms}

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Mean squared error of whole validation frames, as the decoder paints them; colours in 0..1."""
        chosen = self._frames(self.held_out[:: max(1, len(self.held_out) // 128)])
        trained, errors = _autoencoder(model), []
        for frames in chosen.split(16):
            painted, _ = trained.decoder.paint(trained.encoder(frames).slots, self.points.expand(len(frames), -1, -1))
            errors.append((painted - frames.flatten(2).transpose(1, 2)).square().mean((1, 2)))
        return {"pixels": float(torch.cat(errors).mean())}

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the encoder folder that ``extract`` reads."""
        _autoencoder(model).save(folder)

    def _frames(self, frames: NDArray[np.uint8]) -> Tensor:
        return prepare_frames(torch.from_numpy(frames), self.config.image_size)


def _autoencoder(model: nn.Module) -> SlotAutoencoder:
    if not isinstance(model, SlotAutoencoder):
        raise TypeError(f"expected the SlotAutoencoder that was trained, got {type(model).__name__}")
    return model


def _read_frames(data: EpisodeFile, episodes: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
    if len(episodes) == 0:
        raise ValueError(f"{data.path} has no episodes for training or for validation")
    frames: NDArray[np.uint8] = np.concatenate([data.read("pixels", int(episode)) for episode in episodes])
    if frames.shape[1:3] != (size, size):
        raise ValueError(f"{data.path} has frames of {frames.shape[1:3]} px, but encoder.image_size is {size}")
    return frames
