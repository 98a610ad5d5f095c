"""All encoders, by kind: whatever chooses among them imports this; adding one is a line here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from cjepa_agent.encoders.base import POSITION_DIM, ColourDecoder, VideoEncoder
from cjepa_agent.encoders.clevrer_state import CLEVRERStateDecoder, CLEVRERStateEncoder
from cjepa_agent.encoders.given_slots import AbsentEncoder, GivenSlotsConfig
from cjepa_agent.encoders.patches import (
    DINOv2PatchConfig,
    DINOv2RegistersConfig,
    PatchConfig,
    PatchDecoder,
    PatchEncoder,
)
from cjepa_agent.encoders.slot_attention import SlotDecoder, SlotEncoder
from cjepa_agent.encoders.state import StateDecoder, StateEncoder
from cjepa_agent.encoders.still_camera import StillCameraConfig
from cjepa_agent.encoders.stosavi import SAViConfig, StoSAViConfig
from cjepa_agent.encoders.timm_patches import TimmPatchConfig
from cjepa_agent.encoders.videosaur import SmallVideoSAURConfig, VideoSAURConfig
from configs.kinds import of_kind

Encoder = SlotEncoder | PatchEncoder | StateEncoder | CLEVRERStateEncoder | VideoEncoder | AbsentEncoder
Decoder = ColourDecoder | PatchDecoder

PRIVILEGED = ("state", "clevrer_state")  # kinds of encoders that see what no camera shows


@dataclass(frozen=True)
class EncoderConfig:
    """Architecture of the slot encoder and its decoder.

    Attributes:
        kind: ``slots`` reads pixels; ``state`` and ``clevrer_state`` map the true state of Push-T and of CLEVRER scenes
            to slots (debugging, upper bounds).
        n_slots: S.
        slot_dim: D.
        image_size: side of the input frames, px, a multiple of 4; others are resized, but not in training.
        width: channels of CNN and attention.
        iterations: rounds of slot attention.
        decoder_width: channels of the decoder.
    """

    kind: str = "slots"
    n_slots: int = 4
    slot_dim: int = 128
    image_size: int = 64
    width: int = 64
    iterations: int = 2
    decoder_width: int = 96

    def __post_init__(self) -> None:
        if self.kind not in ("slots", *PRIVILEGED):
            raise ValueError(f"encoder.kind must be one of {['slots', *PRIVILEGED]}, got {self.kind!r}")
        if self.slot_dim <= POSITION_DIM:
            raise ValueError(f"encoder.slot_dim must exceed {POSITION_DIM}, got {self.slot_dim}")
        if min(self.n_slots, self.image_size, self.width, self.iterations, self.decoder_width) < 1:
            raise ValueError(f"encoder sizes must be positive, got {self}")
        if self.kind == "slots" and self.image_size % 4:
            raise ValueError(f"encoder.image_size must be a multiple of 4, got {self.image_size}")

    def build(self) -> tuple[Encoder, Decoder]:
        """The encoder, and the decoder that draws its slots; learned weights start random."""
        if self.kind == "state":
            return StateEncoder(self.n_slots, self.slot_dim), StateDecoder()
        if self.kind == "clevrer_state":
            return CLEVRERStateEncoder(self.n_slots, self.slot_dim), CLEVRERStateDecoder()
        encoder = SlotEncoder(self.n_slots, self.slot_dim, self.image_size, self.width, self.iterations)
        return encoder, SlotDecoder(self.slot_dim, self.decoder_width)


TrainedEncoderConfig = (
    EncoderConfig
    | StillCameraConfig
    | PatchConfig
    | DINOv2PatchConfig
    | DINOv2RegistersConfig
    | TimmPatchConfig
    | StoSAViConfig
    | SAViConfig
    | VideoSAURConfig
    | SmallVideoSAURConfig
)
AnyEncoderConfig = TrainedEncoderConfig | GivenSlotsConfig


def encoder_config(values: Any) -> AnyEncoderConfig:
    """The encoder configuration whose ``dataclasses.asdict`` these are; raises ValueError if none."""
    kinds: dict[str, type[AnyEncoderConfig]] = {kind.kind: kind for kind in get_args(AnyEncoderConfig)}
    return of_kind("encoder", kinds | dict.fromkeys(PRIVILEGED, EncoderConfig), values, EncoderConfig.kind)
