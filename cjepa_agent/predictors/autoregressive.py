"""Predictors without masks: the next frame from the frames so far, again and again."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from cjepa_agent.latent import Latent
from cjepa_agent.predictors.base import Predictor, TransformerConfig, zero_linear
from cjepa_agent.predictors.losses import LossSettings, LossTerms, forecast_loss

WAVELENGTH = 10000.0  # of the slowest channel of the temporal encoding (Vaswani et al. 2017, section 3.5)


class AutoregressivePredictor(Predictor):
    """Predicts the next frame; a token is a slot with proprioception and action block beside it.

    Conditioning on both is DINO-WM's: they are concatenated to every token, and the state that is predicted has
    proprioception in it. Tokens are then mapped to ``config.width`` channels.

    Args:
        config: architecture.
        n_slots, slot_dim: S and D of the latents.
        proprio_dim: P.
        action_dim: A, numbers in one action block.
    """

    grows = True

    def __init__(
        self, config: TransformerConfig, n_slots: int, slot_dim: int, proprio_dim: int, action_dim: int
    ) -> None:
        super().__init__(config.history, n_slots)
        self.config = config
        self.embed_token = nn.Linear(slot_dim + proprio_dim + action_dim, config.width)
        self.head_slot = zero_linear(config.width, slot_dim)
        # Parameters that nothing is learned with, as of a head without outputs, stop data-parallel training.
        self.head_proprio = zero_linear(config.width, proprio_dim) if proprio_dim else None

    @property
    def frame_tokens(self) -> int:
        """S: a token per slot."""
        return self.n_slots

    @abstractmethod
    def interact(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T, S, width) to what the heads read, of the same shape; time and slot encodings are its own."""

    def forward(self, history: Latent, actions: Tensor, hidden: Tensor | None = None, future: int = 1) -> Latent:
        """Predict the frame after the history, or while training all that are predicted; see ``Predictor``.

        Nothing is hidden from this predictor: ``hidden`` only says that it is being trained.
        """
        self._check_history(history, future)
        self._check_actions(history, actions, future)
        beside = torch.cat([history.proprio, actions], dim=-1).unsqueeze(2).expand(-1, -1, history.slots.shape[2], -1)
        x = self.interact(self.embed_token(torch.cat([history.slots, beside], dim=-1)))
        read = slice(None) if self.causal and hidden is not None else slice(-1, None)
        x = x[:, read]
        last = history.select((slice(None), read))
        slots = self.head_slot(x).float()
        proprio = self.head_proprio(x.mean(2)).float() if self.head_proprio else torch.zeros_like(last.proprio)
        return Latent(last.slots + slots, last.proprio + proprio) if self.config.residual else Latent(slots, proprio)

    def loss(self, prediction: Latent, target: Latent, hidden: Tensor, settings: LossSettings) -> LossTerms:
        """See ``forecast_loss``."""
        return forecast_loss(prediction, target, settings)


def transformer_layer(config: TransformerConfig) -> nn.TransformerEncoderLayer:
    """A pre-norm block of the given sizes."""
    return nn.TransformerEncoderLayer(
        config.width, config.heads, config.mlp, config.dropout, batch_first=True, norm_first=True
    )


def sinusoids(frames: int, width: int) -> Tensor:
    """Temporal encoding (frames, width), sines and then cosines, of the time before the last frame.

    Counted back from now, as SlotFormer does, so that short histories end at the same encoding as long ones.

    Raises:
        ValueError: the width is odd.
    """
    if width % 2:
        raise ValueError(f"predictor.width must be even for sinusoidal encodings, got {width}")
    frequency = WAVELENGTH ** (-torch.arange(0, width, 2) / width)
    phase = torch.outer(torch.arange(frames - 1, -1, -1).float(), frequency)
    return torch.cat([phase.sin(), phase.cos()], dim=-1)
