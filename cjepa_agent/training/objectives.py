"""What encoders learn from short clips of frames: an objective for each architecture, see ``OBJECTIVES``."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cjepa_agent.encoders.autoencoder import SlotAutoencoder
from cjepa_agent.encoders.base import ColourDecoder, VideoEncoder, at_points, grid_coordinates
from cjepa_agent.encoders.kinds import TrainedEncoderConfig
from cjepa_agent.encoders.patches import PatchDecoder, PatchEncoder
from cjepa_agent.encoders.slot_attention import SlotEncoder
from cjepa_agent.encoders.still_camera import (
    APPEARANCE,
    LEAST_CONTRAST,
    StillCameraDecoder,
    StillCameraEncoder,
    holding,
)
from cjepa_agent.encoders.stosavi import BroadcastDecoder, StoSAViEncoder
from cjepa_agent.encoders.videosaur import SlotMixer, VideoSAURConfig, VideoSAUREncoder
from cjepa_agent.predictors.losses import mean_square

BLOB = 9  # px, window over which "stands out" is evened out
FAINT = 0.4  # summed colour difference (0..3) below which a pixel does not stand out, such as the thin walls
BACKGROUND_FRAMES = 1000  # of which the background is the median
KERNEL_VARIANCE = 0.01  # of StoSAVi's prior


@dataclass(frozen=True)
class SlotTrainingConfig:
    """How slots, or tokens of patches, are learned; each architecture reads the values that its objective has.

    Attributes:
        points: pixels decoded per frame (``slots``, ``still`` and patches).
        uniform: how many of them are drawn uniformly; the others where something stands out from the background.
        sigma: standard deviation of a pixel's colour about its slot's colour, colours in 0..1 (``slots``, ``still``).
        tie: weight of the squared difference between attention and decoded masks (``slots``, ``still``).
        clip: frames of a clip, at least 2 (``still``, ``stosavi``, ``videosaur``).
        stride: frames from one of a clip to the next; C-JEPA's VideoSAUR has 2.
        kl: weight of the divergence of kernels from their prior (``stosavi``).
        similarity: weight of the temporal similarity loss (``videosaur``); C-JEPA's for Push-T, 0.3 for CLEVRER.
        temperature: of the similarities that it predicts, likewise; 0.15 for CLEVRER.
        episodes: training episodes held in memory, 0 for all.
    """

    points: int = 384
    uniform: int = 128
    sigma: float = 0.1
    tie: float = 0.05
    clip: int = 6
    stride: int = 1
    kl: float = 1e-4
    similarity: float = 0.25
    temperature: float = 0.25
    episodes: int = 2000

    def __post_init__(self) -> None:
        if not 0 < self.uniform <= self.points:
            raise ValueError(f"slot_training.uniform must be in 1..points, got {self.uniform} of {self.points}")
        if self.clip < 2 or self.stride < 1:
            raise ValueError(
                f"slot_training.clip must be at least 2 and slot_training.stride 1, got {self.clip} and {self.stride}"
            )
        if min(self.episodes, self.kl, self.tie, self.similarity) < 0:
            raise ValueError(
                "slot_training.episodes, kl, tie and similarity must be 0 or more, got "
                f"{self.episodes}, {self.kl}, {self.tie} and {self.similarity}"
            )
        if self.sigma <= 0 or self.temperature <= 0:
            raise ValueError(
                f"slot_training.sigma and temperature must be positive, got {self.sigma} and {self.temperature}"
            )


class Objective(SlotAutoencoder, ABC):
    """An autoencoder of which a call gives the training loss, as data-parallel training needs it.

    Args:
        config: architecture.
        training: how to train.

    Attributes:
        frames: of a clip.
    """

    encoder: SlotEncoder | PatchEncoder | VideoEncoder
    decoder: ColourDecoder | PatchDecoder

    def __init__(self, config: TrainedEncoderConfig, training: SlotTrainingConfig) -> None:
        super().__init__(config)
        self.training_config, self.frames = training, training.clip

    def prepare(self, frames: NDArray[np.uint8]) -> None:
        """Before training: take what is to be known from the training frames (N, H, W, 3); by default nothing."""

    @abstractmethod
    def draw(self, clips: Tensor, generator: torch.Generator) -> Tensor:
        """What is random in the loss of clips (B, T, 3, H, W), a row for each, on the generator's device."""

    @abstractmethod
    def forward(self, clips: Tensor, drawn: Tensor) -> dict[str, Tensor]:
        """Scalar terms, ``total`` among them, of clips (B, T, 3, H, W) in [0, 1] with what was drawn for them."""

    @abstractmethod
    def errors(self, clips: Tensor) -> dict[str, Tensor]:
        """Scalar errors of clips (B, T, 3, H, W) in which nothing is random."""


class PixelObjective(Objective):
    """Explains sampled pixels of single frames."""

    encoder: SlotEncoder | StillCameraEncoder | PatchEncoder
    points: Tensor

    def __init__(self, config: TrainedEncoderConfig, training: SlotTrainingConfig) -> None:
        super().__init__(config, training)
        self.frames = 1
        self.register_buffer("points", grid_coordinates(config.image_size), persistent=False)

    def draw(self, clips: Tensor, generator: torch.Generator) -> Tensor:
        """Indices of pixels (B, points), drawn on the CPU, where the generator is."""
        return draw_points(self.contrast(clips[:, 0]).cpu(), self.training_config, generator)

    def contrast(self, frames: Tensor) -> Tensor:
        """How much each pixel (B, 1, H, W) of frames (B, 3, H, W) stands out: from the frame's median colour."""
        background = frames.flatten(2).median(2).values[:, :, None, None]
        return ((frames - background).abs().sum(1, keepdim=True) - FAINT).clamp(min=0)

    @torch.no_grad()
    def errors(self, clips: Tensor) -> dict[str, Tensor]:
        """``pixels``: mean squared error of whole frames, as the decoder paints them; colours in 0..1."""
        frames = clips[:, 0]
        painted, _ = self.decoder.paint(self.encoder(frames).slots, self.points.expand(len(frames), -1, -1))
        return {"pixels": mean_square(painted - _pixels(frames))}


class PatchObjective(PixelObjective):
    """Reconstructs pixels from patches."""

    def forward(self, clips: Tensor, drawn: Tensor) -> dict[str, Tensor]:
        """``total``: mean squared error of pixels (B, points); colours in 0..1."""
        frames = clips[:, 0]
        decoded = self.decoder(self.encoder(frames).slots, self.points[drawn])
        return {"total": mean_square(decoded - _pixels(frames, drawn))}


class MixtureObjective(PixelObjective):
    """Explains pixels as a mixture of slots, by decoded masks and by attention, which are tied."""

    decoder: ColourDecoder

    def forward(self, clips: Tensor, drawn: Tensor) -> dict[str, Tensor]:
        """See ``explained``."""
        encoding = self.encoder(clips[:, 0])
        return self.explained(encoding.slots, encoding.attention, clips[:, 0], drawn)

    def explained(self, slots: Tensor, attention: Tensor, frames: Tensor, drawn: Tensor) -> dict[str, Tensor]:
        """``decoded`` and ``attended``, likelihoods of pixels (B, points) under the masks, ``tie``, and their sum.

        Args:
            slots: (B, S, D).
            attention: (B, S, G, G).
            frames: (B, 3, H, W) in [0, 1].
            drawn: (B, points) indices of pixels.
        """
        points, target, training = self.points[drawn], _pixels(frames, drawn), self.training_config
        colours, masks = self.decoder.colours_at(slots, points)
        attention = at_points(attention, points)
        terms = {
            "decoded": mixture_nll(target, colours, masks, training.sigma),
            "attended": mixture_nll(target, colours, attention, training.sigma),
            "tie": (attention - masks).square().mean(),
        }
        return {"total": terms["decoded"] + terms["attended"] + training.tie * terms["tie"], **terms}


class StillCameraObjective(MixtureObjective):
    """The same before a known background, the median of the training frames, and in clips.

    Each frame but the first is explained twice: by what its slots hold, and by what things that were known before
    looked like then, so that a slot that takes another thing explains nothing.
    """

    encoder: StillCameraEncoder
    decoder: StillCameraDecoder

    def __init__(self, config: TrainedEncoderConfig, training: SlotTrainingConfig) -> None:
        super().__init__(config, training)
        self.frames = training.clip

    def draw(self, clips: Tensor, generator: torch.Generator) -> Tensor:
        """Indices of pixels (B, T, points), see ``PixelObjective``."""
        contrast = self.contrast(clips.flatten(0, 1)).cpu()
        drawn: Tensor = draw_points(contrast, self.training_config, generator).unflatten(0, clips.shape[:2])
        return drawn

    def forward(self, clips: Tensor, drawn: Tensor) -> dict[str, Tensor]:
        """See ``explained``; ``remembered`` is its total by what things looked like before."""
        found = []
        for output, memory in self.encoder.follow(clips.unbind(1)):
            before = output.slots
            if memory:
                then = torch.cat([before[..., :APPEARANCE], memory.slots[..., APPEARANCE:]], dim=-1)
                before = torch.where((memory.known & holding(before)).unsqueeze(-1), then, before)
            found.append((output.slots, before, output.attention))
        slots, before, attention = (torch.stack(parts, dim=1) for parts in zip(*found, strict=True))
        now, again = (slots, attention, clips, drawn), (before, attention, clips, drawn)
        terms = self.explained(*(part.flatten(0, 1) for part in now))
        remembered = self.explained(*(part[:, 1:].flatten(0, 1) for part in again))["total"]
        return {**terms, "total": terms["total"] + remembered, "remembered": remembered}

    def prepare(self, frames: NDArray[np.uint8]) -> None:
        """See ``Objective``."""
        # Spread so that the step is no multiple of the videos' length, and moments of all of a video count.
        chosen = np.linspace(0, len(frames) - 1, min(len(frames), BACKGROUND_FRAMES)).astype(int)
        some = torch.from_numpy(frames[chosen])
        background = some.flatten(1).median(0).values.view(some.shape[1:]).permute(2, 0, 1) / 255
        for part in (self.encoder, self.decoder):
            part.background.copy_(background)

    def contrast(self, frames: Tensor) -> Tensor:
        """See ``PixelObjective``."""
        return (self.encoder.contrast(frames) - LEAST_CONTRAST).clamp(min=0)


class StoSAViObjective(Objective):
    """Reconstructs clips from slots that start from sampled kernels (Wu et al. 2023, SlotFormer, arXiv 2210.05861)."""

    encoder: StoSAViEncoder
    decoder: BroadcastDecoder

    def draw(self, clips: Tensor, generator: torch.Generator) -> Tensor:
        """Noise of the kernels (B, T, S, D)."""
        return torch.randn(*clips.shape[:2], self.config.n_slots, self.config.slot_dim, generator=generator)

    def forward(self, clips: Tensor, drawn: Tensor) -> dict[str, Tensor]:
        """``reconstruction``: mean squared error of pixels in -1..1; ``kl``: see ``kernel_divergence``."""
        carried = self.encoder.carry(clips, drawn)
        reconstruction = mean_square(self.decoder.blend(carried.slots.flatten(0, 1)) - (2 * clips.flatten(0, 1) - 1))
        divergence = kernel_divergence(carried.log_variance)
        total = reconstruction + self.training_config.kl * divergence
        return {"total": total, "reconstruction": reconstruction, "kl": divergence}

    @torch.no_grad()
    def errors(self, clips: Tensor) -> dict[str, Tensor]:
        """The terms of the loss, with kernels that are the mean of their distribution."""
        return self.forward(clips, clips.new_zeros(*clips.shape[:2], self.config.n_slots, self.config.slot_dim))


class VideoSAURObjective(Objective):
    """Predicts features of patches and how alike they are to those of the next frame (Zadaianchuk et al. 2023).

    See arXiv 2306.04829; weights and temperatures are C-JEPA's.
    """

    encoder: VideoSAUREncoder
    decoder: SlotMixer
    config: VideoSAURConfig

    def __init__(self, config: TrainedEncoderConfig, training: SlotTrainingConfig) -> None:
        super().__init__(config, training)
        needed = self.config.trained_outputs
        if self.config.outputs not in (None, needed):
            raise ValueError(
                f"encoder.outputs is {self.config.outputs}, but training needs {needed}, {self.config.width} features "
                f"and {self.config.grid**2} similarities per patch; leave it null"
            )

    def draw(self, clips: Tensor, generator: torch.Generator) -> Tensor:
        """Noise that slots start from (B, S, D)."""
        return torch.randn(len(clips), self.config.n_slots, self.config.slot_dim, generator=generator)

    def forward(self, clips: Tensor, drawn: Tensor) -> dict[str, Tensor]:
        """``reconstruction``: mean squared error of features; ``similarity``: see ``temporal_similarity_loss``."""
        encoder, size, patches = self.encoder, clips.shape[:2], self.config.grid**2
        features, keys = encoder.backbone.with_keys(encoder.backbone.normalised(clips.flatten(0, 1)))
        inputs = encoder.output_transform(features).unflatten(0, size)
        slots = encoder.carry(inputs.unbind(1), encoder.initial(drawn))
        predicted, alike = self.decoder.mix(slots.flatten(0, 1))[0].split([self.config.width, patches], dim=-1)
        reconstruction = mean_square(predicted - features)
        similarity = temporal_similarity_loss(
            alike.unflatten(0, size), keys.unflatten(0, size), self.training_config.temperature
        )
        total = reconstruction + self.training_config.similarity * similarity
        return {"total": total, "reconstruction": reconstruction, "similarity": similarity}

    @torch.no_grad()
    def errors(self, clips: Tensor) -> dict[str, Tensor]:
        """The terms of the loss, with the noise that the encoder keeps."""
        return self.forward(clips, self.encoder.noise.expand(len(clips), -1, -1))


# By ``kind`` of the encoder; what has none is a fixed map.
OBJECTIVES: dict[str, type[Objective]] = {
    "slots": MixtureObjective,
    "still": StillCameraObjective,
    "patches": PatchObjective,
    "dinov2": PatchObjective,
    "dinov2_reg": PatchObjective,
    "timm": PatchObjective,
    "stosavi": StoSAViObjective,
    "savi": StoSAViObjective,
    "videosaur": VideoSAURObjective,
    "videosaur_small": VideoSAURObjective,
}


def draw_points(contrast: Tensor, config: SlotTrainingConfig, generator: torch.Generator) -> Tensor:
    """Pixel indices (B, points) to decode.

    Pixels are drawn in proportion to how much they stand out, divided by its average around them: each thing that
    stands out gets about the same share, however small it is.

    Args:
        contrast: (B, 1, H, W), how much pixels stand out.
        config: how many.
        generator: source of randomness.
    """
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
        colours: (B, S, P, 3), or (B, S, 1, 3) of slots with one colour.
        masks: (B, S, P) mixing weights.
        sigma: standard deviation of a colour.
    """
    distance = (pixels.unsqueeze(1) - colours).square().sum(-1) / (2 * sigma**2)
    return -(sigma**2) * torch.logsumexp((masks + 1e-6).log() - distance, dim=1).mean()


def kernel_divergence(log_variance: Tensor) -> Tensor:
    """StoSAVi's Kullback-Leibler divergence of kernels from a prior with the same mean and variance 0.01, scalar.

    Without it the variance would fall to zero, for clips are reconstructed best without noise.

    Args:
        log_variance: (..., D) of the kernels; the divergence is summed over D and averaged over all else.
    """
    ratio = log_variance.float() - math.log(KERNEL_VARIANCE)
    return 0.5 * (ratio.exp() - ratio - 1).sum(-1).mean()


def temporal_similarity_loss(logits: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """VideoSAUR's cross-entropy of predicted similarities between the patches of a frame and those of the next.

    The target is the softmax of cosine similarities over the next frame's patches, divided by the temperature, those
    below 0 left out. To predict it, slots must tell which patches move together.

    Args:
        logits: (B, T, P, P), for each patch one per patch of the next frame; those of the last frame are not read.
        keys: (B, T, P, C) that the backbone's attention compares patches by.
        temperature: above 0.

    Returns:
        Mean over clips, frames and patches.
    """
    keys = F.normalize(keys.float(), dim=-1)
    cosine = keys[:, :-1] @ keys[:, 1:].transpose(-1, -2)
    target = cosine.masked_fill(cosine < 0, -math.inf)
    # A patch that is unlike all of the next frame may have gone anywhere.
    target = target.masked_fill((cosine < 0).all(-1, keepdim=True), 0.0)
    target = (target / temperature).softmax(-1)
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 2), target.flatten(0, 2))


def _pixels(frames: Tensor, index: Tensor | None = None) -> Tensor:
    """Colours (B, P, 3) of frames (B, 3, H, W), of all pixels or those of an index (B, P)."""
    pixels = frames.flatten(2).transpose(1, 2)
    return pixels if index is None else pixels.take_along_dim(index.unsqueeze(-1), 1)
