"""OC-DINO-WM: DINO-WM's causal predictor (arXiv 2411.04983) on object slots in place of patches.

Tokens see those of their own and of earlier frames; the output at each frame predicts the next one (teacher forcing).
Every frame and slot has a learned encoding. Unlike DINO-WM, tokens are mapped to ``width`` channels first, and
proprioception is predicted as it is measured rather than as an embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from cjepa_agent.autoregressive import AutoregressivePredictor, transformer_layer
from cjepa_agent.dynamics import TransformerConfig


@dataclass(frozen=True)
class OCDINOWMConfig(TransformerConfig):
    """Architecture of OC-DINO-WM.

    Attributes:
        kind: ``oc_dino_wm``.
    """

    title: ClassVar[str] = "OC-DINO-WM"
    kind: Literal["oc_dino_wm"] = "oc_dino_wm"

    def build(self, n_slots: int, slot_dim: int, proprio_dim: int, action_dim: int) -> OCDINOWM:
        """The predictor with random weights."""
        return OCDINOWM(self, n_slots, slot_dim, proprio_dim, action_dim)


class OCDINOWM(AutoregressivePredictor):
    """Causal transformer over slots; arguments are those of ``AutoregressivePredictor``."""

    causal = True
    unseen: Tensor
    blocks: nn.ModuleList

    def __init__(self, config: OCDINOWMConfig, n_slots: int, slot_dim: int, proprio_dim: int, action_dim: int) -> None:
        super().__init__(config, n_slots, slot_dim, proprio_dim, action_dim)
        self.position = nn.Parameter(torch.randn(config.history, n_slots, config.width) * 0.02)
        self.blocks = nn.ModuleList(transformer_layer(config, "gelu") for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        frame = torch.arange(config.history).repeat_interleave(n_slots)
        self.register_buffer("unseen", frame[:, None] < frame, persistent=False)

    def interact(self, tokens: Tensor) -> Tensor:
        """Attention over this and earlier frames; see ``AutoregressivePredictor``."""
        # From the first frame on, so that a history is seen exactly as the beginning of a longer one was in training.
        x = (tokens + self.position[: tokens.shape[1]]).flatten(1, 2)
        length = x.shape[1]
        for block in self.blocks:
            x = block(x, src_mask=self.unseen[:length, :length])
        normed: Tensor = self.norm(x)
        return normed.view_as(tokens)
