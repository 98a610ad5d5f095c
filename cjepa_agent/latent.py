"""The world model's state: object slots beside proprioception."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Latent(NamedTuple):
    """Latent state(s) of a scene.

    Attributes:
        slots: (..., S, D) object latents.
        proprio: (..., P) normalised proprioception. It is its own latent: a learned embedding as prediction
            target could shrink to a constant, normalised measurements cannot.
    """

    slots: Tensor
    proprio: Tensor

    def select(self, index: object) -> Latent:
        """Both parts indexed alike along their leading axes."""
        return Latent(self.slots[index], self.proprio[index])  # type: ignore[index]

    def repeat(self, n: int) -> Latent:
        """(B, ...) to (B * n, ...), every entry ``n`` times in a row."""
        return Latent(self.slots.repeat_interleave(n, 0), self.proprio.repeat_interleave(n, 0))

    @staticmethod
    def cat(parts: list[Latent], dim: int) -> Latent:
        """Join along a leading axis."""
        return Latent(torch.cat([p.slots for p in parts], dim), torch.cat([p.proprio for p in parts], dim))
