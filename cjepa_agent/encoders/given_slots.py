"""In place of an encoder, for slots and predictors that came without theirs: only its sizes are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NoReturn

from torch import Tensor

from cjepa_agent.encoders.base import ColourDecoder, FrameEncoder


@dataclass(frozen=True)
class GivenSlotsConfig:
    """Slots whose encoder is elsewhere.

    Attributes:
        n_slots: S.
        slot_dim: D.
        kind: ``given``.
    """

    n_slots: int
    slot_dim: int
    kind: Literal["given"] = "given"

    def __post_init__(self) -> None:
        if min(self.n_slots, self.slot_dim) < 1:
            raise ValueError(f"encoder sizes must be positive, got {self}")

    def build(self) -> tuple[AbsentEncoder, AbsentDecoder]:
        """What says that it is not there."""
        return AbsentEncoder(), AbsentDecoder()


class AbsentEncoder(FrameEncoder):
    """Refuses to look at frames."""

    def read(self, frames: Tensor) -> NoReturn:
        """Raises ValueError."""
        raise _absent()


class AbsentDecoder(ColourDecoder):
    """Refuses to draw slots."""

    def paint(self, slots: Tensor, points: Tensor) -> NoReturn:
        """Raises ValueError."""
        raise _absent()


def _absent() -> ValueError:
    return ValueError(
        "these slots came without their encoder, so that frames can be neither read nor drawn; convert the authors' "
        "encoder, then slots and predictor again with encoder=<its folder>"
    )
