"""SlotFormer (arXiv 2210.05861): a transformer over the slots of all frames of the history.

All slots of a frame share its sinusoidal encoding, and nothing tells slots apart but what they hold, so that the order
of slots does not matter. Ours are the conditioning on actions and proprioception, and a linear map of both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from cjepa_agent.predictors.autoregressive import AutoregressivePredictor, sinusoids, transformer_layer
from cjepa_agent.predictors.base import TransformerConfig


@dataclass(frozen=True)
class SlotFormerConfig(TransformerConfig):
    """Architecture of SlotFormer.

    Attributes:
        residual: predict the change from the last frame instead of the latent; published without.
        kind: ``slotformer``.
    """

    title: ClassVar[str] = "SlotFormer"
    kind: Literal["slotformer"] = "slotformer"

    def build(self, n_slots: int, slot_dim: int, proprio_dim: int, action_dim: int) -> SlotFormer:
        """The predictor with random weights."""
        return SlotFormer(self, n_slots, slot_dim, proprio_dim, action_dim)


class SlotFormer(AutoregressivePredictor):
    """Pre-norm transformer without a final norm; arguments are those of ``AutoregressivePredictor``."""

    orderless = True
    time: Tensor

    def __init__(
        self, config: SlotFormerConfig, n_slots: int, slot_dim: int, proprio_dim: int, action_dim: int
    ) -> None:
        super().__init__(config, n_slots, slot_dim, proprio_dim, action_dim)
        self.register_buffer("time", sinusoids(config.history, config.width), persistent=False)
        self.blocks = nn.TransformerEncoder(transformer_layer(config), config.depth, enable_nested_tensor=False)

    def interact(self, tokens: Tensor) -> Tensor:
        """Attention over all tokens; see ``AutoregressivePredictor``."""
        x: Tensor = self.blocks((tokens + self.time[-tokens.shape[1] :, None]).flatten(1, 2))
        return x.view_as(tokens)
