"""``stage=encoder``: slots, or tokens of patches, from frames alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cjepa_agent.data.episodes import EpisodeFile
from cjepa_agent.encoders.autoencoder import RECIPE
from cjepa_agent.encoders.base import prepare_frames
from cjepa_agent.encoders.kinds import TrainedEncoderConfig
from cjepa_agent.files import write_json
from cjepa_agent.tensors import digest
from cjepa_agent.training.objectives import OBJECTIVES, Objective, SlotTrainingConfig

VALIDATION_EPISODES, VALIDATION_CLIPS, VALIDATION_BATCH = 20, 128, 16
DIGESTED_FRAMES = 1000  # of the training frames, that tell them from others


class EncoderStage:
    """Trains an encoder and its decoder on clips of frames by the objective of its kind.

    Args:
        data: episodes with ``pixels``.
        config: architecture.
        slots: how to train.
        seed: of the initial weights.
        recipe: kept beside the encoder as the record of the training.

    Raises:
        ValueError: nothing to train, or the frames do not fit.
        FileNotFoundError: the weights of a frozen part cannot be found.
    """

    def __init__(
        self,
        data: EpisodeFile,
        config: TrainedEncoderConfig,
        slots: SlotTrainingConfig,
        seed: int,
        recipe: Mapping[str, Any],
    ) -> None:
        if config.kind not in OBJECTIVES:
            raise ValueError(
                f"encoder.kind={config.kind} is a fixed map with nothing to train; "
                f"make its slots with `python -m cjepa_agent.extract encoder={config.kind}`"
            )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = OBJECTIVES[config.kind](config, slots)
        self.model.encoder.load_weights()
        size, clip = config.image_size, (np.arange(self.model.frames) * slots.stride)
        self.clips = _Clips(data, data.episodes("train")[: slots.episodes or None], size, clip)
        some = self.clips.frames[:: -(-len(self.clips.frames) // DIGESTED_FRAMES)]
        # Files are named as their users please: another one of that name must not go on with this training.
        self.recipe = {**recipe, "content": digest({"frames": torch.from_numpy(some)})}
        self.model.prepare(self.clips.frames)
        self.held_out = _Clips(data, data.episodes("validation")[:VALIDATION_EPISODES], size, clip)

    @property
    def hidden_matrices(self) -> list[nn.Parameter]:
        """None: few of its weights are matrices between hidden layers."""
        return []

    def loss(
        self, model: nn.Module, step: int, batch: int, rows: slice, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The terms of the objective on drawn clips."""
        device = next(model.parameters()).device
        clips = self.clips.read(torch.randint(len(self.clips), (batch,), generator=generator).numpy()).to(device)
        drawn = self.model.draw(clips, generator)
        terms: dict[str, Tensor] = model(clips[rows], drawn[rows].to(device))
        return terms

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Mean errors of validation clips, see the objectives."""
        trained, device = _objective(model), next(model.parameters()).device
        chosen = np.arange(0, len(self.held_out), max(1, len(self.held_out) // VALIDATION_CLIPS))
        sums: dict[str, float] = {}
        for first in range(0, len(chosen), VALIDATION_BATCH):
            clips = self.held_out.read(chosen[first : first + VALIDATION_BATCH]).to(device)
            for name, error in trained.errors(clips).items():
                sums[name] = sums.get(name, 0.0) + float(error) * len(clips) / len(chosen)
        return sums

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the encoder folder that ``extract`` reads."""
        _objective(model).save(folder)
        write_json(folder / RECIPE, self.recipe)


class _Clips:
    """All clips of some episodes, in memory.

    Args:
        data: episodes with ``pixels``.
        episodes: which.
        size: side of the frames [px].
        offsets: frames of a clip, counted from its first.

    Raises:
        ValueError: no episode is long enough, or the frames are of another size.
    """

    def __init__(self, data: EpisodeFile, episodes: NDArray[np.int64], size: int, offsets: NDArray[np.int64]) -> None:
        if len(episodes) == 0:
            raise ValueError(f"{data.path} has no episodes for training or for validation")
        self.size, self.offsets = size, offsets
        self.frames: NDArray[np.uint8] = np.concatenate([data.read("pixels", int(episode)) for episode in episodes])
        if self.frames.shape[1:3] != (size, size):
            raise ValueError(f"{data.path} has frames of {self.frames.shape[1:3]} px, but encoder.image_size is {size}")
        lengths, span = data.lengths[episodes], int(offsets[-1])
        firsts = np.cumsum(lengths) - lengths
        self.starts = np.concatenate(
            [np.arange(first, first + length - span) for first, length in zip(firsts, lengths, strict=True)]
        )
        if len(self.starts) == 0:
            raise ValueError(
                f"{data.path} has no episode of {span + 1} frames, the length of a clip of {len(offsets)}; set "
                f"slot_training.clip or slot_training.stride to less"
            )

    def __len__(self) -> int:
        return len(self.starts)

    def read(self, index: NDArray[np.int64]) -> Tensor:
        """Clips (B, T, 3, H, W) in [0, 1]."""
        frames = torch.from_numpy(self.frames[(self.starts[index][:, None] + self.offsets).ravel()])
        clips: Tensor = prepare_frames(frames, self.size).unflatten(0, (len(index), len(self.offsets)))
        return clips


def _objective(model: nn.Module) -> Objective:
    if not isinstance(model, Objective):
        raise TypeError(f"expected the Objective that was trained, got {type(model).__name__}")
    return model
