"""OC-DINO-WM: DINO-WM's causal predictor (arXiv 2411.04983) on object slots in place of patches.

Tokens see those of their own and of earlier frames; the output at each frame predicts the next one (teacher forcing).
Every frame and slot has a learned encoding. Unlike DINO-WM, tokens are mapped to ``width`` channels first,
proprioception is predicted as it is measured rather than as an embedding, and no attention weight is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from cjepa_agent.predictors.autoregressive import AutoregressivePredictor
from cjepa_agent.predictors.base import TransformerConfig
from cjepa_agent.predictors.cjepa import attend


@dataclass(frozen=True)
class OCDINOWMConfig(TransformerConfig):
    """Architecture of OC-DINO-WM.

    Attributes:
        head_dim: channels of an attention head; null for ``width / heads``. DINO-WM's are 64, of whatever width.
        kind: ``oc_dino_wm``.
    """

    title: ClassVar[str] = "OC-DINO-WM"
    head_dim: int | None = None
    kind: Literal["oc_dino_wm"] = "oc_dino_wm"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_dim is not None and self.head_dim < 1:
            raise ValueError(f"predictor.head_dim must be positive or null, got {self.head_dim}")

    def build(self, n_slots: int, slot_dim: int, proprio_dim: int, action_dim: int) -> OCDINOWM:
        """The predictor with random weights."""
        return OCDINOWM(self, n_slots, slot_dim, proprio_dim, action_dim)


class CausalBlock(nn.Module):
    """Pre-norm transformer block with projections to queries, keys and values that have no bias."""

    def __init__(self, config: OCDINOWMConfig) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        inner = self.heads * (config.head_dim or width // self.heads)
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * inner, bias=False)
        self.out, self.drop = nn.Linear(inner, width), nn.Dropout(config.dropout)
        self.mlp = nn.Sequential(
            nn.Linear(width, config.mlp), nn.GELU(), self.drop, nn.Linear(config.mlp, width), self.drop
        )

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """Update tokens (B, L, width), of which each looks at those that it may see, (L, L)."""
        parts = self.query_key_value(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        x = x + self.drop(self.out(attend(query, key, value, seen).transpose(1, 2).flatten(2)))
        updated: Tensor = x + self.mlp(self.norm_mlp(x))
        return updated


class OCDINOWM(AutoregressivePredictor):
    """Causal transformer over slots; arguments are those of ``AutoregressivePredictor``."""

    causal = True
    seen: Tensor
    blocks: nn.ModuleList

    def __init__(self, config: OCDINOWMConfig, n_slots: int, slot_dim: int, proprio_dim: int, action_dim: int) -> None:
        super().__init__(config, n_slots, slot_dim, proprio_dim, action_dim)
        self.position = nn.Parameter(torch.randn(config.history, n_slots, config.width) * 0.02)
        self.blocks = nn.ModuleList(CausalBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        frame = torch.arange(config.history).repeat_interleave(n_slots)
        self.register_buffer("seen", frame[:, None] >= frame, persistent=False)

    def interact(self, tokens: Tensor) -> Tensor:
        """Attention over this and earlier frames; see ``AutoregressivePredictor``."""
        # From the first frame on, so that a history is seen exactly as the beginning of a longer one was in training.
        x = (tokens + self.position[: tokens.shape[1]]).flatten(1, 2)
        length = x.shape[1]
        for block in self.blocks:
            x = block(x, self.seen[:length, :length])
        normed: Tensor = self.norm(x)
        return normed.view_as(tokens)
