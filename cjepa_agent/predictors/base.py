"""What all predictors of latents share: sizes, and the interface that the world model and its training use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from cjepa_agent.latent import Latent
from cjepa_agent.predictors.losses import LossSettings, LossTerms, cjepa_loss


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a predictor's transformer.

    Attributes:
        depth: number of transformer blocks.
        width: channels of a token.
        heads: attention heads; must divide ``width``.
        mlp: hidden units of each block's MLP.
        dropout: probability, while training.
        history: most frames of history, T; shorter histories are accepted.
        residual: predict the change from the last visible latent of the same object instead of the latent.
        title: what the system is called in tables and model cards.
    """

    title: ClassVar[str]
    depth: int = 4
    width: int = 128
    heads: int = 4
    mlp: int = 512
    dropout: float = 0.0
    history: int = 3
    residual: bool = True

    def __post_init__(self) -> None:
        if min(self.depth, self.width, self.heads, self.mlp, self.history) < 1:
            raise ValueError(f"predictor sizes must be positive, got {self}")
        if self.width % self.heads:
            raise ValueError(f"predictor.width {self.width} is not a multiple of predictor.heads {self.heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"predictor.dropout is a probability in [0, 1), got {self.dropout}")


class Predictor(nn.Module, ABC):
    """Predicts the next frames from those so far and the actions taken.

    Args:
        history: most frames of history, T.
        n_slots: S.
        future: most future frames predicted in one call, F.

    Attributes:
        grows: whether a rollout's history grows to its full length, or keeps the length that it starts with.
        orderless: whether nothing tells slots apart but what they hold, so that some can be left out.
        raw_slots: whether it predicts slots as the encoder gives them, not normalised.
        masked: whether cells can be hidden from it; to others ``hidden`` only says that they are being trained.
        causal: whether no output depends on a later frame. All frames of the history are then trained to predict the
            next one.
        blocks: the layers between embeddings and heads.
    """

    grows: ClassVar[bool]
    orderless: ClassVar[bool] = False
    raw_slots: ClassVar[bool] = False
    masked: ClassVar[bool] = False
    causal: ClassVar[bool] = False
    blocks: nn.Module

    def __init__(self, history: int, n_slots: int, future: int = 1) -> None:
        super().__init__()
        self.history, self.n_slots, self.future = history, n_slots, future

    @property
    @abstractmethod
    def frame_tokens(self) -> int:
        """Tokens of one frame."""

    @property
    def hidden_matrices(self) -> list[nn.Parameter]:
        """Weight matrices between hidden layers."""
        return [p for p in self.blocks.parameters() if p.ndim == 2]

    def embed(self, latent: Latent) -> Latent:
        """The state that is predicted: normalised slots and proprioception as they are."""
        return latent

    @abstractmethod
    def forward(self, history: Latent, actions: Tensor, hidden: Tensor | None = None, future: int = 1) -> Latent:
        """Predict.

        Args:
            history: slots (B, T, S, D) and proprio (B, T, P) as ``embed`` gives them, T from 1 to the full length.
            actions: (B, T + future - 1, A) normalised action blocks, the t-th taken at frame t.
            hidden: (B, T, S) bool, history cells that a masked predictor does not see; given while training, None at
                test time.
            future: F, frames to predict.

        Returns:
            Slots (B, frames, S, D) and proprio (B, frames, P): for the F future frames, and when ``hidden`` is given
            for all frames before them, too, that ``loss`` looks at.

        Raises:
            ValueError: shapes that do not fit the configuration.
        """

    def loss(self, prediction: Latent, target: Latent, hidden: Tensor, settings: LossSettings) -> LossTerms:
        """What training minimises: what ``forward`` predicts with ``hidden``, against all frames (B, T + F, ...)."""
        return cjepa_loss(prediction, target, hidden, settings)

    def _check_history(self, history: Latent, future: int) -> None:
        frames, slots = history.slots.shape[1:3]
        if not 1 <= frames <= self.history:
            raise ValueError(f"history has {frames} frames; this predictor takes 1..{self.history}")
        if not 1 <= future <= self.future:
            raise ValueError(f"asked for {future} future frames; this predictor gives 1..{self.future} per call")
        if slots > self.n_slots or (slots < self.n_slots and not self.orderless):
            raise ValueError(f"history has {slots} slots, the predictor {self.n_slots}")

    def _check_actions(self, history: Latent, actions: Tensor, future: int) -> None:
        frames = history.slots.shape[1]
        if actions.shape[1] != frames + future - 1:
            raise ValueError(
                f"{frames} history and {future} future frames need {frames + future - 1} action blocks, "
                f"got {actions.shape[1]}"
            )


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A head that predicts 0 until it is trained."""
    head = nn.Linear(inputs, outputs)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head
