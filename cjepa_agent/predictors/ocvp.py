"""OCVP-Seq (arXiv 2302.11850): attention among the objects of a frame, then of each object over time, in turns.

The order of slots does not matter. Ours are the conditioning on actions and proprioception, and a temporal encoding
that counts back from now.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from cjepa_agent.predictors.autoregressive import AutoregressivePredictor, sinusoids, transformer_layer
from cjepa_agent.predictors.base import TransformerConfig


@dataclass(frozen=True)
class OCVPConfig(TransformerConfig):
    """Architecture of OCVP-Seq.

    Attributes:
        depth: pairs of transformer blocks, one over objects and one over time.
        kind: ``ocvp``.
    """

    title: ClassVar[str] = "OCVP-Seq"
    depth: int = 2
    kind: Literal["ocvp"] = "ocvp"

    def build(self, n_slots: int, slot_dim: int, proprio_dim: int, action_dim: int) -> OCVP:
        """The predictor with random weights."""
        return OCVP(self, n_slots, slot_dim, proprio_dim, action_dim)


class ObjectTimeBlock(nn.Module):
    """Attention over the objects of each frame, then over the frames of each object."""

    def __init__(self, config: OCVPConfig) -> None:
        super().__init__()
        self.objects, self.time = transformer_layer(config), transformer_layer(config)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, T, S, width) to tokens of the same shape."""
        x = self.objects(x.flatten(0, 1)).view_as(x).transpose(1, 2)
        x = self.time(x.flatten(0, 1)).view_as(x).transpose(1, 2)
        return x


class OCVP(AutoregressivePredictor):
    """Object and time attention in turns; arguments are those of ``AutoregressivePredictor``."""

    orderless = True
    encoding: Tensor
    blocks: nn.ModuleList

    def __init__(self, config: OCVPConfig, n_slots: int, slot_dim: int, proprio_dim: int, action_dim: int) -> None:
        super().__init__(config, n_slots, slot_dim, proprio_dim, action_dim)
        self.register_buffer("encoding", sinusoids(config.history, config.width), persistent=False)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(ObjectTimeBlock(config) for _ in range(config.depth))

    def interact(self, tokens: Tensor) -> Tensor:
        """Attention by object and time; see ``AutoregressivePredictor``."""
        x: Tensor = self.drop(tokens + self.encoding[-tokens.shape[1] :, None])
        for block in self.blocks:
            x = block(x)
        return x
