"""Predicted slots against true frames through the frozen decoder (SlotFormer, arXiv 2210.05861).

SlotFormer decodes whole frames. Here sampled pixels of a few predicted frames estimate the same mean squared error, so
that a CPU can train with it: of an encoder whose decoder needs no whole frame, as ours, only these are decoded.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cjepa_agent.data.slot_data import SlotWindows
from cjepa_agent.encoders.autoencoder import SlotAutoencoder
from cjepa_agent.encoders.base import grid_coordinates, prepare_frames
from cjepa_agent.encoders.given_slots import GivenSlotsConfig
from cjepa_agent.predictors.losses import mean_square
from cjepa_agent.world_model import WorldModel


class Pixels(NamedTuple):
    """Sampled pixels of M predicted frames.

    Attributes:
        sample, frame: (M,) which of the predictions (B, F, ...) each frame is.
        points: (M, P, 2) places in [-1, 1].
        colours: (M, P, 3) true colours there, 0..1.
    """

    sample: Tensor
    frame: Tensor
    points: Tensor
    colours: Tensor


class PixelSampler:
    """Draws pixels of the frames that slots were made of.

    Args:
        data: slots, and the frames that they are of.
        autoencoder: where the slots come from.
        frames: most frames per draw, M.
        points: pixels of each, P.

    Raises:
        FileNotFoundError: there is no data set of the videos that slots are of.
        ValueError: the decoder draws no frames, or the dataset has none.
    """

    def __init__(self, data: SlotWindows, autoencoder: SlotAutoencoder, frames: int, points: int) -> None:
        self.data, self.frames, self.points, self.size = data, frames, points, drawn_size(autoencoder)
        self.grid = grid_coordinates(self.size)
        data.pixels(np.array([data.spans("train")[0][0]]))  # a dataset without frames is refused before the training

    def draw(self, rows: NDArray[np.int64], part: slice, generator: torch.Generator) -> Pixels:
        """Pixels of one frame of every so many samples, uniformly over frames and pixels.

        Args:
            rows: (B, F) where in the data the true frames of all predictions of a step are.
            part: samples whose pixels are wanted; those of all are drawn, so that any number of processes sees the
                same wherever every so many divides a part.
            generator: source of randomness.
        """
        frames = torch.randint(rows.shape[1], (len(rows),), generator=generator)
        places = torch.randint(len(self.grid), (len(rows), self.points), generator=generator)
        sample = torch.arange(part.start, part.stop, -(-len(rows) // self.frames))
        frame, pixel = frames[sample], places[sample]
        pictures = prepare_frames(self.data.pixels(rows[sample.numpy(), frame.numpy()]), self.size)
        colours = pictures.flatten(2).transpose(1, 2).take_along_dim(pixel.unsqueeze(-1), 1)
        return Pixels(sample - part.start, frame, self.grid[pixel], colours)


def drawn_size(autoencoder: SlotAutoencoder) -> int:
    """Side of the frames that a decoder learned to draw [px]; raises ValueError if it did not learn that."""
    config = autoencoder.config
    if isinstance(config, GivenSlotsConfig) or not autoencoder.decoder.reconstructs:
        raise ValueError(
            f"dynamics.image_weight needs a decoder that learned to draw frames; that of encoder.kind="
            f"{config.kind} did not; take slots of another encoder or set dynamics.image_weight=0"
        )
    return config.image_size


def image_error(model: WorldModel, slots: Tensor, pixels: Pixels) -> Tensor:
    """Mean squared error of colours, 0..1, where predicted slots (B, F, S, D), normalised, are drawn."""
    chosen = model.processor.raw_slots(slots[pixels.sample, pixels.frame])
    return mean_square(model.decoder.paint(chosen, pixels.points)[0] - pixels.colours)
