"""Encoder and decoder as they are trained together, and the folder they are kept in before a world model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cjepa_agent.encoders.base import CONFIG, WEIGHTS
from cjepa_agent.encoders.kinds import AnyEncoderConfig, encoder_config
from cjepa_agent.files import read_json, write_json
from cjepa_agent.provenance import settings_record
from cjepa_agent.tensors import digest, load_tensors, save_tensors
from envs.files import atomic

if TYPE_CHECKING:
    from cjepa_agent.world_model import WorldModel

RECIPE = "recipe.json"  # how the encoder was trained; goes wherever the encoder goes


class SlotAutoencoder(nn.Module):
    """Encoder and decoder, trained together; afterwards the decoder only draws what a latent means."""

    def __init__(self, config: AnyEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = config.build()

    @classmethod
    def of(cls, model: WorldModel) -> SlotAutoencoder:
        """Those of a world model, copied."""
        autoencoder = cls(model.config.encoder).eval()
        autoencoder.encoder.load_state_dict(model.encoder.state_dict())
        autoencoder.decoder.load_state_dict(model.decoder.state_dict())
        return autoencoder

    def is_of(self, model: WorldModel) -> bool:
        """Whether a world model has this encoder."""
        own, other = self.encoder.state_dict(), model.encoder.state_dict()
        same = _architecture(self.config) == _architecture(model.config.encoder) and own.keys() == other.keys()
        return same and all(torch.equal(own[name], other[name]) for name in own)

    def require_slots(self, shape: Sequence[int], folder: Path) -> None:
        """Raise ValueError unless slots of this shape (S, D), in a folder, can be this encoder's."""
        expected = (self.config.n_slots, self.config.slot_dim)
        if tuple(shape) != expected:
            raise ValueError(
                f"{folder} holds slots (S, D) {tuple(shape)}, but the encoder beside them makes {expected}; "
                "extract them again"
            )

    def digest(self) -> str:
        """SHA-256 of configuration and weights."""
        return digest(self.state_dict(), settings_record(self.config))

    @staticmethod
    def copy(source: Path, target: Path) -> None:
        """Copy what ``save`` wrote, and the recipe beside it, to a folder of slots."""
        for name in (CONFIG, WEIGHTS, RECIPE):
            with atomic(target / name) as temporary:
                shutil.copyfile(source / name, temporary)

    def save(self, folder: Path) -> None:
        """Write ``encoder.safetensors`` and ``encoder.json`` to ``folder``."""
        save_tensors(folder / WEIGHTS, self.state_dict())
        write_json(folder / CONFIG, settings_record(self.config))

    @classmethod
    def load(cls, folder: Path) -> SlotAutoencoder:
        """Read what ``save`` wrote, in evaluation mode.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is truncated, or the weights do not fit the configuration.
        """
        try:
            config = encoder_config(read_json(folder / CONFIG))
        except ValueError as error:
            raise ValueError(f"{folder / CONFIG} is not an encoder configuration: {error}") from error
        model = cls(config).eval()
        model.load_state_dict(load_tensors(folder / WEIGHTS, model.state_dict()), strict=True)
        return model


def _architecture(config: AnyEncoderConfig) -> dict[str, Any]:
    """The settings of an encoder, less where its training found frozen weights: what they are is in the weights."""
    return {name: value for name, value in asdict(config).items() if name != "weights"}
